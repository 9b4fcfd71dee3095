"""The zoo's items: unique, apart from training data, and solved by their own references."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from evaluators.sandbox import Sandbox
from evaluators.tasks.zoo import scoring
from scripts.zoo.functions import KINDS
from scripts.zoo.item import SKILLS, Item, Level, Skill, make_rng
from scripts.zoo.items import MAKERS, assert_disjoint, held_out_items, training_items
from scripts.zoo.recipe import HELD_OUT_PER_SKILL, SPECIALISTS


@pytest.mark.parametrize("skill", SKILLS)
def test_held_out_items_are_unique_and_repeatable(skill: Skill) -> None:
    items = held_out_items(skill, count=HELD_OUT_PER_SKILL, seed=0)
    assert len({item.prompt for item in items}) == HELD_OUT_PER_SKILL >= 1600
    assert [i.row() for i in items[:20]] == [
        i.row() for i in held_out_items(skill, count=20, seed=0)
    ]
    assert items[0].prompt != held_out_items(skill, count=1, seed=1)[0].prompt


@pytest.mark.parametrize("checkpoint", SPECIALISTS, ids=lambda c: c.name)
def test_training_items_leave_out_held_out_prompts(checkpoint) -> None:
    def draw(held_out: set[str]) -> list[Item]:
        rng = make_rng(0, "test")
        return training_items(checkpoint.mix, count=3000, rng=rng, held_out=held_out)

    # Held out here is what would be drawn otherwise, so that the filter has work to do.
    would_be = {item.prompt for item in draw(set())[:500]}
    kept = draw(would_be)
    assert len(kept) == 3000
    assert not would_be & {item.prompt for item in kept}
    assert_disjoint(kept, would_be)


def test_assert_disjoint_names_a_leaked_prompt() -> None:
    items = held_out_items("math", count=5, seed=0)
    with pytest.raises(ValueError, match=re.escape(repr(items[3].prompt))):
        assert_disjoint(items, {items[3].prompt})


@pytest.mark.parametrize("level", ["easy", "full"])
@pytest.mark.parametrize("skill", SKILLS)
def test_items_have_one_line_completions_that_follow_a_space(skill: Skill, level: Level) -> None:
    rng = make_rng(3, skill)
    for _ in range(300):
        item = MAKERS[skill](rng, level)
        assert item.completion.startswith(" ")
        assert "\n" not in item.completion
        assert item.prompt == item.prompt.rstrip()
        json.dumps(item.row())


def test_stories_add_up() -> None:
    for item in held_out_items("math", count=300, seed=0):
        for total, change, result in re.findall(r"(\d+ [+-]) (\d+) = (\d+)", item.completion):
            assert eval(f"{total} {change}") == int(result) >= 0  # noqa: S307 - our own digits
        assert item.completion.count("=") == 2
        assert item.completion.endswith(f"#### {item.row()['target']}")
        assert scoring.math_results(item.row(), [item.completion]) == {"exact_match": 1.0}


def test_instructions_are_satisfied_by_their_references() -> None:
    for item in held_out_items("instruct", count=500, seed=0):
        row = item.row()
        assert len(row["constraints"]) == 2
        assert scoring.instruct_results(row, [item.completion]) == {"constraint_acc": 1.0}, row


def test_functions_pass_their_own_asserts_and_not_each_others() -> None:
    items = held_out_items("code", count=60, seed=0)
    right = [scoring.code_program(item.row(), item.completion) for item in items]
    wrong = [
        scoring.code_program(item.row(), f" {kind.arg} if 0 else None")
        for item in items
        for kind in KINDS
        if f"({kind.arg}):" in item.prompt
    ]
    with Sandbox() as sandbox:
        assert {result.status for result in sandbox.run(right)} == {"passed"}
        assert {result.status for result in sandbox.run(wrong)} == {"failed"}


def test_task_files_read_the_columns_that_the_items_have() -> None:
    folder = Path(scoring.__file__).parent
    for skill in SKILLS:
        text = (folder / f"zoo_{skill}.yaml").read_text(encoding="utf-8")
        row = held_out_items(skill, count=1, seed=0)[0].row()
        assert f"test: items/zoo_{skill}.jsonl" in text
        for column in re.findall(r"doc_to_(?:text|target): (\w+)", text):
            assert column in row
