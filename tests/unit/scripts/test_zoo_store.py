"""The benchmark's memory: what is scored once is found again, and nothing else is."""

from pathlib import Path

import pytest

from configs.recipe import Group, MergeRecipe, Source
from scripts.bench.zoo_store import Remembered, ScoreStore, Signal

MATH = Signal("definition-of-math", "exact_match")


def recipe(weight: float) -> MergeRecipe:
    return MergeRecipe(
        method="dare_linear",
        base=Source(name="base", digest="b"),
        checkpoints=(Source(name="math", digest="m"),),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=((weight,),),
        drop_ratios=((0.0,),),
        dtype="float32",
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "scores.sqlite"


def test_scores_are_found_again_by_another_process(path: Path) -> None:
    with ScoreStore(path) as store:
        store.remember(recipe(0.5), {MATH: {"a": Remembered(1.0, 0.25)}}, "digest")
    with ScoreStore(path) as store:
        assert store.lookup(recipe(0.5), MATH, ["a", "b"]) == {"a": Remembered(1.0, 0.25)}
        assert store.digest_and_failure(recipe(0.5)) == ("digest", None)
        assert store.recipes() == [recipe(0.5)]


@pytest.mark.parametrize(
    ("other", "signal", "item"),
    [
        (recipe(0.6), MATH, "a"),
        (recipe(0.5), Signal("another-definition", MATH.metric), "a"),
        (recipe(0.5), Signal(MATH.definition, "target_bits_per_byte"), "a"),
        (recipe(0.5), MATH, "b"),
    ],
    ids=["recipe", "definition", "metric", "item"],
)
def test_whatever_could_change_a_score_is_part_of_its_key(
    path: Path, other: MergeRecipe, signal: Signal, item: str
) -> None:
    with ScoreStore(path) as store:
        store.remember(recipe(0.5), {MATH: {"a": Remembered(1.0, 0.25)}}, "digest")
        assert store.lookup(other, signal, [item]) == {}


def test_a_second_score_of_an_item_does_not_replace_the_first(path: Path) -> None:
    with ScoreStore(path) as store:
        for value in (1.0, 0.0):
            store.remember(recipe(0.5), {MATH: {"a": Remembered(value, 0.25)}}, "digest")
        assert store.lookup(recipe(0.5), MATH, ["a"])["a"].value == 1.0


def test_failures_are_remembered(path: Path) -> None:
    with ScoreStore(path) as store:
        assert store.digest_and_failure(recipe(0.5)) == (None, None)
        store.remember_failure(recipe(0.5), "logits are not finite")
        assert store.digest_and_failure(recipe(0.5)) == (None, "logits are not finite")


def test_two_stores_of_one_file_number_items_alike(path: Path) -> None:
    with ScoreStore(path) as one, ScoreStore(path) as two:
        one.remember(recipe(0.5), {MATH: {"a": Remembered(1.0, 0.1)}}, "digest")
        two.remember(recipe(0.5), {MATH: {"b": Remembered(0.0, 0.1)}}, "digest")
        for store in (one, two):
            found = store.lookup(recipe(0.5), MATH, ["a", "b"])
            assert {item: score.value for item, score in found.items()} == {"a": 1.0, "b": 0.0}
