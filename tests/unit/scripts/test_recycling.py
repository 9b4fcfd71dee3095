import json
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from pandas import DataFrame
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.papers.recycling import CMA, RECYCLING, SURROGATE, WITHOUT_BAD
from scripts.papers.recycling_pool import POOL, members_of
from scripts.papers.recycling_preferences import (
    dpo_loss,
    draw_pairs,
    is_right,
    optimize_preferences,
    wrong_completion,
)
from scripts.papers.recycling_soups import write_copies
from scripts.papers.study import Record
from scripts.papers.tasks.copying import copy_results
from scripts.zoo.item import SKILLS, Skill, make_rng
from scripts.zoo.items import MAKERS, held_out_items
from scripts.zoo.recipe import Schedule, Shape
from scripts.zoo.training import encode, log_likelihoods, new_model, train_tokenizer

CLAIMS = {claim.key: claim for claim in RECYCLING.claims}
EVEN: Mapping[Skill, float] = dict.fromkeys(SKILLS, 1.0)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    items = [item for skill in SKILLS for item in held_out_items(skill, count=50, seed=1)]
    return train_tokenizer((item.prompt + item.completion for item in items), vocabulary=400)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    return new_model(Shape(hidden=32, layers=1, heads=2, mlp=64), tokenizer, seed=0)


def test_dpo_loss_is_the_papers() -> None:
    chosen, rejected = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0, -1.0])
    reference = torch.tensor([-2.0, -2.0])
    # Margins (1) - (-1) = 2 and (0) - (1) = -1, times beta 0.5: -log sigmoid of 1 and of -0.5.
    expected = (math.log(1 + math.exp(-1.0)) + math.log(1 + math.exp(0.5))) / 2
    assert dpo_loss(chosen, rejected, reference, reference, beta=0.5).item() == pytest.approx(
        expected
    )


def test_dpo_loss_of_the_reference_is_log_2() -> None:
    chosen, rejected = torch.tensor([-1.0]), torch.tensor([-7.0])
    loss = dpo_loss(chosen, rejected, chosen, rejected)
    assert loss.item() == pytest.approx(math.log(2.0))


def test_log_likelihoods_are_sums_over_completions(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = encode(tokenizer, [held_out_items(skill, count=1, seed=0)[0] for skill in SKILLS])
    with torch.no_grad():
        found = log_likelihoods(model, rows)
        for (start, ids), value in zip(rows, found, strict=True):
            logs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            expected = sum(logs[place - 1, ids[place]].item() for place in range(start, len(ids)))
            assert value.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("skill", SKILLS)
def test_wrong_completions_are_wrong(skill: Skill) -> None:
    rng = make_rng(0, "wrong", skill)
    for _ in range(60):
        item = MAKERS[skill](rng, "full")
        wrong = wrong_completion(skill, item, rng)
        assert is_right(skill, item, item.completion)
        assert wrong != item.completion
        assert not is_right(skill, item, wrong)


def test_completions_of_equal_meaning_are_right() -> None:
    items = held_out_items("code", count=20, seed=0)
    item = next(item for item in items if "(x):" in item.prompt)
    assert is_right("code", item, f" ({item.completion.strip()}) + 0")
    assert not is_right("code", item, f" ({item.completion.strip()}) + 1")


def test_pairs_are_not_held_out() -> None:
    free = draw_pairs(EVEN, count=20, rng=make_rng(0, "pairs"), held_out=())
    forbidden = {free[0].right.prompt}
    drawn = draw_pairs(EVEN, count=20, rng=make_rng(0, "pairs"), held_out=forbidden)
    assert all(pair.right.prompt == pair.wrong.prompt for pair in drawn)
    assert forbidden.isdisjoint(pair.right.prompt for pair in drawn)


def test_preferences_are_learnt(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    schedule = Schedule(steps=30, learning_rate=5e-3, warmup_steps=1, train_embeddings=False)
    pairs = draw_pairs({"math": 1.0}, count=480, rng=make_rng(0, "pairs"), held_out=())
    before = model.get_input_embeddings().weight.detach().clone()
    loss = optimize_preferences(model, tokenizer, pairs, schedule)
    assert loss < math.log(2.0)
    assert torch.equal(model.get_input_embeddings().weight, before)


def test_pool_has_stages_and_rates_and_starts_that_exist() -> None:
    names = [member.name for member in POOL]
    assert len(set(names)) == 12
    assert {member.stage for member in POOL} == {"SFT", "DPO"}
    for fast in (True, False):
        members = members_of(fast=fast)
        for place, member in enumerate(members):
            earlier = {one.name for one in members[:place]}
            assert (member.after in earlier) == (member.stage == "DPO")


def test_fast_pool_is_trained_for_a_quarter() -> None:
    full = {member.name: member for member in POOL}
    for member in members_of(fast=True):
        assert member.schedule.steps == full[member.name].schedule.steps // 4
        assert member.schedule.learning_rate == full[member.name].schedule.learning_rate


def test_copies_differ_and_are_scored_word_by_word(tmp_path: Path) -> None:
    write_copies(tmp_path, 0, count=30)
    lines = (tmp_path / "items" / "zoo_copy.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert len({row["prompt"] for row in rows}) == 30
    assert all(row["prompt"] == f"Copy: {row['answer']}\nCopied:" for row in rows)
    assert all(6 <= len(row["answer"].split()) <= 14 for row in rows)
    assert copy_results({"answer": "red fox"}, [" red  fox\nblue"]) == {"exact_match": 1.0}
    assert copy_results({"answer": "red fox"}, [" red"]) == {"exact_match": 0.0}


def records() -> DataFrame:
    """Two checkpoints and the merges of one search of two tasks, with numbers made up here."""
    rows: list[Record] = []
    for name, code, math_score in (("a", 0.9, 0.3), ("b", 0.2, 0.8)):
        alone = {"code": code, "math": math_score, "instruct": 0.5, "copy": 0.5}
        rows += [
            {"checkpoint": name, "stage": "SFT", "task": task, "alone": value}
            for task, value in alone.items()
        ]
    merges = {
        CMA: (0.7, 0.75, 0.6, 0.4),
        SURROGATE: (0.7, 0.7, 0.5, 0.5),
        "best single": (0.9, 0.3, 0.5, 0.5),
        "uniform soup": (0.5, 0.5, 0.5, 0.5),
        "greedy soup": (0.6, 0.6, 0.5, 0.5),
        "one tuned scale": (0.6, 0.7, 0.5, 0.5),
        WITHOUT_BAD: (0.7, 0.65, 0.5, 0.5),
    }
    for merge, (code, math_score, instruct, copied) in merges.items():
        scores = {"code": code, "math": math_score, "instruct": instruct, "copy": copied}
        scores["searched tasks"] = (code + math_score) / 2
        rows += [
            {"tasks": "two", "merge": merge, "evaluations": 30, "of": of, "score": value}
            for of, value in scores.items()
        ]
    for how in (CMA, SURROGATE):
        where: Record = {"search": f"two tasks, {how}"}
        rows += [{**where, "checkpoint": "a", "weight": 1.0}]
        rows += [{**where, "checkpoint": "b", "weight": 0.0}]
        rows += [{**where, "left_out": "b", "rank": "worst 1", "lost": 0.02}]
    return DataFrame([{"width": 128, "seed": 0, **row} for row in rows])


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("recycling_beats_single_two", 0.725 - 0.6),
        ("recycling_beats_uniform_two", 0.725 - 0.5),
        ("recycling_beats_greedy_two", 0.725 - 0.6),
        ("recycling_beats_scale_two", 0.725 - 0.65),
        # Against a: max(-0.2, 0.45); against b: max(0.5, -0.05).
        ("recycling_pareto", 0.45),
        ("recycling_held_out", 0.5 - 0.5),
        ("recycling_nearly_all_two", 0.5),
        ("recycling_bad_in_merge_two", 0.02),
        ("recycling_bad_in_pool_two", 0.725 - 0.675),
    ],
)
def test_claims_are_what_they_say(key: str, expected: float) -> None:
    assert CLAIMS[key].value(records()) == pytest.approx(expected)


def test_notes_count_weights_and_bad_checkpoints() -> None:
    notes = RECYCLING.notes(records())
    assert notes[0] == "30 evaluations per search, baselines included."
    assert "of 2 weights 1.0 are above 0.01 and 1.0 exactly zero" in notes[1]
    assert "1 of 1 bad checkpoints are missed, 0 make it better" in notes[1]
    # Means of code and math: 0.6 of a, 0.5 of b.
    assert "best on report items themselves has 0.600" in notes[-1]
