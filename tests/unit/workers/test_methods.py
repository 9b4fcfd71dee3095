"""Merge methods: their options, how they are found, and what they do beyond plain sums."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from configs.errors import ConfigError
from tests.plug_ins import Install, pretend, run_with_package
from tests.unit.workers.merge_cases import merge, plan, pool, same_bits, terms
from workers.kernels import merge_window, whole_facts
from workers.methods import ENTRY_POINTS, MergeMethod, get_method, method_names
from workers.methods.linear import add_tuned
from workers.methods.slerp import slerp_coefficients
from workers.plan import MergeTerm
from workers.statistics import StatisticsCache, num_kept
from workers.tiles import Window

COUNT = 3000
NEEDING_A_BASE = [name for name in method_names() if get_method(name).needs_base]
AVERAGE = MergeMethod(name="average", paper="here", needs_base=False, combine=add_tuned)


def drops_for(name: str) -> list[float]:
    return [0.5, 0.8, 0.0] if get_method(name).uses_drop_ratios else [0.0] * 3


def columns_for(name: str, width: int = COUNT) -> list[Tensor]:
    """One coefficient per column and checkpoint, for methods that take them."""
    draw = torch.Generator().manual_seed(1)
    takes = get_method(name).takes_columns
    return [torch.rand(width, generator=draw) for _ in range(3)] if takes else []


@pytest.fixture
def plug_in(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Makes entry points known, as an installed package does."""
    return pretend(monkeypatch, ENTRY_POINTS)


def test_methods_are_known_without_importing_torch() -> None:
    code = "import sys, workers.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_method_of_an_installed_package_is_found_by_its_entry_point(plug_in) -> None:
    plug_in(average=f"{__name__}:AVERAGE")
    sys.modules[__name__] = sys.modules.get(__name__) or sys.modules["test_methods"]
    assert get_method("average").combine is add_tuned
    assert method_names()[-1] == "average"
    _, tuned = pool(100, num_tuned=2)
    linear = merge(None, tuned, terms([0.5, 0.5]), method="linear")
    assert same_bits(merge(None, tuned, terms([0.5, 0.5]), method="average"), linear)


def test_package_that_is_installed_brings_its_method(tmp_path) -> None:
    source = (
        "from workers.methods import MergeMethod\n"
        "from workers.methods.linear import add_tuned\n"
        "METHOD = MergeMethod(name='mine', paper='here', needs_base=False, combine=add_tuned)\n"
    )
    code = "import workers.methods as m; print(m.get_method('mine').paper)"
    assert run_with_package(tmp_path, "mergefront.methods", source, "METHOD", code) == "here\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no.such.module:METHOD", "does not load: No module named"),
        ("math:pi", "must be a MergeMethod of that name, found 3.14"),
        ("workers.methods.linear:LINEAR", "must be a MergeMethod of that name"),
    ],
)
def test_entry_point_that_is_no_method_is_refused(plug_in, value: str, message: str) -> None:
    plug_in(average=value)
    with pytest.raises(ConfigError, match=message):
        get_method("average")


def test_unknown_method_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="`tiess` is no merge method; did you mean `ties`"):
        get_method("tiess")


def test_options_are_completed_and_every_wrong_one_is_named() -> None:
    ties = get_method("ties")
    assert ties.complete_options({"scale": 0.5}) == {"normalize": 1.0, "scale": 0.5}
    with pytest.raises(ConfigError) as caught:
        ties.complete_options({"normalise": 1.0, "normalize": 0.5, "scale": math.nan})
    assert [str(problem) for problem in caught.value.problems] == [
        "merge.options.normalise: `ties` has no such option; did you mean `normalize`?",
        "merge.options.normalize: must be true or false, found 0.5",
        "merge.options.scale: must be between -10 and 10, found nan",
    ]
    with pytest.raises(ConfigError, match="it has none"):
        get_method("linear").complete_options({"scale": 1.0})


@pytest.mark.parametrize("name", NEEDING_A_BASE)
def test_no_weights_give_the_base_bit_for_bit(name: str) -> None:
    base, tuned = pool(COUNT, torch.bfloat16)
    assert same_bits(merge(base, tuned, terms([0.0] * 3, drops_for(name)), method=name), base)


@pytest.mark.parametrize("name", NEEDING_A_BASE)
def test_one_checkpoint_alone_is_itself_within_the_rounding_of_a_difference(name: str) -> None:
    base, tuned = pool(COUNT)
    merged = merge(base, tuned, terms([0.0, 1.0, 0.0]), method=name)
    bound = torch.maximum(base.abs(), tuned[1].abs()) * 2.0**-23
    assert ((merged - tuned[1]).abs() <= bound).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("chunk", [1, 7, 1000, 2**20])
def test_result_does_not_depend_on_chunks(name: str, chunk: int) -> None:
    base, tuned = pool(COUNT, torch.bfloat16)
    count = 2 if name == "slerp" else 3
    chosen = terms([0.7, -0.3, 1.1][:count], drops_for(name)[:count])
    operands = (base if get_method(name).needs_base else None, tuned[:count], chosen)
    how = {"method": name, "row_length": 50, "columns": columns_for(name, 50)}
    whole = merge(*operands, **how)
    if chunk >= 7 or name in ("ties", "dare_linear", "dam"):
        merged = merge(*operands, **how, chunk_elements=chunk)
        assert same_bits(merged, whole)


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("columns", [slice(0, 20), slice(20, 50), slice(13, 14)])
def test_columns_of_a_matrix_get_the_bits_of_the_whole(name: str, columns: slice) -> None:
    rows, width = 60, 50
    base, tuned = pool(rows * width)
    count = 2 if name == "slerp" else 3
    chosen = terms([0.7, -0.3, 1.1][:count], drops_for(name)[:count])
    needed = base if get_method(name).needs_base else None
    numbers = columns_for(name, width)
    whole = merge(needed, tuned[:count], chosen, method=name, row_length=width, columns=numbers)

    def part(tensor: Tensor) -> Tensor:
        return tensor.view(rows, width)[:, columns]

    tensor_plan = plan(chosen, name)
    facts = whole_facts(
        tensor_plan, needed, tuned[:count], row_length=width, statistics=StatisticsCache()
    )
    facts = replace(facts, columns=tuple(numbers))
    out = torch.full((rows, columns.stop - columns.start), torch.nan)
    merge_window(
        tensor_plan,
        facts,
        out,
        None if needed is None else part(needed),
        [part(tensor) for tensor in tuned[:count]],
        window=Window(columns.start, width),
        chunk_elements=170,
    )
    assert same_bits(out, part(whole).contiguous())


def test_ties_is_what_its_paper_says_in_plain_words() -> None:
    base, tuned = pool(COUNT)
    weights, drops = [0.7, 0.3, 1.1], [0.5, 0.8, 0.0]
    trimmed = []
    for tensor, weight, drop in zip(tuned, weights, drops, strict=True):
        delta = tensor - base
        kept = delta.abs().sort(descending=True, stable=True).indices[: num_kept(drop, COUNT)]
        mask = torch.zeros(COUNT, dtype=torch.bool).scatter(0, kept, value=True)
        trimmed.append(torch.where(mask, delta, 0.0) * torch.tensor(weight))
    expected = base.clone()
    for j in range(COUNT):
        parts = [float(t[j]) for t in trimmed]
        sign = 1 if trimmed[0][j] + trimmed[1][j] + trimmed[2][j] >= 0 else -1
        agreeing = [(p, w) for p, w in zip(parts, weights, strict=True) if p * sign > 0]
        if agreeing:
            expected[j] += sum(p for p, _ in agreeing) / sum(w for _, w in agreeing)
    merged = merge(base, tuned, terms(weights, drops), method="ties")
    assert torch.allclose(merged, expected, rtol=1e-6, atol=1e-8)


def test_ties_scale_multiplies_the_merged_task_vector() -> None:
    base, tuned = pool(COUNT)
    chosen = terms([1.0] * 3, [0.8] * 3)
    plain = merge(base, tuned, chosen, method="ties")
    doubled = merge(base, tuned, chosen, method="ties", options={"scale": 2.0})
    assert torch.allclose(doubled - base, 2 * (plain - base), atol=1e-7)


@pytest.mark.parametrize("name", ["ties", "dare_ties", "della", "delta_guided"])
def test_choosing_by_element_does_not_hide_a_broken_checkpoint(name: str) -> None:
    base, tuned = pool(100)
    tuned[1][40] = torch.nan
    merged = merge(base, tuned, terms([1.0] * 3), method=name)
    assert merged.isnan().nonzero().flatten().tolist() == [40]


@pytest.mark.parametrize("name", ["dare_linear", "ties", "dare_ties", "della", "della_linear"])
def test_what_is_dropped_spreads_nothing(name: str) -> None:
    base, tuned = pool(COUNT)
    chosen = terms([1.0, 0.0, 0.0], [0.9, 0.0, 0.0])
    merged = merge(base, tuned, chosen, method=name)
    dropped = merged == base
    assert dropped.float().mean() > 0.8
    if name != "ties":  # there the largest magnitudes are kept, and infinity is the largest
        broken = torch.where(dropped, torch.inf, tuned[0])
        again = merge(base, [broken, *tuned[1:]], chosen, method=name)
        # Ranks change with the magnitudes, so some others may be dropped; none may be broken.
        finite = again.isfinite()
        assert finite.all() if name.startswith("dare") else finite[~dropped].all()


@pytest.mark.parametrize("drop_ratio", [0.3, 0.7])
def test_della_is_unbiased_over_masks(drop_ratio: float) -> None:
    base, (tuned,) = torch.zeros(COUNT), [torch.rand(COUNT) + 0.5]
    sums = torch.zeros(COUNT, dtype=torch.float64)
    repeats = 200
    for seed in range(repeats):
        chosen = [MergeTerm(1.0, drop_ratio, "d")]
        sums += merge(base, [tuned], chosen, method="della_linear", mask_seed=seed).double()
    total = float((sums / repeats - tuned).sum())
    error = math.sqrt(
        float((tuned.double() ** 2).sum()) / repeats * 1.2 * drop_ratio / (1 - drop_ratio)
    )
    assert abs(total) < 4 * error


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_slerp_keeps_the_length_of_unit_vectors(share: float) -> None:
    first, second = torch.tensor([1.0, 0.0]), torch.tensor([0.6, 0.8])
    chosen = [MergeTerm(1 - share, 0.0, "a"), MergeTerm(share, 0.0, "b")]
    merged = merge(None, [first, second], chosen, method="slerp")
    assert float(merged.norm()) == pytest.approx(1.0, abs=1e-6)
    angle = math.acos(0.6) * share
    assert merged.tolist() == pytest.approx([math.cos(angle), math.sin(angle)], abs=1e-6)


def test_slerp_interpolates_linearly_where_there_is_no_angle() -> None:
    assert slerp_coefficients([1.0, 3.0], [[4.0, 4.0], [4.0, 4.0]]) == (0.25, 0.75)
    assert slerp_coefficients([1.0, 1.0], [[0.0, 0.0], [0.0, 4.0]]) == (0.5, 0.5)
    assert slerp_coefficients([1.0, 1.0], [[4.0, -4.0], [-4.0, 4.0]]) == (0.5, 0.5)
    with pytest.raises(ValueError, match="sum other than 0"):
        slerp_coefficients([1.0, -1.0], [[1.0, 0.0], [0.0, 1.0]])
