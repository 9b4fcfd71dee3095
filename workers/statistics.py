"""Facts about a tensor that do not depend on weights: what trimming, ranking and slerp need.

They read whole tensors, so they are kept between candidates: histograms of magnitudes for any
drop ratio, thresholds per drop ratio, inner products per pair. None depends on chunks, threads or
devices: magnitudes are compared as integers, ties go by index, sums have a fixed order.
"""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

import torch
from torch import Tensor

# A bin of the histogram is 1/16 of a doubling: the bin that a threshold is in holds a few percent
# of the elements, and only those are looked at again.
_BIN_SHIFT = 19
_NUM_BINS = 2**31 >> _BIN_SHIFT
_CHUNK = 2**18
# Clears the sign bit; the rest of a float32's bits are ordered like its magnitude, NaN last.
_MAGNITUDE_BITS = 0x7FFF_FFFF
# Sums are made of halves of blocks of this many elements, the same on every device.
_SUM_BLOCK = 2**15


@dataclass(frozen=True, slots=True)
class Trim:
    """Which elements are kept when the smallest magnitudes are dropped.

    Kept are magnitudes above ``threshold``, a float32, and those equal to it up to index
    ``last_tie``.
    """

    threshold: float
    last_tie: int


KEEP_ALL = Trim(-1.0, -1)
KEEP_NONE = Trim(math.inf, -1)


def num_kept(drop_ratio: float, count: int) -> int:
    """Return how many of ``count`` elements are kept: (1 - p) * count, rounded down.

    A product that is a whole number but for the rounding of p is that number.
    """
    return min(count, math.floor((1.0 - drop_ratio) * count + 1e-6))


def magnitude_histogram(base: Tensor, tuned: Tensor) -> Tensor:
    """Count the magnitudes of a task vector in bins of 1/16 of a doubling.

    Args:
        base: ``(n,)``, any floating dtype.
        tuned: ``(n,)``, same device.

    Returns:
        ``(4096,)`` int64 on the CPU.
    """
    counts = torch.zeros(_NUM_BINS, dtype=torch.int64, device=base.device)
    for _, bits in _magnitudes(base, tuned):
        counts += torch.bincount(bits >> _BIN_SHIFT, minlength=_NUM_BINS)
    return counts.cpu()


def find_trim(base: Tensor, tuned: Tensor, kept: int, histogram: Tensor) -> Trim:
    """Return the threshold that keeps exactly the ``kept`` largest magnitudes of a task vector.

    Of equal magnitudes the first are kept, which TIES leaves open (arXiv:2306.01708, section 4).

    Args:
        base: ``(n,)``, any floating dtype.
        tuned: ``(n,)``, same device.
        kept: In [0, n].
        histogram: Of :func:`magnitude_histogram`.
    """
    if kept >= base.numel():
        return KEEP_ALL
    if kept <= 0:
        return KEEP_NONE
    at_least = histogram.flip(0).cumsum(0).flip(0)
    # The last bin with `kept` elements in it or above it holds the threshold.
    bin_index = int((at_least >= kept).nonzero()[-1])
    wanted = kept - int(at_least[bin_index] - histogram[bin_index])
    counts = _counts_in_bin(base, tuned, bin_index)
    at_least = counts.flip(0).cumsum(0).flip(0)
    step = int((at_least >= wanted).nonzero()[-1])
    threshold = bin_index << _BIN_SHIFT | step
    num_ties = wanted - int(at_least[step] - counts[step])
    bits = torch.tensor(threshold, dtype=torch.int32)
    return Trim(bits.view(torch.float32).item(), _index_of(base, tuned, threshold, num_ties))


def _counts_in_bin(base: Tensor, tuned: Tensor, bin_index: int) -> Tensor:
    """Count the magnitudes of one bin of the histogram, each of its 2^19 values by itself.

    4 MiB, however many of the elements are in there: all of them, where all are equal.
    """
    counts = torch.zeros(1 << _BIN_SHIFT, dtype=torch.int64, device=base.device)
    for _, bits in _magnitudes(base, tuned):
        inside = bits[(bits >> _BIN_SHIFT) == bin_index] & ((1 << _BIN_SHIFT) - 1)
        counts.scatter_add_(0, inside.long(), torch.ones_like(inside, dtype=torch.int64))
    return counts.cpu()


def _index_of(base: Tensor, tuned: Tensor, magnitude: int, number: int) -> int:
    """Return where a magnitude occurs for the ``number``-th time; that often at least it does."""
    left = number
    for begin, bits in _magnitudes(base, tuned):
        found = (bits == magnitude).nonzero().flatten()
        if len(found) >= left:
            return begin + int(found[left - 1])
        left -= len(found)
    raise AssertionError(f"{magnitude:#x} occurs {number - left} times, not {number}")


def ranked_drop_ratios(
    base: Tensor, tuned: Tensor, row_length: int, drop_ratio: float, epsilon: float
) -> Tensor:
    """Return each element's drop probability: smaller magnitudes are dropped more often.

    MAGPRUNE of DELLA (arXiv:2406.11617, section 3.1): in a row of n elements ranked by magnitude,
    r = 0 for the largest, p_r = p - epsilon/2 + epsilon * r / (n - 1). The paper divides by n,
    which leaves the mean below p; its authors' published code (declare-lab/della, ``sparsify.py``)
    divides by n - 1, and calls half the width epsilon. Of equal magnitudes the first ranks higher.

    Args:
        base: ``(n,)``, any floating dtype.
        tuned: ``(n,)``, same device.
        row_length: Elements per row; the whole tensor where it is a vector.
        drop_ratio: p, the mean of every row.
        epsilon: Width of the interval; cut at 0 and at 1, both excluded where p is inside.

    Returns:
        ``(n,)`` float32 in [0, 1), same device.
    """
    bits = _magnitude_bits(tuned.float() - base.float()).view(-1, row_length)
    order = bits.sort(dim=1, descending=True, stable=True).indices
    half_width = max(0.0, min(epsilon / 2, drop_ratio, 1.0 - 2.0**-20 - drop_ratio))
    if row_length == 1:
        half_width = 0.0
    low = torch.tensor(drop_ratio - half_width, dtype=torch.float32, device=base.device)
    step = torch.tensor(
        2 * half_width / max(row_length - 1, 1), dtype=torch.float32, device=base.device
    )
    by_rank = torch.arange(row_length, dtype=torch.float32, device=base.device) * step + low
    ratios = torch.empty_like(bits, dtype=torch.float32)
    ratios.scatter_(1, order, by_rank.clamp(0.0, 1.0 - 2.0**-20).expand_as(ratios))
    return ratios.view(-1)


def gram_matrix(tensors: Sequence[Tensor]) -> tuple[tuple[float, ...], ...]:
    """Return the inner products of tensors, ``(n,)`` each, summed in float64 in a fixed order."""
    size = len(tensors)
    sums: list[list[list[float]]] = [[[] for _ in range(size)] for _ in range(size)]
    for begin in range(0, tensors[0].numel(), _SUM_BLOCK):
        parts = [tensor[begin : begin + _SUM_BLOCK].double() for tensor in tensors]
        for row in range(size):
            for column in range(row, size):
                sums[row][column].append(_sum_of_halves(parts[row] * parts[column]))
    return tuple(
        tuple(_exact_sum(sums[min(row, column)][max(row, column)]) for column in range(size))
        for row in range(size)
    )


def _exact_sum(values: Sequence[float]) -> float:
    """Add exactly, so that there is no order either; NaN where a value is not finite."""
    return math.fsum(values) if all(map(math.isfinite, values)) else math.nan


def _sum_of_halves(values: Tensor) -> float:
    """Add the second half to the first until one is left: element-wise, so equal on all devices."""
    while (count := values.numel()) > 1:
        half = count // 2
        paired = values[:half] + values[half : 2 * half]
        values = torch.cat([paired, values[2 * half :]]) if count % 2 else paired
    return float(values.sum())


def _magnitude_bits(delta: Tensor) -> Tensor:
    """Return integers, int32, in the order of the magnitudes of float32 numbers; NaN is last."""
    return delta.view(torch.int32) & _MAGNITUDE_BITS


def _magnitudes(base: Tensor, tuned: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield (index of the first, magnitude bits) of consecutive chunks."""
    for begin in range(0, base.numel(), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        yield begin, _magnitude_bits(tuned[part].float() - base[part].float())


Key = TypeVar("Key")
Value = TypeVar("Value")


class _Recent(Generic[Key, Value]):
    """The entries of a mapping that were used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: dict[Key, Value] = {}
        self._lock = Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if (value := self._entries.pop(key, None)) is not None:
                self._entries[key] = value
            return value

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._entries[key] = value
            if len(self._entries) > self._capacity:
                del self._entries[next(iter(self._entries))]


class StatisticsCache:
    """What was found out about the tensors of a pool, by the digests of the checkpoints.

    Histograms take 32 KiB per tensor and checkpoint. Thresholds are kept for the drop ratios used
    last; another one costs two more looks at the tensors, not a sort.

    Args:
        num_histograms: How many are kept, those that were used last; None keeps all.
    """

    def __init__(self, num_histograms: int | None = None) -> None:
        self._histograms: _Recent[tuple[str, ...], Tensor] = _Recent(num_histograms or sys.maxsize)
        self._trims: _Recent[tuple[str, str, str, int], Trim] = _Recent(2**17)
        self._grams: dict[tuple[str, ...], tuple[tuple[float, ...], ...]] = {}

    def trim(
        self, name: str, digests: tuple[str, str], base: Tensor, tuned: Tensor, drop_ratio: float
    ) -> Trim:
        """Return the threshold of one task vector; ``digests`` are those of base and tuned."""
        kept = num_kept(drop_ratio, base.numel())
        key = (name, *digests, kept)
        if (known := self._trims.get(key)) is None:
            histogram = self._histograms.get((name, *digests))
            if histogram is None:
                histogram = magnitude_histogram(base, tuned)
                self._histograms.put((name, *digests), histogram)
            known = find_trim(base, tuned, kept, histogram)
            self._trims.put(key, known)
        return known

    def gram(
        self, name: str, digests: Sequence[str], tensors: Sequence[Tensor]
    ) -> tuple[tuple[float, ...], ...]:
        """Return the inner products of one tensor between checkpoints."""
        key = (name, *digests)
        if key not in self._grams:
            self._grams[key] = gram_matrix(tensors)
        return self._grams[key]
