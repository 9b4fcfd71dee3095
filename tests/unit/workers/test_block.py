"""Blocks of tensors: where they are, and the pieces they are cut into."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workers.block import Block, shard_block, whole

BLOCKS = st.builds(
    lambda start, width, rows, gap: Block(start, width, rows, width + gap),
    st.integers(0, 5),
    st.integers(1, 9),
    st.integers(1, 6),
    st.integers(0, 4),
)


@given(
    block=BLOCKS,
    limit=st.integers(1, 30),
    multiple=st.integers(1, 5),
)
def test_pieces_cover_a_block_once_and_in_order(block: Block, limit: int, multiple: int) -> None:
    flat = torch.arange(200)
    covered = torch.full((block.numel,), -1)
    position = 0
    for begin, piece in block.pieces(limit, multiple_of=multiple):
        assert begin == position
        assert 0 < piece.numel <= limit
        position += piece.numel
        covered[begin : begin + piece.numel] = piece.of(flat).reshape(-1)
        assert int(covered[begin]) == piece.start
        assert int(covered[position - 1]) == piece.end - 1
    assert torch.equal(covered, block.of(flat).reshape(-1))


def test_runs_are_cut_at_rows_where_rows_fit() -> None:
    assert [piece.width for _, piece in whole(25).pieces(12, multiple_of=5)] == [10, 10, 5]
    assert [piece.width for _, piece in whole(25).pieces(4, multiple_of=5)] == [4] * 6 + [1]


def test_empty_block_is_one_empty_piece() -> None:
    assert list(whole(0).pieces(8)) == [(0, Block(0, 0))]


@pytest.mark.parametrize(
    ("offsets", "sizes"),
    [
        ((0, 0, 0), (4, 6, 5)),
        ((2, 0, 0), (2, 6, 5)),
        ((0, 3, 0), (4, 3, 5)),
        ((0, 0, 3), (4, 6, 2)),
        ((1, 0, 2), (2, 6, 3)),
        ((1, 2, 0), (3, 4, 5)),
    ],
)
def test_block_of_a_shard_is_what_slicing_gives(
    offsets: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    tensor = torch.arange(120).reshape(4, 6, 5)
    index = tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))
    block = shard_block(tensor.shape, offsets, sizes)
    assert block is not None
    assert block.of(tensor.reshape(-1)).reshape(-1).tolist() == tensor[index].reshape(-1).tolist()


def test_shard_without_elements_is_an_empty_block() -> None:
    assert shard_block((4, 6), (4, 0), (0, 6)) == Block(0, 0)


def test_shard_that_is_no_equal_runs_is_not_a_block() -> None:
    assert shard_block((4, 6, 5), (0, 1, 1), (4, 2, 2)) is None
