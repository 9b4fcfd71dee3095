"""The command learn on the tiny pool: from a job to a directory that merges and is scored alike."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from configs.load import load_job
from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from optimizer.cli import app as cli
from optimizer.learning.plan import LearningPlan, plan_learning
from tests.conftest import TinyPool
from tests.unit.workers.grown_models import grow_model
from tests.waiting import wait_until
from workers.learning.texts import load_tokenizer

MakeJob = Callable[..., Path]
CUDA = ("dam", "--set", "workers.device=cuda", "--set", "workers.gpus=1")
QUICK = ("--steps", 4, "--lr", 0.01, "--batch-size", 4)


def mergefront(*arguments: object) -> Result:
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def job_file(tiny_job: Callable[..., JobConfig], tmp_path: Path) -> MakeJob:
    def make(**sections: object) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(
            yaml.safe_dump(tiny_job(**sections).model_dump(mode="json"), sort_keys=False)
        )
        return path

    return make


def labels_of(plan: LearningPlan) -> dict[str, list[str]]:
    return {name: [one.label for one in origins] for name, origins in plan.origins.items()}


def record_of(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "recipe.json").read_text())
    return content


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """The weights that the live model of the last learning had in the end."""
    from workers.learning.merged_model import LearnableMerge

    kept: dict[str, torch.Tensor] = {}
    close = LearnableMerge.close

    def keep(merge: LearnableMerge) -> None:
        kept.update({name: tensor.clone() for name, tensor in merge.model.state_dict().items()})
        close(merge)

    monkeypatch.setattr(LearnableMerge, "close", keep)
    return kept


def check_merged(out: Path, merged: Path, in_memory: dict[str, torch.Tensor]) -> None:
    """Merge a learned recipe, and compare it with the model that it was learned in, bit for bit."""
    done = mergefront("merge", out / "recipe.json", "--out", merged)
    assert done.exit_code == 0, done.output
    written = load_file(merged / "model.safetensors")
    assert len(written) > 10
    for name, tensor in written.items():
        assert torch.equal(tensor, in_memory[name]), name


def test_dam_is_learned_and_merges_as_it_was_learned(
    job_file: MakeJob, tmp_path: Path, in_memory: dict[str, torch.Tensor]
) -> None:
    job, out = job_file(), tmp_path / "learned"
    done = mergefront("learn", job, "dam", "--out", out, *QUICK, "--data", "math=choice")
    assert done.exit_code == 0, done.output
    assert "math: 8 texts" in done.stderr
    assert "(objective choice)" in done.stderr
    assert "code: 16 texts" in done.stderr
    assert "step 4/4: kl/instruct" in done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "coefficients.safetensors", "recipe.json",
    ]  # fmt: skip
    record = record_of(out)
    recipe = MergeRecipe.model_validate(record["recipe"])
    assert done.stdout == f"{recipe.recipe_id}  {out}\n"
    assert (recipe.method, recipe.weights) == ("dam", ((1.0,), (1.0,), (1.0,)))
    assert recipe.coefficients is not None
    data = record["learned"]["data"]["math"]
    assert (data["from"], data["texts"]) == (["objective choice"], 8)
    losses = record["learned"]["losses"]
    assert losses.keys() == {"kl/instruct", "kl/code", "kl/math", "similarity", "loss"}
    assert all(len(values) == 4 for values in losses.values())
    assert losses["similarity"][-1] < losses["similarity"][0]
    check_merged(out, tmp_path / "merged", in_memory)


@pytest.mark.parametrize("method", ["dam", "adamerging"])
def test_checkpoints_with_more_tokens_are_learned_from(
    job_file: MakeJob,
    tmp_path: Path,
    tiny_pool: TinyPool,
    in_memory: dict[str, torch.Tensor],
    method: str,
) -> None:
    grow_model(tmp_path / "grown", tiny_pool.checkpoints["math"], rows=262, tokens=("<a>", "<b>"))
    checkpoints = {"code": str(tiny_pool.checkpoints["code"]), "math": str(tmp_path / "grown")}
    models = {"base": str(tiny_pool.base), "checkpoints": checkpoints, "vocabulary": "pad"}
    out = tmp_path / "out"
    done = mergefront("learn", job_file(models=models), method, "--out", out, *QUICK)
    assert done.exit_code == 0, done.output
    check_merged(out, tmp_path / "merged", in_memory)
    assert in_memory["model.embed_tokens.weight"].shape == (262, 32)


def test_adamerging_by_layer_is_a_recipe_that_merges(
    job_file: MakeJob, tmp_path: Path, in_memory: dict[str, torch.Tensor]
) -> None:
    out = tmp_path / "learned"
    options = ("--positions", "last", "--json")
    done = mergefront("learn", job_file(), "adamerging", "--out", out, *QUICK, *options)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert [path.name for path in out.iterdir()] == ["recipe.json"]
    recipe = MergeRecipe.model_validate(record_of(out)["recipe"])
    assert printed["recipe_id"] == recipe.recipe_id
    assert printed["losses"].keys() == {
        "entropy/objective text", "entropy/objective choice", "loss",
    }  # fmt: skip
    assert recipe.method == "dare_linear"
    assert [group.name for group in recipe.groups] == [
        "before_layers", "layer_0", "layer_1", "after_layers",
    ]  # fmt: skip
    assert recipe.coefficients is None
    assert not any(math.isclose(w, 0.3, abs_tol=1e-3) for row in recipe.weights for w in row)
    check_merged(out, tmp_path / "merged", in_memory)


def test_adamerging_by_task_lies_in_the_search_space(job_file: MakeJob, tmp_path: Path) -> None:
    from optimizer.space import SearchSpace
    from workers.sources import resolve_sources

    groups = {"first": [{"layers": "0"}], "others": ["rest"]}
    path, out = job_file(merge={"method": "dare_linear", "groups": groups}), tmp_path / "out"
    done = mergefront(
        *("learn", path, "adamerging", "--out", out, *QUICK),
        *("--granularity", "task", "--positions", "all"),
    )
    assert done.exit_code == 0, done.output
    recipe = MergeRecipe.model_validate(record_of(out)["recipe"])
    assert all(len(set(row)) == 1 and len(row) == 2 for row in recipe.weights)
    job = load_job(path)
    assert SearchSpace(job, resolve_sources(job.models)).contains(recipe)


def test_same_seed_gives_the_same_merge(job_file: MakeJob, tmp_path: Path) -> None:
    job = job_file(seed=3)
    for name, seed in (("a", ()), ("b", ("--seed", 3)), ("c", ("--seed", 4))):
        done = mergefront("learn", job, "dam", "--out", tmp_path / name, *QUICK, *seed)
        assert done.exit_code == 0, done.output
    files = [(tmp_path / name / "coefficients.safetensors").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]
    records = [record_of(tmp_path / name) for name in "abc"]
    digests = [record["recipe"]["coefficients"]["digest"] for record in records]
    assert digests[0] == digests[1] != digests[2]


def test_only_search_items_are_learned_from(job_file: MakeJob, tmp_path: Path) -> None:
    from evaluators.suite import JobSuite

    job = load_job(job_file())
    plan = plan_learning(job, "dam", tmp_path / "out", options={})
    tokenizer = load_tokenizer(plan.sources.reference.directory)
    suite = JobSuite(job.objectives, job.evaluation)
    assert suite.lm_eval is not None
    for objective, task in (("text", "tiny_text"), ("choice", "tiny_choice")):
        documents = suite.lm_eval.tasks[task].documents
        indices = suite.lm_eval.tasks[task].indices
        ids = suite.manifest.items("search")[task]
        prompts = [str(documents[indices[item]]["prompt"]) for item in ids]
        found = plan.texts.by_origin[f"objective {objective}"]
        assert [tokenizer.decode(text) for text in found] == prompts
    cut = plan_learning(job, "dam", tmp_path / "out", options={}, max_tokens=5)
    assert {len(text) for texts in cut.texts.by_checkpoint.values() for text in texts} == {5}
    assert tokenizer.decode(cut.texts.by_checkpoint["math"][0]).endswith(" then")


def test_texts_come_from_files_too(job_file: MakeJob, tmp_path: Path) -> None:
    texts = tmp_path / "own.jsonl"
    texts.write_text('{"prompt": "one two"}\n{"text": "three"}\n')
    flags = (f"math={texts}", "math=text")
    plan = plan_learning(load_job(job_file()), "dam", tmp_path / "out", options={}, data=flags)
    assert labels_of(plan)["math"] == [f"file {texts}", "objective text"]
    assert len(plan.texts.by_checkpoint["math"]) == 10
    tokenizer = load_tokenizer(plan.sources.reference.directory)
    assert tokenizer.decode(plan.texts.by_checkpoint["math"][1]) == "three"


def test_a_checkpoint_of_an_objectives_name_gets_its_texts(
    job_file: MakeJob, tmp_path: Path
) -> None:
    job = load_job(job_file(objectives={"math": "tiny_text", "other": "tiny_choice"}))
    labels = labels_of(plan_learning(job, "dam", tmp_path / "out", options={}))
    assert labels["math"] == ["objective math"]
    assert labels["code"] == ["objective math", "objective other"]


def test_everything_that_is_wrong_is_said_at_once(job_file: MakeJob, tmp_path: Path) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "mine").write_text("keep")
    job = job_file(models={"checkpoints": {"math": str(tmp_path / "none")}})
    done = mergefront(
        *("learn", job, "adamerging", "--out", used, "--lr", -1, "--temperature", 3),
        *("--max-tokens", 0, "--data", "maths=text", "--data", "math=txt", "--data", "nothing"),
        *("--set", "merge.method=linear", "--positions", "lst"),
    )
    assert done.exit_code == 2
    for part in (
        "--lr: must be > 0, found -1.0",
        "--temperature: `adamerging` has no such option; it has --steps",
        "--positions: must be one of generated, last, all, found lst",
        "--max-tokens: must be at least 1, found 0",
        "`maths` is no checkpoint of the job; did you mean `math`?",
        "`txt` is neither an objective nor a file; did you mean `text`?",
        "expected CHECKPOINT=OBJECTIVE_OR_FILE, found `nothing`",
        "models.base: `adamerging` learns weights of task vectors",
        f"{used}: already exists and is not an empty directory",
        f"{tmp_path / 'none'}: no such directory",
    ):
        assert part in done.stderr, part
    assert [path.name for path in used.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("damn",), "`damn` is not learned here; did you mean `dam`?"),
        (("dam", "--steps", "0"), "--steps: must be at least 1, found 0"),
        (("dam", "--init", "nan"), "--init: must be a finite number, found nan"),
        (("dam", "--seed", "-1"), "--seed: must be from 0"),
        (CUDA, "where merges are learned"),
    ],
)
def test_bad_arguments_say_what_to_do(
    job_file: MakeJob, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    if arguments == CUDA and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = mergefront("learn", job_file(), *arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (tmp_path / "out").exists()


def test_bad_files_of_texts_are_refused(job_file: MakeJob, tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"answer": 1}\n')
    job = job_file()
    done = mergefront("learn", job, "dam", "--out", tmp_path / "out", "--data", f"math={bad}")
    assert done.exit_code == 2
    assert "must be a JSON object whose `text` or `prompt` is a text" in done.stderr


@pytest.mark.slow
def test_an_interrupt_leaves_nothing(job_file: MakeJob, tmp_path: Path) -> None:
    out = tmp_path / "place" / "out"
    log = tmp_path / "log"
    arguments = ["learn", str(job_file()), "dam", "--out", str(out), "--steps", "100000"]
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "optimizer.cli", *arguments],
            stderr=file,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            cwd=Path(__file__).parents[4],
        )
        try:
            wait_until(lambda: "step 1/" in log.read_text(), "the first step")
            time.sleep(0.2)
            process.send_signal(signal.SIGINT)
            assert process.wait(300) == 130
        finally:
            process.kill()
    assert "interrupted" in log.read_text()
    assert not out.parent.exists()
