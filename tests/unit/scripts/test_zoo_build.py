"""Building a zoo: cached, continued, whole; and, once, trained for real at a tiny size."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.zoo import build
from scripts.zoo.build import ForeignDirectoryError, build_zoo, finished_zoo
from scripts.zoo.item import SKILLS
from scripts.zoo.recipe import BASE, GENERALISTS, SPECIALISTS, Checkpoint, Recipe, Schedule, Shape
from scripts.zoo.work import Trained

SMALL = Recipe(held_out_per_skill=20)


class Trainer:
    """Stands in for the worker processes: writes what they write, and can be made to stop."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.stop_at: str | None = None

    def __call__(self, checkpoints: Sequence[Checkpoint], out: Path, *_, on_step, record) -> None:
        for checkpoint in checkpoints:
            if checkpoint.name == self.stop_at:
                raise KeyboardInterrupt
            (out / checkpoint.name).mkdir(exist_ok=True)
            (out / checkpoint.name / "model.safetensors").write_text("weights")
            self.made.append(checkpoint.name)
            record(checkpoint, Trained(checkpoint.name, dict.fromkeys(SKILLS, 0.5), 0.1, 1.0))


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    stand_in = Trainer()
    monkeypatch.setattr(build, "_train_all", stand_in)
    return stand_in


def test_finished_zoo_is_not_built_again(tmp_path: Path, trainer: Trainer) -> None:
    first = build_zoo(tmp_path / "zoo", SMALL, seed=0)
    assert trainer.made == ["base", *(c.name for c in SPECIALISTS)]
    assert build_zoo(tmp_path / "zoo", SMALL, seed=0) == first
    assert len(trainer.made) == 4
    assert json.loads((tmp_path / "zoo" / "zoo.json").read_text()) == json.loads(json.dumps(first))


def test_stopped_zoo_continues_with_what_is_missing(tmp_path: Path, trainer: Trainer) -> None:
    trainer.stop_at = SPECIALISTS[1].name
    with pytest.raises(KeyboardInterrupt):
        build_zoo(tmp_path, SMALL, seed=0)
    assert not (tmp_path / "zoo.json").exists()
    assert finished_zoo(tmp_path, SMALL, seed=0) is None
    trainer.stop_at, trainer.made = None, []
    build_zoo(tmp_path, SMALL, seed=0)
    assert trainer.made == [c.name for c in SPECIALISTS[1:]]


def test_generalists_are_added_to_a_finished_zoo(tmp_path: Path, trainer: Trainer) -> None:
    build_zoo(tmp_path, SMALL, seed=0)
    trainer.made = []
    more = replace(SMALL, tuned=(*SPECIALISTS, *GENERALISTS))
    build_zoo(tmp_path, more, seed=0)
    assert trainer.made == ["generalist_a", "generalist_b"]
    # The zoo with more in it still serves the smaller recipe.
    assert finished_zoo(tmp_path, SMALL, seed=0) is not None


@pytest.mark.parametrize(
    ("recipe", "seed", "made"),
    [
        (SMALL, 1, 4),
        (replace(SMALL, shape=Shape(layers=2)), 0, 4),
        (replace(SMALL, base=replace(BASE, schedule=Schedule(steps=9, learning_rate=1e-3))), 0, 4),
        (replace(SMALL, held_out_per_skill=21), 0, 4),
        (replace(SMALL, tuned=(*SPECIALISTS[:2], replace(SPECIALISTS[2], mix={"copy": 1}))), 0, 1),
    ],
    ids=["seed", "shape", "base", "held-out", "one specialist"],
)
def test_changed_zoo_is_trained_again(
    tmp_path: Path, trainer: Trainer, recipe: Recipe, seed: int, made: int
) -> None:
    build_zoo(tmp_path, SMALL, seed=0)
    trainer.made = []
    build_zoo(tmp_path, recipe, seed=seed)
    assert len(trainer.made) == made


def test_lost_checkpoint_is_trained_again(tmp_path: Path, trainer: Trainer) -> None:
    build_zoo(tmp_path, SMALL, seed=0)
    (tmp_path / "code" / "model.safetensors").unlink()
    trainer.made = []
    build_zoo(tmp_path, SMALL, seed=0)
    assert trainer.made == ["code"]


def test_directory_of_something_else_is_left_alone(tmp_path: Path, trainer: Trainer) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "thesis.txt").write_text("years of work")
    with pytest.raises(ForeignDirectoryError, match="not a zoo's"):
        build_zoo(tmp_path, SMALL, seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["base"]
    assert not trainer.made


def test_items_are_written_with_their_columns(tmp_path: Path, trainer: Trainer) -> None:
    build_zoo(tmp_path, SMALL, seed=0)
    columns = {"math": {"target"}, "code": {"tests"}, "instruct": {"words", "constraints"}}
    for skill in SKILLS:
        lines = (tmp_path / "items" / f"zoo_{skill}.jsonl").read_text().splitlines()
        rows = [json.loads(line) for line in lines]
        assert len({row["prompt"] for row in rows}) == 20
        assert all(set(row) == {"prompt", "answer"} | columns[skill] for row in rows)


def test_finding_a_finished_zoo_imports_no_torch(tmp_path: Path, trainer: Trainer) -> None:
    build_zoo(tmp_path, Recipe(), seed=0)
    code = (
        "import sys; from pathlib import Path; import scripts.make_zoo as m\n"
        f"m.main(Path({str(tmp_path)!r}), 0, False, True)\n"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_tiny_zoo_is_trained_for_real_and_repeats_bit_for_bit(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    short = Schedule(steps=4, learning_rate=1e-3, batch=4)
    recipe = Recipe(
        shape=Shape(hidden=16, layers=1, heads=2, mlp=32, vocabulary=400),
        base=replace(BASE, schedule=short),
        tuned=(replace(SPECIALISTS[0], schedule=replace(short, train_embeddings=False)),),
        held_out_per_skill=30,
    )
    steps: list[tuple[str, int]] = []
    for name in ("one", "two"):
        build_zoo(tmp_path / name, recipe, seed=5, on_step=lambda *step: steps.append(step))
    assert {("base", 4), (SPECIALISTS[0].name, 4)} <= set(steps)
    one, two = (tmp_path / name for name in ("one", "two"))
    for checkpoint in ("base", SPECIALISTS[0].name):
        files = {path.name for path in (one / checkpoint).iterdir()}
        assert {"model.safetensors", "config.json", "generation_config.json"} <= files
        assert {"tokenizer.json", "tokenizer_config.json"} <= files
        weights = [(zoo / checkpoint / "model.safetensors").read_bytes() for zoo in (one, two)]
        assert weights[0] == weights[1]
    assert not list(one.glob(".*.partial-*"))

    tokenizer = AutoTokenizer.from_pretrained(one / "base")
    base = AutoModelForCausalLM.from_pretrained(one / "base")
    tuned = AutoModelForCausalLM.from_pretrained(one / SPECIALISTS[0].name)
    text = 'def calc(x):\n    """add 2"""\n    return'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert None not in {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert base.config.eos_token_id == tokenizer.eos_token_id
    assert base.get_input_embeddings().weight.equal(tuned.get_input_embeddings().weight)
    assert not base.model.norm.weight.equal(tuned.model.norm.weight)
