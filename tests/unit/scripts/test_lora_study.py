"""Adapters for parts of skills, and their composition from a few examples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import DataFrame
from safetensors.torch import load_file

from configs.evaluation import SplitSizes
from evaluators.scores import TaskScores
from scripts.bench.zoo_store import ScoreStore
from scripts.papers import lora
from scripts.papers.bench import Bench
from scripts.papers.lora import LORA, compose, mean_weight, measure, negative_share
from scripts.papers.lora_pool import (
    ALPHA,
    PARTS,
    RANK,
    SCHEDULE,
    UNSEEN,
    adapter_items,
    part_of,
    train_adapter,
    unseen_items,
)
from scripts.papers.page import judge_all
from scripts.zoo.item import Item, make_rng
from scripts.zoo.items import MAKERS
from tests.conftest import TinyPool
from workers.checkpoint import CheckpointReader
from workers.lora import Adapter


@pytest.mark.parametrize(
    ("skill", "item", "part"),
    [
        ("math", Item("Story: ...", " 5 + 3 = 8, 8 + 2 = 10 #### 10"), "math_gains"),
        ("math", Item("Story: ...", " 9 - 3 = 6, 6 - 2 = 4 #### 4"), "math_losses"),
        ("math", Item("Story: ...", " 9 - 3 = 6, 6 + 2 = 8 #### 8"), "math_mixed"),
        ("code", Item('def run(x):\n    """square"""\n    return', " x ** 2"), "code_numbers"),
        ("code", Item('def run(s):\n    """reverse"""\n    return', " s[::-1]"), "code_text"),
        ("code", Item('def run(xs):\n    """sort"""\n    return', " sorted(xs)"), "code_items"),
    ],
)
def test_parts_of_stories_and_functions(skill, item, part):
    assert part_of(skill, item) == part


@pytest.mark.parametrize(
    ("constraints", "part"),
    [
        (["begin:yes", "reverse"], "instruct_order"),
        (["upper", "stars"], "instruct_look"),
        (["stars", "end:done"], "instruct_mixed"),
    ],
)
def test_parts_of_instructions(constraints, part):
    item = Item("Write ...", " ...", checks=lambda: {"constraints": constraints})
    assert part_of("instruct", item) == part


def test_every_item_has_a_part_and_every_part_has_items():
    rng, found = make_rng(0, "parts"), set()
    for _ in range(200):
        found |= {part_of(skill, MAKERS[skill](rng, "full")) for skill in UNSEEN}
    assert found == {*PARTS, *UNSEEN.values()}


@pytest.mark.parametrize("part", PARTS)
def test_adapters_never_see_what_they_are_composed_for(part):
    items = adapter_items(part, seed=0, steps=10)
    assert len(items) == 10 * SCHEDULE.batch
    skill = PARTS[part]
    unseen = {item.prompt for item in unseen_items(skill, count=64, seed=0)}
    prompts = {item.prompt for item in items}
    assert not unseen & prompts
    assert all(
        part_of(skill, item) == UNSEEN[skill] for item in unseen_items(skill, count=9, seed=0)
    )
    assert prompts == {item.prompt for item in adapter_items(part, seed=0, steps=10)}


def test_an_adapter_is_what_peft_writes_and_we_merge(tiny_pool: TinyPool, tmp_path: Path):
    out = tmp_path / "adapter"
    state = torch.random.get_rng_state()
    train_adapter(tiny_pool.base, "math_gains", out, seed=0, steps=3)
    assert torch.equal(state, torch.random.get_rng_state())
    config = json.loads((out / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)
    factors = load_file(out / "adapter_model.safetensors")
    name = "base_model.model.model.layers.0.mlp.up_proj.lora_"
    update = factors[f"{name}B.weight"] @ factors[f"{name}A.weight"] * (ALPHA / RANK)
    assert update.abs().max() > 0  # Three steps have moved B from zero.
    merged = Adapter(out, CheckpointReader(tiny_pool.base)).merge(tmp_path / "cache")
    key = "model.layers.0.mlp.up_proj.weight"
    base = load_file(tiny_pool.base / "model.safetensors")[key]
    tuned = load_file(merged / "model.safetensors")[key]
    assert torch.allclose(tuned, base + update, atol=1e-6)


class FakeLab:
    """Bits per byte of a bowl: the examples want the first adapter, and the second reversed."""

    def __init__(self, lab) -> None:
        self._lab = lab
        self.space, self.recipe = lab.space, lab.recipe

    def scores(self, recipe, items, kind):
        assert kind == "likelihood"
        weights = np.array(recipe.weights)[:, 0]
        value = -0.5 - (weights[0] - 1.0) ** 2 - (weights[1] + 0.5) ** 2
        return {
            task: TaskScores(task, ids, np.full(len(ids), value)) for task, ids in items.items()
        }


@pytest.fixture
def bowl(zoo: Path, tmp_path: Path):
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        bench = Bench(tmp_path, zoo, 128, 0, True, store, SplitSizes(search=4, select=4, report=4))
        changes = {
            "merge": {"method": "task_arithmetic", "weight": {"low": -1.5, "high": 1.5}},
            "search": {"strategy": "scalar_cma", "l1": 0.0},
        }
        with bench.lab(("instruct", "code", "math"), skills=("math",), **changes) as lab:
            yield FakeLab(lab), lab.jobs["generate"], {"zoo_math": ("a", "b")}


def test_composing_finds_negative_weights_and_the_penalty_shrinks_them(bowl):
    lab, job, items = bowl
    free = compose(lab, job, items, evaluations=150)
    assert np.array(free.weights)[:2, 0] == pytest.approx([1.0, -0.5], abs=0.15)
    search = job.search.model_copy(update={"l1": 1.2})
    held = compose(lab, job.model_copy(update={"search": search}), items, evaluations=150)
    # 2 (1 - w) = 1.2 / 3 and 2 (0.5 - |w|) = 1.2 / 3; the third gains nothing.
    assert np.array(held.weights)[:, 0] == pytest.approx([0.8, -0.3, 0.0], abs=0.1)
    assert mean_weight(held) < mean_weight(free)
    assert compose(lab, job, items, evaluations=20) == compose(lab, job, items, evaluations=20)


def test_numbers_of_a_composition_by_hand(bowl):
    recipe = bowl[0].recipe({"instruct": 1.0, "code": -0.5})
    assert mean_weight(recipe) == pytest.approx(0.5)
    assert negative_share(recipe) == pytest.approx(1 / 3)


@pytest.mark.slow  # trains six adapters, of a tiny model
def test_the_study_on_a_tiny_base(zoo: Path, tmp_path: Path, monkeypatch):
    for name, value in {"FAST_STEPS": 2, "FAST_EVALUATIONS": 6, "_NUM_ITEMS": 40}.items():
        monkeypatch.setattr(lora, name, value)
    splits = SplitSizes(search=4, select=4, report=4)
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        bench = Bench(tmp_path, zoo, 128, 0, True, store, splits)
        records = measure(bench)
        assert measure(bench) == records
    table = DataFrame(records)
    assert set(table["how"]) == {lora.BASE, lora.MEAN, lora.SINGLE, lora.COMPOSED}
    assert set(table["task"]) == set(UNSEEN.values())
    assert table["score"].between(0, 1).all()
    judged = judge_all([LORA], {"lora": table.assign(width=128, seed=0)}, fast=True)
    assert set(judged) == {"composed_beats_base", "composed_beats_mean", "composed_beats_single"}
