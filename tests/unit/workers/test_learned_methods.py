"""Fusing by deltas, and sums with coefficients per column: computed by hand, and refused."""

import pytest
import torch
from torch import Tensor

from configs.errors import ConfigError
from tests.unit.workers.merge_cases import merge, plan, pool, same_bits, terms
from workers.compiled import Operands
from workers.kernels import TensorFacts, merge_steps, merge_window
from workers.methods import get_method
from workers.source_tiles import source_tiles
from workers.tiles import Window

# Two checkpoints (2, 3), and a coefficient for each of their columns.
FIRST = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
SECOND = torch.tensor([10.0, 20.0, 30.0, 40.0, 50.0, 60.0])
COLUMNS = [torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.0, 0.25, -1.0])]


def dam(tuned: list[Tensor], weights: list[float], columns: list[Tensor], **how: object) -> Tensor:
    return merge(None, tuned, terms(weights), method="dam", columns=columns, **how)


def test_dam_multiplies_every_input_column_by_its_own_number() -> None:
    merged = dam([FIRST, SECOND], [1.0, 1.0], COLUMNS)
    # 1*1 + 10*0, 2*.5 + 20*.25, 3*0 - 30*1; 4*1 + 40*0, 5*.5 + 50*.25, 6*0 - 60*1
    assert merged.tolist() == [1.0, 6.0, -30.0, 4.0, 15.0, -60.0]


def test_dam_counts_the_weights_of_the_recipe_besides() -> None:
    merged = dam([FIRST, SECOND], [2.0, -1.0], COLUMNS)
    assert merged.tolist() == [2.0, -3.0, 30.0, 8.0, -7.5, 60.0]


def test_dam_skips_a_checkpoint_without_weight_and_hides_no_broken_one() -> None:
    broken = torch.full((6,), torch.nan)
    assert dam([FIRST, broken], [1.0, 0.0], COLUMNS).tolist() == [1.0, 1.0, 0.0, 4.0, 2.5, 0.0]
    # Also where its coefficient is zero: a NaN is no number of which nothing is taken.
    assert dam([FIRST, broken], [1.0, 1.0], COLUMNS).isnan().all()
    assert dam([FIRST, SECOND], [0.0, 0.0], COLUMNS).tolist() == [0.0] * 6


def test_dam_of_a_vector_has_a_number_per_element() -> None:
    merged = dam([FIRST, SECOND], [1.0, 1.0], [FIRST, torch.zeros(6)])
    assert merged.tolist() == [1.0, 4.0, 9.0, 16.0, 25.0, 36.0]


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dam_is_a_sum_in_float32_rounded_once(dtype: torch.dtype, backend: str) -> None:
    rows, width = 300, 77
    _, tuned = pool(rows * width, dtype)
    columns = [torch.rand(width, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    merged = dam(tuned, [1.0, 0.5, -0.25], columns, backend=backend)
    expected = torch.zeros(rows, width)
    for tensor, numbers, weight in zip(tuned, columns, [1.0, 0.5, -0.25], strict=True):
        expected = expected + tensor.float().view(rows, width) * (numbers * weight)
    assert same_bits(merged.view(rows, width), expected.to(dtype))


def test_dam_of_a_slice_along_the_last_of_three_axes() -> None:
    shape = (4, 3, 6)
    _, tuned = pool(72, num_tuned=2)
    columns = [torch.rand(18, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    whole = dam(tuned, [1.0, 1.0], columns).view(shape)
    out = torch.full((12, 2), torch.nan)
    parts = [tensor.view(12, 6)[:, 3:5] for tensor in tuned]
    facts = TensorFacts((1.0, 1.0), columns=tuple(columns))
    merge_window(plan(terms([1.0, 1.0]), "dam"), facts, out, None, parts, window=Window(3, 6))
    assert same_bits(out.view(4, 3, 2), whole[:, :, 3:5].contiguous())


def fuse_by_hand(base: float, tuned: list[float], weights: list[float], power: int) -> float:
    deltas = [value - base for value in tuned]
    sizes = [abs(delta) ** power for delta in deltas]
    parts = [w * s / sum(sizes) * d for w, s, d in zip(weights, sizes, deltas, strict=True)]
    return base + sum(parts)


@pytest.mark.parametrize("power", [0, 1, 2, 8])
def test_delta_guided_is_the_formula(power: int) -> None:
    base = torch.tensor([0.0, 1.0, -1.0, 0.5, 2.0, 0.25])
    tuned = [
        torch.tensor([1.0, 1.0, -3.0, 0.0, 2.5, 0.5]),
        torch.tensor([-3.0, 2.0, 0.0, 1.5, 2.0, -0.5]),
    ]
    options = {"power": power, "scale": 1.0}
    merged = merge(base, tuned, terms([1.0, 0.5]), method="delta_guided", options=options)
    expected = [
        fuse_by_hand(float(base[j]), [float(t[j]) for t in tuned], [1.0, 0.5], power)
        for j in range(6)
    ]
    assert merged.tolist() == pytest.approx(expected, rel=1e-6)


def test_delta_guided_by_hand_and_scaled() -> None:
    base = torch.tensor([1.0, 1.0])
    tuned = [torch.tensor([4.0, 1.0]), torch.tensor([0.0, 3.0])]
    # d = 3 and -1: a = 3/4 and 1/4, 9/4 - 1/4 = 2. d = 0 and 2: a = 0 and 1.
    merged = merge(base, tuned, terms([1.0, 1.0]), method="delta_guided")
    assert merged.tolist() == [3.0, 3.0]
    options = {"scale": 0.5}
    merged = merge(base, tuned, terms([1.0, 1.0]), method="delta_guided", options=options)
    assert merged.tolist() == [2.0, 2.0]


@pytest.mark.parametrize("power", [0, 1, 8])
def test_delta_guided_is_the_base_where_nobody_moved(power: int) -> None:
    base, _ = pool(1000, torch.bfloat16)
    merged = merge(
        base, [base, base], terms([1.0, 1.0]), method="delta_guided", options={"power": power}
    )
    assert same_bits(merged, base)


def test_delta_guided_by_power_zero_is_the_mean() -> None:
    base, tuned = pool(1000)
    options = {"power": 0.0}
    merged = merge(base, tuned, terms([1.0] * 3), method="delta_guided", options=options)
    mean = merge(base, tuned, terms([1 / 3] * 3), method="task_arithmetic")
    assert torch.allclose(merged, mean, rtol=0, atol=1e-7)


def test_delta_guided_with_large_and_small_deltas_neither_over_nor_underflows() -> None:
    base = torch.zeros(2)
    tuned = [torch.tensor([1e30, 1e-30]), torch.tensor([5e29, 5e-31])]
    merged = merge(base, tuned, terms([1.0, 1.0]), method="delta_guided", options={"power": 8})
    share = 1 / (1 + 2.0**-8)
    expected = [1e30 * share + 5e29 * (1 - share), 1e-30 * share + 5e-31 * (1 - share)]
    assert merged.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("power", [0, 1, 3])
def test_delta_guided_hides_no_broken_element(broken: float, power: int) -> None:
    base, tuned = pool(100)
    tuned[1][40] = broken
    merged = merge(base, tuned, terms([1.0] * 3), method="delta_guided", options={"power": power})
    assert (~merged.isfinite()).nonzero().flatten().tolist() == [40]


def test_power_is_a_whole_number() -> None:
    with pytest.raises(ConfigError, match=r"merge\.options\.power: must be a whole number"):
        get_method("delta_guided").complete_options({"power": 1.5})
    with pytest.raises(ConfigError, match=r"must be between 0 and 8"):
        get_method("delta_guided").complete_options({"power": 9})


def test_dam_is_never_compiled() -> None:
    _, tuned = pool(2**15, num_tuned=2)
    chosen = plan(terms([1.0, 1.0]), "dam")
    columns = tuple(torch.ones(64) for _ in range(2))
    tiles = source_tiles(chosen, None, tuned, window=Window(), limit=2**28, flat_width=4096)
    facts = TensorFacts((1.0, 1.0), columns=columns)
    out = torch.empty(2**15)
    (step,) = merge_steps(chosen, facts, out, tiles, backend="compiled")
    assert step.func.__name__ == "merge_chunk"
    (operands,) = [value for value in step.args if isinstance(value, Operands)]
    assert [part.shape for part in operands.columns] == [(64 * 64,)] * 2
