"""Thresholds, ranks and inner products of whole tensors."""

import math

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.workers.merge_cases import pool
from workers import statistics
from workers.statistics import (
    KEEP_ALL,
    KEEP_NONE,
    StatisticsCache,
    Trim,
    find_trim,
    gram_matrix,
    magnitude_histogram,
    num_kept,
    ranked_drop_ratios,
)


def kept_by(trim: Trim, delta: Tensor) -> Tensor:
    """Which elements a threshold keeps, in the words of its definition."""
    magnitude, index = delta.abs(), torch.arange(delta.numel())
    threshold = torch.tensor(trim.threshold, dtype=torch.float32)
    return (magnitude > threshold) | ((magnitude == threshold) & (index <= trim.last_tie))


def kept_by_sorting(delta: Tensor, kept: int) -> Tensor:
    """The reference: a stable sort by magnitude keeps the first of equal ones."""
    chosen = delta.abs().sort(descending=True, stable=True).indices[:kept]
    return torch.zeros(delta.numel(), dtype=torch.bool).scatter(0, chosen, value=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("drop_ratio", [0.01, 0.5, 0.8, 0.999])
def test_trim_keeps_what_a_stable_sort_keeps(dtype: torch.dtype, drop_ratio: float) -> None:
    # Half-precision deltas are often equal, so the order of the indices decides.
    base, (tuned,) = pool(50_000, dtype, num_tuned=1)
    delta = tuned.float() - base.float()
    kept = num_kept(drop_ratio, delta.numel())
    trim = find_trim(base, tuned, kept, magnitude_histogram(base, tuned))
    assert torch.equal(kept_by(trim, delta), kept_by_sorting(delta, kept))


def test_trim_of_equal_magnitudes_keeps_the_first_across_chunks() -> None:
    count = 2**19
    base = torch.zeros(count)
    tuned = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    trim = find_trim(base, tuned, count // 2 + 3, magnitude_histogram(base, tuned))
    assert trim == Trim(1.0, count // 2 + 2)


class LargestTensor(TorchDispatchMode):
    """Notes the most elements that an operation inside gave."""

    numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numel = max(self.numel, result.numel())
        return result


def test_trim_holds_no_more_for_a_task_vector_of_one_magnitude() -> None:
    # All elements are in one bin of the histogram, which is where the threshold is.
    count = 2**21
    base, tuned = torch.zeros(count), torch.full((count,), 0.001)
    histogram = magnitude_histogram(base, tuned)
    with LargestTensor() as largest:
        trim = find_trim(base, tuned, count // 2, histogram)
    assert trim == Trim(float(torch.tensor(0.001)), count // 2 - 1)
    assert largest.numel <= 2**19


def test_trim_at_the_ends_keeps_all_or_nothing() -> None:
    base, (tuned,) = pool(100, num_tuned=1)
    histogram = magnitude_histogram(base, tuned)
    assert find_trim(base, tuned, 100, histogram) == KEEP_ALL
    assert find_trim(base, tuned, 0, histogram) == KEEP_NONE
    assert histogram.sum() == 100


def test_trim_ranks_infinity_and_nan_as_the_largest() -> None:
    base = torch.zeros(6)
    tuned = torch.tensor([1.0, torch.nan, 3.0, torch.inf, -2.0, -0.0])
    histogram = magnitude_histogram(base, tuned)
    assert find_trim(base, tuned, 3, histogram) == Trim(3.0, 2)
    assert find_trim(base, tuned, 5, histogram) == Trim(1.0, 0)


def test_number_kept_is_rounded_down_but_not_by_the_rounding_of_the_ratio() -> None:
    assert num_kept(0.5, 5) == 2
    # 1 - 0.9 is a little less than 0.1.
    assert num_kept(0.9, 1000) == 100
    assert num_kept(0.0, 7) == 7


def test_ranked_ratios_fall_with_the_magnitude_and_keep_their_mean() -> None:
    rows, length, drop_ratio, epsilon = 5, 64, 0.6, 0.3
    base, (tuned,) = pool(rows * length, num_tuned=1)
    ratios = ranked_drop_ratios(base, tuned, length, drop_ratio, epsilon).view(rows, length)
    order = (tuned - base).abs().view(rows, length).sort(dim=1, descending=True).indices
    ranked = ratios.gather(1, order)
    assert (ranked.diff(dim=1) > 0).all()
    assert torch.allclose(ratios.mean(dim=1), torch.full((rows,), drop_ratio), atol=1e-6)
    assert torch.allclose(ranked[:, 0], torch.tensor(drop_ratio - epsilon / 2), atol=1e-6)
    assert torch.allclose(ranked[:, -1], torch.tensor(drop_ratio + epsilon / 2), atol=1e-6)


@pytest.mark.parametrize("drop_ratio", [0.05, 0.97])
def test_ranked_ratios_stay_probabilities_when_the_interval_does_not_fit(
    drop_ratio: float,
) -> None:
    base, (tuned,) = pool(1000, num_tuned=1)
    ratios = ranked_drop_ratios(base, tuned, 1000, drop_ratio, 0.5)
    assert ratios.min() >= 0
    assert ratios.max() < 1
    assert abs(ratios.double().mean().item() - drop_ratio) < 1e-6


def test_ranked_ratios_of_rows_of_one_element_are_the_drop_ratio() -> None:
    base, (tuned,) = pool(4, num_tuned=1)
    ratios = ranked_drop_ratios(base, tuned, 1, 0.5, 0.2)
    assert ratios.tolist() == [0.5] * 4


def test_gram_matrix_is_that_of_exact_sums() -> None:
    tensors = [torch.randn(70_001, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    gram = gram_matrix(tensors)
    for row in range(2):
        for column in range(2):
            products = tensors[row].double() * tensors[column].double()
            exact = math.fsum(products.tolist())
            assert gram[row][column] == pytest.approx(exact, rel=1e-13, abs=1e-11)


def test_gram_matrix_has_the_same_bits_with_any_number_of_threads() -> None:
    tensors = [torch.randn(200_000, generator=torch.Generator().manual_seed(s)) for s in (0, 1)]
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(gram_matrix(tensors))
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_gram_matrix_of_infinities_is_nan_and_no_error() -> None:
    tensor = torch.zeros(100_000)
    tensor[0], tensor[-1] = torch.inf, -torch.inf
    assert math.isnan(gram_matrix([tensor, torch.ones(100_000)])[0][1])


def test_cache_looks_at_the_tensors_again_only_for_other_drop_ratios() -> None:
    base, (tuned,) = pool(1000, num_tuned=1)
    cache = StatisticsCache()
    first = cache.trim("t", ("base", "a"), base, tuned, 0.5)
    # Other contents under the same digests: only what is not known is computed from them.
    assert cache.trim("t", ("base", "a"), base, base, 0.5) == first
    fresh = StatisticsCache().trim("t", ("base", "a"), base, tuned, 0.9)
    assert cache.trim("t", ("base", "a"), base, tuned, 0.9) == fresh != first
    assert cache.trim("other", ("base", "a"), base, base, 0.5) != first
    assert cache.trim("t", ("base", "b"), base, base, 0.5) != first


def test_cache_keeps_as_many_histograms_as_it_may(monkeypatch) -> None:
    base, (tuned,) = pool(1000, num_tuned=1)
    looks: list[int] = []
    look = statistics.magnitude_histogram
    monkeypatch.setattr(
        statistics, "magnitude_histogram", lambda *both: looks.append(1) or look(*both)
    )
    for capacity, expected in ((None, 3), (3, 3), (2, 6)):
        cache = StatisticsCache(capacity)
        looks.clear()
        for drop_ratio in (0.5, 0.9):
            for name in ("a", "b", "c"):
                cache.trim(name, ("base", "tuned"), base, tuned, drop_ratio)
        assert len(looks) == expected


def test_cache_forgets_the_thresholds_that_were_used_least_recently() -> None:
    from workers.statistics import _Recent

    recent: _Recent[str, int] = _Recent(2)
    recent.put("a", 1)
    recent.put("b", 2)
    assert recent.get("a") == 1
    recent.put("c", 3)
    assert (recent.get("a"), recent.get("b"), recent.get("c")) == (1, None, 3)
