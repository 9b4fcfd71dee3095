"""Cutting parts of tensors into the chunks that are merged at once: tiles ``(rows, width)``."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from workers.mask import BLOCK_ELEMENTS


@dataclass(frozen=True, slots=True)
class Window:
    """A part of a tensor: ``(n,)`` consecutive elements, or ``(r, w)`` columns of some rows.

    ``start`` is the index of the first element in the whole tensor, ``stride`` the whole
    tensor's row length (of no meaning for consecutive elements).
    """

    start: int = 0
    stride: int = 0


WHOLE = Window()


@dataclass(frozen=True, slots=True)
class Tile:
    """A chunk ``(rows, width)`` of a part of a tensor.

    ``start`` is the index of its first element in the whole tensor, ``stride`` the distance of
    its rows there; ``row`` and ``column`` say where it begins in the part, whose elements lie
    ``width`` to a row if the part is flat.
    """

    row: int
    column: int
    rows: int
    width: int
    start: int
    stride: int

    def of(self, part: Tensor) -> Tensor:
        """Cut the tile out of a part, as a view."""
        if part.dim() == 1:
            return part[self.column : self.column + self.rows * self.width].view(-1, self.width)
        return part[self.row : self.row + self.rows, self.column : self.column + self.width]


def cut_tiles(
    shape: Sequence[int], window: Window, limit: int, *, flat_width: int | None = None
) -> Iterator[Tile]:
    """Cut a part into tiles; none spans two blocks of the mask.

    Args:
        shape: Of the part, ``(n,)`` or ``(r, w)``.
        window: Where the part is in the whole tensor.
        limit: Elements of a tile at most; for tiles of several rows, at least one row.
        flat_width: Elements per row of the tiles of a flat part, whose rest is a tile of its own;
            None makes rows of any length.
    """
    if len(shape) == 2:
        rows, width = shape
        yield from _rectangles(rows, width, window.start, window.stride, limit)
        return
    count, whole = shape[0], 0
    if flat_width is not None:
        rows, rest = divmod(count, flat_width)
        whole = count - rest
        for tile in _rectangles(rows, flat_width, window.start, flat_width, limit):
            # Flat: where the tile begins is a number of elements.
            yield replace(tile, row=0, column=tile.row * flat_width + tile.column)
    for tile in _rectangles(1, count - whole, window.start + whole, 0, limit):
        yield replace(tile, column=whole + tile.column)


def _rectangles(rows: int, width: int, start: int, stride: int, limit: int) -> Iterator[Tile]:
    row = 0
    while row < rows and width:
        first = start + row * stride
        room = BLOCK_ELEMENTS - first % BLOCK_ELEMENTS
        fitting = (room - width) // max(stride, 1) + 1 if room >= width else 0
        if count := min(rows - row, limit // width, fitting):
            yield Tile(row, 0, count, width, first, stride)
            row += count
            continue
        begin = 0
        while begin < width:
            room = BLOCK_ELEMENTS - (first + begin) % BLOCK_ELEMENTS
            length = min(limit, width - begin, room)
            yield Tile(row, begin, 1, length, first + begin, stride)
            begin += length
        row += 1
