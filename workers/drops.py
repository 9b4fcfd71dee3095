"""What is dropped from the task vectors of one chunk: by hash, by magnitude, or by both.

Each class holds small tensors on the chunk's device and is traced into the compiled pass. Whatever
is decided about an element depends on its index in the whole tensor, never on the chunk.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.mask import hash_counters, keeps

# Clears the sign bit; the rest of a float32's bits are ordered like its magnitude, NaN last.
_MAGNITUDE_BITS = 0x7FFF_FFFF


class Span(NamedTuple):
    """Where the elements of a chunk are in their whole tensor.

    A chunk is ``(n,)``, consecutive elements from ``start``, or ``(r, w)``, the columns of r rows:
    the element in row i and column j has index start + i * stride + j. Indices count inside a block
    of 2^31 elements (``workers.mask.BLOCK_ELEMENTS``).

    Attributes:
        start: () int32.
        stride: () int32; not used for ``(n,)``.
    """

    start: Tensor
    stride: Tensor

    def counters(self, shape: Sequence[int]) -> Tensor:
        """Return the index of every element, int32, of the chunk's shape."""
        device = self.start.device
        columns = torch.arange(shape[-1], dtype=torch.int32, device=device) + self.start
        if len(shape) == 1:
            return columns
        rows = torch.arange(shape[0], dtype=torch.int32, device=device) * self.stride
        return rows[:, None] + columns


class RandomDrops(NamedTuple):
    """Drops by hash alone: DARE. Rescaling is part of the scales.

    Attributes:
        span: Where the chunk is.
        keys: ``(c, 4)`` int32, rows of :func:`workers.mask.key_row`.
        applies: c flags; where false everything is kept and the row is not read.
    """

    span: Span
    keys: Tensor
    applies: tuple[bool, ...]

    def apply(self, index: int, delta: Tensor) -> Tensor:
        """Return the task vector with 0 where dropped."""
        if not self.applies[index]:
            return delta
        kept = keeps(self.span.counters(delta.shape), self.keys[index])
        # where(), not multiplication: 0 * inf is NaN.
        return torch.where(kept, delta, 0.0)


class TrimDrops(NamedTuple):
    """Drops the smallest magnitudes: TIES. Of equal ones, the first are kept.

    Attributes:
        span: Where the chunk is.
        thresholds: ``(c,)`` int32, bits of the smallest kept magnitude as float32; -1 keeps all.
        last_ties: ``(c,)`` int32, index of the last element kept of that very magnitude.
        applies: c flags.
    """

    span: Span
    thresholds: Tensor
    last_ties: Tensor
    applies: tuple[bool, ...]

    def apply(self, index: int, delta: Tensor) -> Tensor:
        """Return the task vector with 0 where dropped."""
        if not self.applies[index]:
            return delta
        magnitude, threshold = magnitude_bits(delta), self.thresholds[index]
        is_early = self.span.counters(delta.shape) <= self.last_ties[index]
        kept = (magnitude > threshold) | ((magnitude == threshold) & is_early)
        return torch.where(kept, delta, 0.0)


class RankedDrops(NamedTuple):
    """Drops by hash, with a probability of each element's own, and rescales: DELLA.

    Attributes:
        span: Where the chunk is.
        keys: ``(c, 4)`` int32, as in :class:`RandomDrops`; the last column is not used.
        ratios: c tensors of the chunk's shape, float32, drop probabilities in [0, 1).
        applies: c flags.
    """

    span: Span
    keys: Tensor
    ratios: Sequence[Tensor]
    applies: tuple[bool, ...]

    def apply(self, index: int, delta: Tensor) -> Tensor:
        """Return the task vector, 0 where dropped, divided by 1 - p where kept."""
        if not self.applies[index]:
            return delta
        ratio = self.ratios[index]
        word = hash_counters(self.span.counters(delta.shape), self.keys[index])
        # 24 bits are what a float32 in [0, 1) holds exactly.
        uniform = ((word >> 8) & 0xFF_FFFF).float() * 2.0**-24
        return torch.where(uniform >= ratio, delta / (1.0 - ratio), 0.0)


Drops = RandomDrops | TrimDrops | RankedDrops


def magnitude_bits(delta: Tensor) -> Tensor:
    """Return integers, int32, in the order of the magnitudes of float32 numbers; NaN is last."""
    return delta.view(torch.int32) & _MAGNITUDE_BITS
