"""Laws of the splits: disjoint, stable when a size grows, blind to the order of the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.evaluation import SPLITS, SplitSizes
from evaluators.manifest import item_id, split_items

sizes = st.builds(
    SplitSizes,
    search=st.integers(1, 8),
    select=st.integers(1, 8),
    report=st.integers(1, 8),
)
documents = st.lists(st.integers(), min_size=40, max_size=60, unique=True)


def ids_of(numbers: list[int]) -> list[str]:
    return [item_id({"number": number}) for number in numbers]


@pytest.mark.slow
@given(documents, sizes)
def test_splits_are_disjoint_and_have_the_sizes_asked_for(numbers, asked) -> None:
    parts = split_items(ids_of(numbers), asked)
    for split in SPLITS:
        assert len(parts[split]) == getattr(asked, split)
    together = [item for split in SPLITS for item in parts[split]]
    assert len(set(together)) == len(together)
    assert set(together) <= set(ids_of(numbers))


@given(documents, sizes, st.randoms(use_true_random=False))
def test_splits_do_not_depend_on_file_order_or_repeated_items(numbers, asked, rng) -> None:
    ids = ids_of(numbers)
    shuffled = ids + rng.sample(ids, 10)
    rng.shuffle(shuffled)
    assert split_items(shuffled, asked) == split_items(ids, asked)


@given(documents, sizes, st.sampled_from(["search", "select", "report"]), st.integers(1, 8))
def test_growing_a_split_extends_it_and_moves_no_item_of_report(
    numbers, asked, split, more
) -> None:
    ids = ids_of(numbers)
    grown = asked.model_copy(update={split: getattr(asked, split) + more})
    before, after = split_items(ids, asked), split_items(ids, grown)
    assert after[split][: len(before[split])] == before[split]
    if split != "report":
        assert after["report"] == before["report"]
    if split == "search":
        assert after["select"] == before["select"]
    assert after["search"][: len(before["search"])] == before["search"]
