import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from configs.errors import ArchiveError, CheckpointError, CorruptCheckpointError
from configs.place import read_place
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from optimizer.cli.app import app
from optimizer.publish.export import export, recipe_json
from optimizer.results.select import choose
from optimizer.space import SearchSpace
from workers.outcome import Completed, EvaluationKey
from workers.sources import resolve_sources


@pytest.fixture
def models(tiny_pool, tmp_path) -> dict[str, object]:
    """The tiny pool in directories of this test."""
    pool = Path(shutil.copytree(tiny_pool.base.parent, tmp_path / "pool"))
    names = tiny_pool.checkpoints
    return {"base": str(pool / "base"), "checkpoints": {name: str(pool / name) for name in names}}


@pytest.fixture
def archive(models, tmp_path):
    """One merge, with the digest that a worker's live model had."""
    from transformers import AutoModelForCausalLM

    from workers.materialize import Materializer

    path = tmp_path / "archive.sqlite"
    job = JobConfig.model_validate(
        {"models": models, "objectives": {"text": "words"}, "archive": str(path)}
    )
    sources = resolve_sources(job.models)
    space = SearchSpace(job, sources)
    recipe = space.recipe([[0.4], [0.5], [-0.1]], [[0.3], [0.0], [0.6]])
    model = AutoModelForCausalLM.from_pretrained(models["base"])
    worker = Materializer(sources)
    worker.into(model, recipe)
    splits = {split: {"words": (f"{split}-1",)} for split in ("search", "select", "report")}
    manifest = Manifest(splits, {"words": "0"})
    with Archive.create(
        path, job=job, job_path=None, sources=sources, manifest=manifest
    ) as archive:
        candidate = Candidate(0, space.encode(recipe.weights), recipe, "strategy:cma", seen=0)
        archive.record_proposal(candidate)
        score(archive, 0, worker.digest_of(model))
        archive.record_choice(0, "for the test")
        yield archive


def score(archive, candidate: int, weights_digest: str) -> None:
    """Record scores of all splits."""
    for split in ("search", "select", "report"):
        items = archive.manifest.items(split)["words"]
        scores = {"words": TaskScores("words", items, np.array([1.0]))}
        archive.record_outcome(
            Completed(
                key=EvaluationKey(candidate, split), attempt=1, worker="w",
                weights_digest=weights_digest, task_scores=scores,
            )
        )  # fmt: skip


def files_of(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.iterdir()
    }


def left_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if "archive" not in path.name)


def test_export_is_an_ordinary_checkpoint_with_the_scored_weights(archive, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from workers.materialize import Materializer

    done = export(archive, choose(archive), tmp_path / "merged")
    assert done.weights_digest == archive.weights_digest(0)
    assert set(files_of(done.directory)) >= {
        "README.md", "recipe.json", "config.json", "generation_config.json", "model.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(done.directory)
    live = AutoModelForCausalLM.from_pretrained(archive.job.models.base.path)
    Materializer(archive.sources).into(live, archive.candidate(0).recipe)
    for name, tensor in live.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name
    tokenizer = AutoTokenizer.from_pretrained(done.directory)
    tokens = tokenizer("red green", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=3, do_sample=False).shape[1] >= 4
    assert json.loads((done.directory / "recipe.json").read_text())["recipe_id"] == done.recipe_id
    assert done.directory.name in (done.directory / "README.md").read_text()


def test_export_twice_gives_the_same_bytes(archive, tmp_path):
    first = files_of(export(archive, choose(archive), tmp_path / "a" / "merged").directory)
    second = files_of(export(archive, choose(archive), tmp_path / "b" / "merged").directory)
    assert first == second


def test_export_keeps_shards_below_the_given_size(archive, tmp_path):
    done = export(archive, choose(archive), tmp_path / "merged", max_shard_bytes=30_000)
    assert "model.safetensors.index.json" in files_of(done.directory)
    assert done.weights_digest == archive.weights_digest(0)


def test_export_refuses_a_directory_that_holds_something(archive, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").touch()
    with pytest.raises(CheckpointError, match="already exists"):
        export(archive, choose(archive), tmp_path / "merged")
    assert left_in(tmp_path / "merged") == ["precious"]


def test_export_refuses_a_source_that_changed(archive, tmp_path, models):
    source = Path(models["checkpoints"]["math"])
    shutil.copy(Path(models["checkpoints"]["code"]) / "model.safetensors", source)
    with pytest.raises(CorruptCheckpointError, match="`math` has changed since the search began"):
        export(archive, choose(archive), tmp_path / "merged")
    assert left_in(tmp_path) == ["pool"]


def test_export_refuses_a_source_that_is_gone(archive, tmp_path, models):
    shutil.rmtree(models["checkpoints"]["math"])
    with pytest.raises(CheckpointError, match="math: no such directory"):
        export(archive, choose(archive), tmp_path / "merged")
    assert left_in(tmp_path) == ["pool"]


def test_export_leaves_nothing_when_the_weights_are_not_those_that_were_scored(
    archive, tmp_path, monkeypatch
):
    monkeypatch.setattr(archive, "weights_digest", lambda index: "0" * 32)
    with pytest.raises(CheckpointError, match=r"but 0{32} was scored; nothing was exported"):
        export(archive, choose(archive), tmp_path / "merged")
    assert left_in(tmp_path) == ["pool"]


def test_candidate_is_exported_with_the_rule_that_chose_it(archive, tmp_path):
    first = archive.candidate(0)
    archive.record_proposal(Candidate(1, first.genotype, first.recipe, first.origin, seen=1))
    score(archive, 1, archive.weights_digest(0))
    place, out = str(archive.place), tmp_path / "merged"
    options = ["--candidate", "1", "--chosen-by", "best mean (math 1)", "--json"]
    done = CliRunner().invoke(app, ["export", place, "--out", str(out), *options])
    assert done.exit_code == 0, done.output
    # Candidate 0 has the same recipe.
    assert json.loads(done.stdout)["candidate"] == 1
    assert json.loads((out / "recipe.json").read_text())["chosen_by"] == "best mean (math 1)"
    assert "chosen as: best mean (math 1)" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--candidate", "0", "--id", "ab"), "--candidate: names one merge; leave --prefer"),
        (("--candidate", "0", "--knee"), "--candidate: names one merge; leave --prefer"),
        (("--chosen-by", "me"), "--chosen-by: says how --candidate was chosen"),
    ],
)
def test_candidate_beside_other_wishes_is_refused(tmp_path, options, problem):
    out = tmp_path / "merged"
    done = CliRunner().invoke(app, ["export", "none.sqlite", "--out", str(out), *options])
    assert (done.exit_code, problem in done.output) == (2, True), done.output


def test_server_of_an_archive_is_not_published(archive, monkeypatch):
    choice = choose(archive)
    assert json.loads(recipe_json(archive, choice))["job"]["archive"] == "archive.sqlite"
    place = read_place("postgresql://someone@host/db?search=x")
    monkeypatch.setattr(Archive, "place", property(lambda _: place))
    assert json.loads(recipe_json(archive, choice))["job"]["archive"] == "ARCHIVE"


def test_export_of_a_merge_that_was_never_scored_is_refused(archive, tmp_path):
    first = archive.candidate(0)
    again = Candidate(1, first.genotype, first.recipe, first.origin, seen=1)
    archive.record_proposal(again)
    archive.record_choice(1, "for the test")
    with pytest.raises(ArchiveError, match="never scored"):
        export(archive, choose(archive), tmp_path / "merged")
