import numpy as np
import pytest

from evaluators.blocks import block_name, ordered, partition, remaining, union
from evaluators.scores import TaskScores

SPLIT = {"gsm8k": tuple("abcdefgh"), "mbpp": ("x",)}


def test_partition_gives_each_block_its_share_of_every_task() -> None:
    assert partition(SPLIT, (1, 1, 2)) == [
        {"gsm8k": ("a", "b")},
        {"gsm8k": ("c", "d")},
        {"gsm8k": ("e", "f", "g", "h"), "mbpp": ("x",)},
    ]


def test_partition_leaves_empty_blocks_out() -> None:
    assert partition({"mbpp": ("x", "y")}, [1] * 5) == [{"mbpp": ("x",)}, {"mbpp": ("y",)}]


@pytest.mark.parametrize("shares", [(), (1, 0), (1, -1)])
def test_partition_refuses_shares_that_are_not_positive(shares) -> None:
    with pytest.raises(ValueError, match="shares of blocks must be positive"):
        partition(SPLIT, shares)


def test_name_is_the_same_for_ever() -> None:
    """An archive holds names: computed once with `sha256sum` from the JSON of the items."""
    assert block_name({"mbpp": ("x",), "gsm8k": ("b", "a")}) == "64db223716df9482"
    assert block_name({"gsm8k": ("a", "b", "x")}) != block_name({"gsm8k": ("a", "b"), "mbpp": "x"})


def test_ordered_refuses_foreign_items_and_nothing() -> None:
    assert ordered({"gsm8k": ("c", "a", "c")}, SPLIT) == {"gsm8k": ("a", "c")}
    with pytest.raises(ValueError, match="`z` is no item of task `gsm8k`"):
        ordered({"gsm8k": ("a", "z")}, SPLIT)
    with pytest.raises(ValueError, match="at least one item"):
        ordered({"gsm8k": ()}, SPLIT)


def test_remaining_leaves_out_what_is_done() -> None:
    done = {"gsm8k": ("a", "h"), "mbpp": ("x",), "other": ("o",)}
    assert remaining(SPLIT, done) == {"gsm8k": tuple("bcdefg")}


def test_union_takes_the_first_score_of_an_item() -> None:
    parts = [
        {"gsm8k": TaskScores("gsm8k", ("c", "b"), np.array([3.0, 2.0]))},
        {"gsm8k": TaskScores("gsm8k", ("a", "b"), np.array([1.0, 9.0]))},
    ]
    found = union(parts, SPLIT)
    assert list(found) == ["gsm8k"]
    assert found["gsm8k"].item_ids == ("a", "b", "c")
    assert found["gsm8k"].values.tolist() == [1.0, 2.0, 3.0]


def test_union_keeps_the_weights_of_items() -> None:
    parts = [
        {"gsm8k": TaskScores("gsm8k", ("c",), np.array([3.0]), np.array([5.0]))},
        {"gsm8k": TaskScores("gsm8k", ("a",), np.array([1.0]), np.array([2.0]))},
    ]
    assert union(parts, SPLIT)["gsm8k"].weights.tolist() == [2.0, 5.0]
    assert union(parts, SPLIT)["gsm8k"].values.tolist() == [1.0, 3.0]
