"""What is dropped from the task vectors of one chunk: by hash, by magnitude, or by both.

Each class holds small tensors on the chunk's device and is traced into the compiled pass. Whatever
is decided about an element depends on its index in the whole tensor, never on the chunk. A chunk
is ``(r, w)``: the element in row i and column j has the index rows[i] + lanes[j]. Rows and lanes
are given, since counting inside the pass costs more than the hash.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from workers.mask import mix


class Indices(NamedTuple):
    """Where the elements of a chunk are in their block.

    Attributes:
        rows: ``(r,)`` int32, indices inside the block of the rows' first elements.
        lanes: ``(w,)`` int32, columns.
    """

    rows: Tensor
    lanes: Tensor

    def words(self) -> Tensor:
        """Return the indices of the elements, ``(r, w)`` int32."""
        return self.rows[:, None] + self.lanes


class Hashed(NamedTuple):
    """What the hashes of a chunk's elements are made of.

    Attributes:
        rows: ``(r,)`` int32, ``workers.mask.weyl`` of the rows' indices, with the key's offset.
        lanes: ``(w,)`` int32, ``workers.mask.weyl`` of the columns, without it.
        word: () int32, of the tensor's key.
        factors: ``(c,)`` int32, one per checkpoint.
    """

    rows: Tensor
    lanes: Tensor
    word: Tensor
    factors: Tensor

    def words(self) -> Tensor:
        """Return what all checkpoints share, ``(r, w)`` int32."""
        return mix(self.rows[:, None] + self.lanes, self.word)


class RandomDrops(NamedTuple):
    """Drops by hash alone: DARE. Rescaling is part of the scales.

    Attributes:
        position: Of the elements.
        thresholds: ``(c,)`` int32, ``workers.mask.signed_threshold`` of the drop ratios; that of 0
            keeps everything.
    """

    position: Hashed
    thresholds: Tensor

    def apply(self, index: int, delta: Tensor, words: Tensor) -> Tensor:
        """Return the task vector with 0 where dropped; ``words`` are those of the position."""
        # Processors compare by "less"; its opposite takes two instructions more.
        dropped = words * self.position.factors[index] < self.thresholds[index]
        # where(), not multiplication: 0 * inf is NaN.
        return torch.where(dropped, 0.0, delta)


class TrimDrops(NamedTuple):
    """Drops the smallest magnitudes: TIES. Of equal ones, the first are kept.

    Attributes:
        position: Of the elements.
        thresholds: ``(c,)`` float32, the smallest magnitude that is kept; -1 keeps all.
        last_ties: ``(c,)`` int32, index of the last element kept of that very magnitude.
    """

    position: Indices
    thresholds: Tensor
    last_ties: Tensor

    def apply(self, index: int, delta: Tensor, words: Tensor) -> Tensor:
        """Return the task vector with 0 where dropped; NaN is no small magnitude and stays."""
        magnitude, threshold = delta.abs(), self.thresholds[index]
        is_late = words > self.last_ties[index]
        dropped = (magnitude < threshold) | ((magnitude == threshold) & is_late)
        return torch.where(dropped, 0.0, delta)


class RankedDrops(NamedTuple):
    """Drops by hash, with a probability of each element's own, and rescales: DELLA.

    Attributes:
        position: Of the elements.
        ratios: c tensors ``(r, w)`` float32, drop probabilities in [0, 1).
    """

    position: Hashed
    ratios: Sequence[Tensor]

    def apply(self, index: int, delta: Tensor, words: Tensor) -> Tensor:
        """Return the task vector, 0 where dropped, divided by 1 - p where kept."""
        ratio = self.ratios[index]
        # 24 bits are what a float32 in [0, 1) holds exactly.
        uniform = ((words * self.position.factors[index] >> 8) + 2**23).float() * 2.0**-24
        return torch.where(uniform >= ratio, delta / (1.0 - ratio), 0.0)


Drops = RandomDrops | TrimDrops | RankedDrops
