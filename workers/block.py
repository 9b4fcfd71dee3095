"""Parts of a tensor: what one rank holds of it, and the pieces that a merge goes through.

A :class:`Block` says where a part is in the whole tensor, so that it can be read from the
memory-mapped sources without reading the rest, and gets the bits of the whole merge.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workers.tiles import Window


@dataclass(frozen=True, slots=True)
class Block:
    """``rows`` runs of ``width`` consecutive elements of a flat tensor, ``stride`` apart.

    ``start`` is the index of the first element. One run is the common case: consecutive rows of a
    matrix, or all of it.
    """

    start: int
    width: int
    rows: int = 1
    stride: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return self.rows * self.width

    @property
    def end(self) -> int:
        """One more than the index of the last element."""
        return self.start + (self.rows - 1) * self.stride + self.width if self.numel else self.start

    @property
    def window(self) -> Window:
        """The same place, as the kernels take it."""
        return Window(self.start, self.stride)

    def of(self, flat: Tensor) -> Tensor:
        """Return the view of a whole tensor, ``(n,)``: ``(width,)``, or ``(rows, width)``."""
        if self.rows == 1:
            return flat[self.start : self.start + self.width]
        shape, strides = (self.rows, self.width), (self.stride, 1)
        return flat.as_strided(shape, strides, flat.storage_offset() + self.start)

    def shape_like(self, flat: Tensor) -> Tensor:
        """View ``(rows * width,)`` elements of a result as :meth:`of` views a source."""
        return flat if self.rows == 1 else flat.view(self.rows, self.width)

    def pieces(self, limit: int, *, multiple_of: int = 1) -> Iterator[tuple[int, "Block"]]:
        """Cut into blocks of at most ``limit`` elements; yields (index inside this block, block).

        An empty block is one empty piece.

        Args:
            limit: At least 1.
            multiple_of: Where it fits the limit, runs are cut at multiples of this many elements.
        """
        if self.numel == 0:
            yield 0, Block(self.start, 0)
        elif self.rows > 1 and self.width <= limit:
            step = limit // self.width
            for row in range(0, self.rows, step):
                count = min(step, self.rows - row)
                start = self.start + row * self.stride
                yield row * self.width, Block(start, self.width, count, self.stride)
        else:
            step = max(limit // multiple_of * multiple_of, 0) or limit
            for row in range(self.rows):
                for begin in range(0, self.width, step):
                    start = self.start + row * self.stride + begin
                    yield row * self.width + begin, Block(start, min(step, self.width - begin))


def whole(numel: int) -> Block:
    """Return the block that is all of a tensor."""
    return Block(0, numel)


def shard_block(shape: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> Block | None:
    """Say where a rectangular part of a tensor is in its flat form.

    Args:
        shape: Of the whole tensor.
        offsets: Index of the part's first element along every axis.
        sizes: Of the part along every axis.

    Returns:
        The block, or None where the part is not runs at equal distances: it is cut along more
        than two axes, or along two of which none is the first.
    """
    cut = [axis for axis, size in enumerate(sizes) if size != shape[axis]]
    if math.prod(sizes) == 0:
        return Block(0, 0)
    if not cut:
        return whole(math.prod(shape))
    last = cut[-1]
    inner = math.prod(shape[last + 1 :])
    stride, width = shape[last] * inner, sizes[last] * inner
    if last == 0:
        return Block(offsets[0] * inner, width)
    if any(axis not in (0, last) for axis in cut):
        return None
    between = math.prod(shape[1:last])
    start = offsets[0] * between * stride + offsets[last] * inner
    return Block(start, width, sizes[0] * between, stride)


@dataclass(frozen=True, slots=True)
class LocalPart:
    """What this process holds of a live tensor: its memory, and where that is in the whole.

    ``block`` is None where the part cannot be written (see :func:`shard_block`).
    """

    tensor: Tensor
    block: Block | None


def local_part(target: Tensor) -> LocalPart:
    """Find this rank's part of a live tensor: all of it, or the local shard of a DTensor."""
    if not is_distributed(target):
        return LocalPart(target, whole(target.numel()))
    from torch.distributed.tensor import DTensor, Partial

    assert isinstance(target, DTensor)  # noqa: S101 - tells the type checker
    local = target.to_local()
    if any(isinstance(placement, Partial) for placement in target.placements):
        return LocalPart(local, None)
    chunk = target.__create_chunk_list__()[0]
    return LocalPart(local, shard_block(tuple(target.shape), chunk.offsets, chunk.sizes))


def full_tensor(target: Tensor) -> Tensor:
    """Return a live tensor whole; of a DTensor it is gathered, so all ranks must call this."""
    if not is_distributed(target):
        return target
    from torch.distributed.tensor import DTensor

    assert isinstance(target, DTensor)  # noqa: S101 - tells the type checker
    return target.full_tensor()


def is_distributed(target: Tensor) -> bool:
    """Say whether a tensor is a DTensor, without importing them where there are none."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(target, DTensor)
