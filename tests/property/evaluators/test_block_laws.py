"""Laws of blocks: every item once, equal blocks have equal names, scores come together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evaluators.blocks import block_name, ordered, partition, remaining, union
from evaluators.scores import TaskScores

splits = st.dictionaries(
    st.sampled_from(["gsm8k", "mbpp", "ifeval"]),
    st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=25, unique=True),
    min_size=1,
)
shares = st.lists(st.floats(0.01, 100), min_size=1, max_size=8)


@given(splits, shares)
def test_partition_holds_every_item_once_in_its_order(split, sizes) -> None:
    blocks = partition(split, sizes)
    assert all(block and all(block.values()) for block in blocks)
    for task, ids in split.items():
        assert [item for block in blocks for item in block.get(task, ())] == ids
        total = sum(sizes)
        if len(blocks) == len(sizes):
            for block, share in zip(blocks, sizes, strict=True):
                assert abs(len(block.get(task, ())) - len(ids) * share / total) < 2


@given(splits, shares, st.randoms())
def test_name_depends_on_the_items_and_on_nothing_else(split, sizes, rng) -> None:
    blocks = partition(split, sizes)
    assert len({block_name(block) for block in blocks}) == len(blocks)
    for block in blocks:
        tasks = list(block)
        rng.shuffle(tasks)
        turned = {task: rng.sample(block[task], len(block[task])) for task in tasks}
        assert block_name(turned) == block_name(block)
        assert ordered(turned, split) == block
        assert list(ordered(turned, split)) == list(block)


@given(splits, shares, st.randoms())
def test_union_of_blocks_is_the_whole_whatever_their_order(split, sizes, rng) -> None:
    whole = {
        task: TaskScores(task, tuple(ids), np.array([rng.gauss(0, 1) for _ in ids]))
        for task, ids in split.items()
    }
    blocks = partition(split, sizes)
    rng.shuffle(blocks)
    parts = []
    for block in blocks:
        rows = {task: [split[task].index(item) for item in ids] for task, ids in block.items()}
        parts.append(
            {
                task: TaskScores(task, ids, whole[task].values[rows[task]])
                for task, ids in block.items()
            }
        )
    together = union(parts, split)
    assert list(together) == list(split)
    for task, scores in together.items():
        assert scores.item_ids == whole[task].item_ids
        assert scores.values.tobytes() == whole[task].values.tobytes()
    assert remaining(split, {task: part.item_ids for task, part in together.items()}) == {}
