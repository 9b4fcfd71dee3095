"""Another dtype of a recorded merge, scored by the job's real tasks on the tiny pool."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.errors import CheckpointError, ConfigError, EvaluationError
from evaluators.paired import paired_difference
from evaluators.scores import aggregate
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from optimizer.publish.export import export
from optimizer.publish.rescore import in_dtype, rescore
from optimizer.results.select import choose
from optimizer.space import SearchSpace
from workers.outcome import Completed, EvaluationKey, EvaluationRequest

# Of the second merge the archive has no report scores, as of most merges of a search; the third
# is beyond the largest float16.
WEIGHTS = ((9.0, 6.0, 7.0), (8.0, 4.0, 3.0), (3e7, 0.0, 0.0))
SPLITS = (("search", "select", "report"), ("search", "select"), ("search",))


@pytest.fixture(scope="module")
def runner_and_archive(tiny_job):
    """An archive whose scores a worker made, and that worker."""
    from evaluators.harness_suite import build_manifest
    from workers.job import JobRunner, WorkerSpec
    from workers.sources import resolve_sources

    job = tiny_job()
    sources = resolve_sources(job.models)
    manifest = build_manifest(job.objectives, job.evaluation)
    space = SearchSpace(job, sources)
    num_threads = torch.get_num_threads()
    runner = JobRunner(WorkerSpec(job, sources, manifest), "worker-1")
    with Archive.create(
        Path(job.archive), job=job, job_path=None, sources=sources, manifest=manifest
    ) as archive:
        for index, weights in enumerate(WEIGHTS):
            recipe = space.recipe([[weight] for weight in weights], [[0.0]] * 3)
            genotype = space.encode(recipe.weights, recipe.drop_ratios)
            archive.record_proposal(Candidate(index, genotype, recipe, "strategy:cma", seen=index))
            for split in SPLITS[index]:
                key = EvaluationKey(index, split)
                archive.record_outcome(runner.run(EvaluationRequest(key, recipe)))
        archive.record_choice(0, "for the test")
        yield runner, archive
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def _dtypes_differ(monkeypatch):
    """Models this small score the same in both dtypes: add something, so that a mix-up shows."""
    from workers.job import JobRunner

    run = JobRunner.run

    def shifted(runner, request, attempt=1):
        outcome = run(runner, request, attempt)
        if request.recipe.dtype == "float32" or not isinstance(outcome, Completed):
            return outcome
        scores = {
            task: replace(found, values=found.values + np.arange(found.values.size) / 8)
            for task, found in outcome.task_scores.items()
        }
        return replace(outcome, task_scores=scores)

    monkeypatch.setattr(JobRunner, "run", shifted)


@pytest.fixture
def archive(runner_and_archive):
    return runner_and_archive[1]


def chosen(archive, index):
    return choose(archive, recipe_id=archive.candidate(index).recipe.recipe_id)


def scored_directly(runner, recipe) -> Completed:
    outcome = runner.run(EvaluationRequest(EvaluationKey(0, "report"), recipe))
    assert isinstance(outcome, Completed), outcome
    return outcome


def test_the_dtype_that_was_searched_is_no_other_one(archive):
    assert in_dtype(chosen(archive, 0), "float32") is None
    other = in_dtype(chosen(archive, 0), "bfloat16")
    assert other.recipe.recipe_id != archive.candidate(0).recipe.recipe_id


def test_another_dtype_gets_its_own_scores_beside_the_recorded_ones(runner_and_archive):
    runner, archive = runner_and_archive
    choice = chosen(archive, 0)
    found = rescore(archive, choice, in_dtype(choice, "bfloat16"))
    alone = scored_directly(runner, found.recipe)
    objectives = archive.job.objectives
    recorded = archive.task_scores(0, "report")
    assert found.rescored.weights_digest == alone.weights_digest != archive.weights_digest(0)
    assert found.rescored.scores == aggregate(objectives, alone.task_scores)
    assert found.rescored.recorded == archive.scores("report")[0]
    assert found.rescored.mean_difference == paired_difference(
        objectives, archive.job.preference, alone.task_scores, recorded
    )
    assert found.rescored.mean_difference.mean == pytest.approx(0.1875)
    for name, difference in found.rescored.differences.items():
        task = objectives[name].tasks[0].task
        gaps = alone.task_scores[task].values - recorded[task].values
        assert difference.mean == pytest.approx(gaps.mean())
        assert difference.stderr == pytest.approx(gaps.std(ddof=1) / np.sqrt(gaps.size))


def test_what_has_no_report_scores_is_scored_as_searched_too(runner_and_archive):
    runner, archive = runner_and_archive
    choice = chosen(archive, 1)
    said = []
    found = rescore(archive, choice, in_dtype(choice, "bfloat16"), announce=said.append)
    alone = scored_directly(runner, choice.candidate.recipe)
    assert found.rescored.recorded == aggregate(archive.job.objectives, alone.task_scores)
    assert any("float32, of which no such scores are recorded" in text for text in said)


def test_rescoring_leaves_the_archive_as_it_was(archive):
    file = archive.place.path
    before = file.read_bytes(), len(archive.candidates()), len(archive.outcomes("report"))
    choice = chosen(archive, 1)
    rescore(archive, choice, in_dtype(choice, "bfloat16"))
    after = file.read_bytes(), len(archive.candidates()), len(archive.outcomes("report"))
    assert before == after


def test_a_job_of_a_cluster_is_scored_with_one_worker_here(archive, monkeypatch):
    workers = archive.job.workers.model_copy(
        update={"address": "ray://head:10001", "device": "cuda", "count": 8, "gpus": 1.0}
    )
    monkeypatch.setattr(archive, "_job", archive.job.model_copy(update={"workers": workers}))
    choice = chosen(archive, 0)
    if torch.cuda.is_available():
        pytest.skip("this machine has the device that the job asks for")
    with pytest.raises(ConfigError, match="torch finds no CUDA device here"):
        rescore(archive, choice, in_dtype(choice, "bfloat16"))


def test_a_merge_beyond_the_range_of_a_dtype_is_an_error_that_names_it(archive):
    choice = chosen(archive, 2)
    with pytest.raises(
        EvaluationError, match=r"cannot be scored in float16 \(\w+: .*leave --score"
    ):
        rescore(archive, choice, in_dtype(choice, "float16"))


def test_recorded_weights_that_come_out_differently_here_are_not_compared(archive, monkeypatch):
    choice = chosen(archive, 1)
    monkeypatch.setattr(archive, "weights_digest", lambda index: "0" * 32)
    with pytest.raises(CheckpointError, match=r"0{32} was scored; nothing was exported"):
        rescore(archive, choice, in_dtype(choice, "bfloat16"))


def test_export_writes_the_dtype_that_was_scored_and_its_scores(archive, tmp_path):
    from transformers import AutoModelForCausalLM

    choice = chosen(archive, 0)
    other = rescore(archive, choice, in_dtype(choice, "bfloat16"))
    done = export(archive, choice, tmp_path / "merged", other=other)
    assert done.recipe_id == other.recipe.recipe_id
    assert done.weights_digest == other.rescored.weights_digest
    model = AutoModelForCausalLM.from_pretrained(done.directory)
    assert model.dtype == torch.bfloat16
    content = json.loads((done.directory / "recipe.json").read_text())
    assert content["recipe"]["dtype"] == "bfloat16"
    assert content["weights_digest"] == done.weights_digest
    assert content["scores"].keys() == {"report"}
    assert content["searched_as"]["recipe_id"] == archive.candidate(0).recipe.recipe_id
    card = (done.directory / "README.md").read_text()
    for name, score in other.rescored.scores.items():
        recorded = archive.scores("report")[0][name]
        assert (
            f"| {name} | {score.value:.3f} ± {score.stderr:.3f} ({score.count}) | "
            f"{recorded.value:.3f} ± {recorded.stderr:.3f} ({recorded.count}) |"
        ) in card
        # What only the searched dtype scored is not claimed here.
        of_search = archive.scores("search")[0][name]
        assert f"({of_search.count})" not in card
    assert "**These weights are `bfloat16`, and the search made and scored `float32`.**" in card
    assert "--dtype bfloat16 --score --out merged" in card


def test_export_refuses_another_dtype_whose_bits_are_not_the_scored_ones(archive, tmp_path):
    choice = chosen(archive, 0)
    other = rescore(archive, choice, in_dtype(choice, "bfloat16"))
    other = replace(other, rescored=replace(other.rescored, weights_digest="0" * 32))
    with pytest.raises(CheckpointError, match=r"0{32} was scored; nothing was exported"):
        export(archive, choice, tmp_path / "merged", other=other)
    assert list(tmp_path.iterdir()) == []


def test_export_of_another_dtype_without_scores_claims_none(archive, tmp_path):
    choice = chosen(archive, 0)
    done = export(archive, choice, tmp_path / "merged", other=in_dtype(choice, "float16"))
    content = json.loads((done.directory / "recipe.json").read_text())
    assert content["scores"] == {}
    assert content["searched_as"]["scores"].keys() == {"search", "select", "report"}
    card = (done.directory / "README.md").read_text()
    assert "These weights were not scored; those of `float32` were." in card
    assert "±" not in card
    assert "equal to that of the weights that were scored" not in card
    assert "\n\n\n" not in card
