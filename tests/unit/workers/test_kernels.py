"""Merging flat tensors: the arithmetic, its bits, and what never spreads."""

import math
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from configs.errors import ConfigError
from tests.unit.workers.merge_cases import (
    DTYPES,
    bits,
    merge,
    merge_in_numpy,
    plan,
    pool,
    same_bits,
    terms,
)
from workers import kernels, source_tiles, tiles
from workers.compiled import COMPILED_WIDTH, merge_chunk
from workers.kernels import TensorFacts, merge_flat, merge_window
from workers.mask import (
    BLOCK_ELEMENTS,
    checkpoint_factor,
    keep_mask,
    mix,
    signed_threshold,
    tensor_key,
    weyl,
)
from workers.methods import get_method
from workers.plan import MergeTerm
from workers.tiles import Window

# torch itself still uses what it deprecates when inductor is imported.
from_inductor = pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
NAN, INF = math.nan, math.inf
COUNT = 100_003


def mask_of(term: MergeTerm, count: int, tensor_name: str = "layer.weight") -> torch.Tensor:
    return keep_mask(
        count,
        mask_seed=0,
        digest=term.digest,
        tensor_name=tensor_name,
        drop_ratio=term.drop_ratio,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_dare_equals_the_numpy_reference_bit_for_bit(dtype: torch.dtype) -> None:
    base, tuned = pool(COUNT, dtype)
    chosen = terms([0.7, -0.3, 1.1], [0.5, 0.0, 0.9])
    expected = merge_in_numpy(base, tuned, chosen, [mask_of(term, COUNT) for term in chosen])
    assert same_bits(merge(base, tuned, chosen), expected)


def test_linear_is_the_weighted_sum_without_a_base() -> None:
    _, tuned = pool(1000)
    merged = merge(None, tuned, terms([0.5, 0.3, 0.2]), method="linear")
    a, b, c = (tensor.numpy() for tensor in tuned)
    f = torch.tensor([0.5, 0.3, 0.2]).numpy()
    assert same_bits(merged, torch.from_numpy(a * f[0] + b * f[1] + c * f[2]))


def test_task_arithmetic_is_dare_without_drops() -> None:
    base, tuned = pool(1000)
    chosen = terms([0.5, 0.3, -0.2])
    plain = merge(base, tuned, chosen, method="task_arithmetic")
    assert same_bits(plain, merge(base, tuned, chosen, method="dare_linear"))


@pytest.mark.parametrize("chunk", [1, 7, 4096, 65_536, COUNT, 10**9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_do_not_depend_on_chunks(chunk: int, dtype: torch.dtype) -> None:
    count = 500 if chunk < 10 else COUNT
    base, tuned = pool(count, dtype)
    chosen = terms([0.7, -0.3, 1.1], [0.5, 0.0, 0.9])
    chunked = merge(base, tuned, chosen, chunk_elements=chunk)
    assert same_bits(chunked, merge(base, tuned, chosen))


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    base, tuned = pool(COUNT)
    chosen = terms([0.7, -0.3, 1.1], [0.5, 0.0, 0.9])
    before = torch.get_num_threads()
    try:
        merged = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            # One chunk is long enough for torch to share it among threads.
            merged.append(merge(base, tuned, chosen, chunk_elements=COUNT))
    finally:
        torch.set_num_threads(before)
    assert same_bits(*merged)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sources_of_any_dtype_merge_as_their_float32_values(dtype: torch.dtype) -> None:
    base, tuned = pool(1000, dtype)
    chosen = terms([0.7, -0.3, 1.1], [0.5, 0.0, 0.9])
    mixed = [tuned[0], tuned[1].float(), tuned[2]]
    wide = merge(base.float(), [tensor.float() for tensor in tuned], chosen)
    assert same_bits(merge(base, mixed, chosen, dtype=torch.float32), wide)
    # Accumulated in float32 and rounded once.
    assert same_bits(merge(base, mixed, chosen), wide.to(dtype))


def test_mask_changes_its_key_at_the_end_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of 2^31 elements need gigabytes; the rule is the same for short ones.
    for module in (kernels, source_tiles, tiles):
        monkeypatch.setattr(module, "BLOCK_ELEMENTS", 1000)
    base, tuned = torch.zeros(2500), [torch.ones(2500)]
    merged = merge(base, tuned, [MergeTerm(0.5, 0.5, "d")], chunk_elements=300)

    assert torch.equal(
        merged,
        torch.cat([mask_of_block(b, 0, n) for b, n in ((0, 1000), (1, 1000), (2, 500))]).float(),
    )


@pytest.mark.parametrize("drop_ratio", [0.1, 0.5, 0.9, 0.99])
def test_dare_is_unbiased_over_elements(drop_ratio: float) -> None:
    count = 2**18
    base, tuned = torch.zeros(count), [torch.ones(count)]
    merged = merge(base, tuned, [MergeTerm(1.0, drop_ratio, "e")])
    error = math.sqrt(drop_ratio / (1 - drop_ratio) / count)
    assert abs(merged.double().mean().item() - 1.0) < 4 * error


def test_dare_is_unbiased_over_seeds() -> None:
    base, tuned = pool(64, num_tuned=1)
    chosen = [MergeTerm(0.8, 0.7, "d")]
    draws = torch.stack([merge(base, tuned, chosen, mask_seed=seed) for seed in range(2000)])
    delta = (tuned[0] - base).double()
    error = 0.8 * delta.abs() * math.sqrt(0.7 / 0.3 / 2000)
    # The largest of 64 errors: below 4.5 standard errors but once in some thousands of keys.
    assert ((draws.double().mean(dim=0) - (base + 0.8 * delta)).abs() < 4.5 * error + 1e-7).all()


def test_dropped_nan_and_infinity_do_not_spread() -> None:
    base, tuned = pool(1000, num_tuned=1)
    chosen = [MergeTerm(0.5, 0.6, "d")]
    kept = mask_of(chosen[0], 1000)
    clean = merge(base, tuned, chosen)
    for value in (NAN, INF, -INF):
        poisoned = torch.where(kept, tuned[0], value)
        assert same_bits(merge(base, [poisoned], chosen), clean)


def test_checkpoint_of_weight_zero_is_not_read() -> None:
    base, tuned = pool(1000)
    poisoned = torch.full_like(base, NAN)
    chosen = terms([0.5, 0.0, 0.2], [0.3, 0.3, 0.3])
    expected = merge(base, tuned, chosen)
    assert same_bits(merge(base, [tuned[0], poisoned, tuned[2]], chosen), expected)
    assert same_bits(merge(base, [tuned[0], None, tuned[2]], chosen), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_zero_give_the_base_bit_for_bit(dtype: torch.dtype) -> None:
    base = torch.tensor([0.0, -0.0, NAN, INF, -INF, 1e-40, 1.5, -2.25]).to(dtype)
    tuned = [torch.full_like(base, NAN), torch.ones_like(base)]
    merged = merge(base, tuned, terms([0.0, -0.0], [0.5, 0.0]))
    assert torch.equal(merged.view(torch.uint8), base.view(torch.uint8))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weight_one_gives_the_checkpoint_within_the_rounding_bound(dtype: torch.dtype) -> None:
    base, tuned = pool(COUNT, dtype)
    merged = merge(base, tuned, terms([0.0, 1.0, 0.0])).double()
    goal = tuned[1].double()
    magnitude = torch.maximum(base.double().abs(), goal.abs())
    one_rounding = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps / 2
    assert ((merged - goal).abs() <= 2.0**-23 * magnitude + one_rounding * goal.abs()).all()


def test_linear_of_one_checkpoint_is_that_checkpoint() -> None:
    _, tuned = pool(1000, torch.bfloat16)
    merged = merge(None, tuned, terms([0.0, 1.0, 0.0]), method="linear")
    assert same_bits(merged, tuned[1])


def test_merge_leaves_its_sources_alone() -> None:
    base, tuned = pool(1000)
    before = [bits(tensor).clone() for tensor in (base, *tuned)]
    merge(base, tuned, terms([0.7, -0.3, 1.1], [0.5, 0.0, 0.9]))
    assert all(map(torch.equal, before, map(bits, (base, *tuned))))


def test_merge_of_an_empty_tensor_writes_nothing() -> None:
    empty = torch.empty(0)
    assert merge(empty, [empty], [MergeTerm(1.0, 0.5, "d")]).numel() == 0


@pytest.mark.parametrize("drop_ratio", [1.0, -0.1, NAN])
def test_term_refuses_drop_ratios_outside_the_range(drop_ratio: float) -> None:
    with pytest.raises(ValueError, match=r"drop_ratio must be in \[0, 1\)"):
        MergeTerm(1.0, drop_ratio, "d")


@pytest.mark.parametrize("weight", [NAN, INF, 1e39])
def test_term_refuses_scales_that_float32_cannot_hold(weight: float) -> None:
    with pytest.raises(ValueError, match="must be finite in float32"):
        MergeTerm(weight, 0.0, "d")


def test_drop_ratio_within_the_last_step_of_one_drops_everything() -> None:
    base, tuned = pool(100, num_tuned=1)
    assert same_bits(merge(base, tuned, [MergeTerm(1.0, 1 - 2.0**-40, "d")]), base)


def test_merge_refuses_operands_that_do_not_fit() -> None:
    base, tuned = pool(10, num_tuned=1)
    one = terms([1.0])
    dare, out = plan(one), torch.empty(10)
    with pytest.raises(ValueError, match="needs a base"):
        merge_flat(dare, out, None, tuned)
    with pytest.raises(ValueError, match="drop ratios must be 0"):
        plan(terms([1.0], [0.5]), "task_arithmetic")
    with pytest.raises(ValueError, match="merges 2 checkpoints, got 1"):
        plan(one, "slerp")
    with pytest.raises(ValueError, match="at least one term"):
        plan([])
    with pytest.raises(ValueError, match=r"tuned\[0\] must have shape \(10,\)"):
        merge_flat(dare, out, base, [torch.empty(11)])
    with pytest.raises(ValueError, match=r"base must be float32, bfloat16 or float16"):
        merge_flat(dare, out, torch.zeros(10, dtype=torch.int32), tuned)
    with pytest.raises(ValueError, match=r"tuned\[0\] is missing"):
        merge_flat(dare, out, base, [None])
    with pytest.raises(ValueError, match="one term per checkpoint"):
        merge_flat(plan(terms([1.0, 1.0])), out, base, tuned)


def test_unknown_method_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="`average` is no merge method; there are dare_linear"):
        get_method("average")


@from_inductor
@pytest.mark.parametrize("backend", ["eager", pytest.param("compiled", marks=pytest.mark.slow)])
def test_windows_beyond_the_first_block_use_its_keys(backend: str) -> None:
    # The part of a tensor of 2^32 elements that crosses 2^31, without the rest of it.
    count, start = 40_000, BLOCK_ELEMENTS - 30_000
    base, tuned = pool(count, num_tuned=1)
    tensor_plan = plan([MergeTerm(0.5, 0.5, "d")])
    facts = TensorFacts(scales=(1.0,))
    out = torch.full_like(base, torch.nan)
    merge_window(tensor_plan, facts, out, base, tuned, window=Window(start), backend=backend)
    kept = torch.cat([mask_of_block(0, start, 30_000), mask_of_block(1, 0, 10_000)])
    expected = torch.where(kept, base + (tuned[0] - base), base)
    assert torch.equal(out, expected)


@from_inductor
@pytest.mark.campaign
def test_tensor_of_more_than_two_to_the_31_elements_merges() -> None:
    count = BLOCK_ELEMENTS + 5000
    base = torch.zeros(count, dtype=torch.bfloat16)
    tuned = torch.ones(count, dtype=torch.bfloat16)
    out = torch.empty_like(base)
    merge_flat(plan([MergeTerm(0.5, 0.5, "d")]), out, base, [tuned], backend="compiled")
    for block, first in ((0, 0), (0, BLOCK_ELEMENTS - 5000), (1, 0)):
        part = out[block * BLOCK_ELEMENTS + first :][:5000]
        assert torch.equal(part, mask_of_block(block, first, 5000).to(torch.bfloat16))


def mask_of_block(block: int, first: int, count: int) -> torch.Tensor:
    """What checkpoint `d` keeps at a drop ratio of one half, from an index inside a block."""
    key = tensor_key(0, "layer.weight", block)
    counters = torch.arange(first, first + count, dtype=torch.int64).to(torch.int32)
    words = mix(weyl(counters, key.offset), torch.tensor(key.word, dtype=torch.int32))
    return words * checkpoint_factor(0, "d", "layer.weight", block) >= signed_threshold(0.5)


def test_compiled_merge_of_a_long_tensor_is_shared_by_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both_merge = threading.Barrier(2)

    def wait_for_the_other(*operands: Any) -> Callable[[], None]:
        def step() -> None:
            both_merge.wait(timeout=30)
            merge_chunk(*operands)

        return step

    monkeypatch.setattr(kernels, "_LONG", 2**12)
    monkeypatch.setattr(kernels, "fuse", wait_for_the_other)
    base, tuned = pool(4 * COMPILED_WIDTH, num_tuned=2)
    chosen = terms([0.5, 0.25], [0.5, 0.0])
    eager = merge(base, tuned, chosen)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert same_bits(merge(base, tuned, chosen, backend="compiled"), eager)
    finally:
        torch.set_num_threads(before)
