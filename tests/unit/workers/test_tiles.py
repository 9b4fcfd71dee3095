"""Cutting parts of tensors into tiles."""

import pytest
import torch

from workers import tiles
from workers.tiles import Window, cut_tiles

BLOCK = 100


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 2^31 elements need gigabytes; the rule is the same for short ones."""
    monkeypatch.setattr(tiles, "BLOCK_ELEMENTS", BLOCK)


@pytest.mark.parametrize("limit", [1, 7, 60, 1000])
@pytest.mark.parametrize("flat_width", [None, 8])
@pytest.mark.parametrize("start", [0, 30, 100, 195])
def test_tiles_of_a_flat_part_are_its_elements_in_order(limit, flat_width, start) -> None:
    part = torch.arange(start, start + 203)
    seen = []
    for tile in cut_tiles(part.shape, Window(start), limit, flat_width=flat_width):
        cut = tile.of(part)
        assert cut.shape == (tile.rows, tile.width)
        assert cut.numel() <= limit
        rows = tile.start + torch.arange(tile.rows)[:, None] * tile.stride
        assert torch.equal(cut, rows + torch.arange(tile.width))
        assert tile.start // BLOCK == int(cut.max()) // BLOCK
        seen += cut.flatten().tolist()
    assert seen == part.tolist()


@pytest.mark.parametrize("limit", [3, 20, 1000])
@pytest.mark.parametrize("columns", [slice(0, 5), slice(4, 17), slice(0, 30)])
def test_tiles_of_columns_are_where_they_say_in_the_whole(limit, columns) -> None:
    whole = torch.arange(20 * 30).view(20, 30)
    part = whole[3:, columns]
    written = torch.zeros_like(part)
    for tile in cut_tiles(part.shape, Window(3 * 30 + columns.start, 30), limit):
        cut = tile.of(part)
        rows = tile.start + torch.arange(tile.rows)[:, None] * tile.stride
        assert torch.equal(cut, rows + torch.arange(tile.width))
        assert tile.start // BLOCK == int(cut.max()) // BLOCK
        assert cut.numel() <= limit
        tile.of(written).add_(1)
    assert (written == 1).all()


def test_nothing_is_cut_from_nothing() -> None:
    assert list(cut_tiles((0,), Window(), 10)) == []
    assert list(cut_tiles((0,), Window(), 10, flat_width=8)) == []
    assert list(cut_tiles((3, 0), Window(0, 5), 10)) == []
