"""JobRunner on tiny real models and real lm-eval tasks."""

import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest

from configs.errors import CheckpointError, EvaluationError
from configs.recipe import Group, MergeRecipe, Source
from configs.worker_settings import WorkerSettings
from evaluators.blocks import WHOLE, block_name, partition, union
from workers.outcome import Completed, EvaluationKey, EvaluationRequest, Failed, Stage


@pytest.fixture(scope="module")
def spec(tiny_job):
    from evaluators.harness_suite import build_manifest
    from workers.job import WorkerSpec
    from workers.sources import resolve_sources

    job = tiny_job()
    return WorkerSpec(
        job, resolve_sources(job.models), build_manifest(job.objectives, job.evaluation)
    )


@pytest.fixture(scope="module")
def built_runner(spec):
    import torch

    from workers.job import JobRunner

    num_threads = torch.get_num_threads()
    yield JobRunner(spec, "worker-1")
    torch.set_num_threads(num_threads)


@pytest.fixture
def runner(built_runner):
    """The runner without a memory of the test before: what its model holds is not merged again."""
    built_runner._held = None
    return built_runner


@pytest.fixture
def make_request(spec):
    def make(*weights, split="search", items=None, **changes):
        sources = spec.sources
        recipe = {
            "method": "dare_linear",
            "base": Source(name="base", digest=sources.base.digest),
            "checkpoints": tuple(
                Source(name=one.name, digest=one.digest) for one in sources.checkpoints
            ),
            "groups": (Group(name="all", patterns=(".*",)),),
            "weights": tuple((weight,) for weight in weights),
            "drop_ratios": ((0.25,),) * len(weights),
            "dtype": "float32",
        }
        key = EvaluationKey(7, split, WHOLE if items is None else block_name(items))
        return EvaluationRequest(key, MergeRecipe(**(recipe | changes)), items)

    return make


def assert_same_scores(a, b):
    assert a.weights_digest == b.weights_digest
    assert a.texts == b.texts
    assert a.task_scores.keys() == b.task_scores.keys()
    for task, scores in a.task_scores.items():
        assert scores.item_ids == b.task_scores[task].item_ids
        np.testing.assert_array_equal(scores.values, b.task_scores[task].values)


def test_runner_scores_every_item_of_the_split(runner, spec, make_request):
    outcome = runner.run(make_request(0.5, 0.4, 0.3, split="select"), attempt=2)
    assert isinstance(outcome, Completed)
    assert (outcome.key, outcome.attempt, outcome.worker) == (
        EvaluationKey(7, "select"),
        2,
        "worker-1",
    )
    items = spec.manifest.items("select")
    assert {task: scores.item_ids for task, scores in outcome.task_scores.items()} == items
    assert {scores.values.size for scores in outcome.task_scores.values()} == {4}
    assert len(outcome.texts["tiny_text"]) == 4
    assert {"materialize", "digest", "forward", "score"} <= outcome.seconds.keys()
    assert all(seconds >= 0 for seconds in outcome.seconds.values())


def test_blocks_have_the_scores_that_their_items_have_in_the_whole(runner, spec, make_request):
    weights = (0.5, 0.4, 0.3)
    split = spec.manifest.items("search")
    whole = runner.run(make_request(*weights))
    parts = [runner.run(make_request(*weights, items=b)) for b in partition(split, (1, 2, 1))]
    between = runner.run(make_request(9.0, 9.0, 9.0, items={"tiny_text": split["tiny_text"][:1]}))
    assert between.weights_digest != whole.weights_digest
    assert [part.task_scores.keys() for part in parts] == [split.keys()] * 3
    for part in parts:
        assert part.weights_digest == whole.weights_digest
        for task, texts in part.texts.items():
            rows = [split[task].index(item) for item in part.task_scores[task].item_ids]
            assert texts == tuple(whole.texts[task][row] for row in rows)
    together = union([part.task_scores for part in parts], split)
    for task, scores in whole.task_scores.items():
        assert together[task].item_ids == scores.item_ids
        np.testing.assert_array_equal(together[task].values, scores.values)


def test_next_block_of_a_recipe_is_scored_in_the_tensors_that_the_model_holds(
    runner, spec, make_request, monkeypatch
):
    merged = []
    materialize = runner._materializer.into

    def watched(model, recipe):
        merged.append(recipe.recipe_id)
        return materialize(model, recipe)

    monkeypatch.setattr(runner._materializer, "into", watched)
    split = spec.manifest.items("search")
    first, second = partition(split, (1, 1))
    one, other = make_request(0.31, 0.1, 0.2).recipe, make_request(0.7, 0.1, 0.2).recipe
    begun = runner.run(make_request(0.31, 0.1, 0.2, items=first))
    rest = runner.run(make_request(0.31, 0.1, 0.2, items=second))
    assert merged == [one.recipe_id]
    assert "materialize" not in rest.seconds
    assert rest.weights_digest == begun.weights_digest
    whole = runner.run(make_request(0.7, 0.1, 0.2))
    again = runner.run(make_request(0.31, 0.1, 0.2, items=second))
    assert merged == [one.recipe_id, other.recipe_id, one.recipe_id]
    assert_same_scores(rest, again)
    assert whole.weights_digest != begun.weights_digest


def test_tensors_are_not_trusted_after_a_failure(runner, spec, make_request, monkeypatch):
    request = make_request(0.32, 0.1, 0.2)
    before = runner.run(request)

    def fail(live, items, companions=None):
        for parameter in live.model.parameters():
            parameter.data.zero_()
        raise EvaluationError("stopped half way")

    with monkeypatch.context() as patched:
        patched.setattr(runner._evaluator, "evaluate", fail)
        assert isinstance(runner.run(request), Failed)
    assert_same_scores(runner.run(request), before)


def test_outcome_brings_the_companions_that_the_job_asks_for(tiny_job, spec, make_request):
    from dataclasses import replace

    from workers.job import JobRunner

    content = spec.job.model_dump(mode="json")
    for objective in content["objectives"].values():
        for task in objective["tasks"]:
            task["companion"] = True
    asking = JobRunner(replace(spec, job=type(spec.job).model_validate(content)), "worker-2")
    outcome = asking.run(make_request(0.5, 0.4, 0.3))
    assert isinstance(outcome, Completed), outcome
    request = make_request(0.5, 0.4, 0.3)
    alone = asking.run(replace(request, key=replace(request.key, signal="companions")))
    assert (alone.task_scores, alone.texts) == ({}, {})
    assert alone.weights_digest == outcome.weights_digest
    for task, part in alone.companions.items():
        np.testing.assert_allclose(part.values, outcome.companions[task].values, rtol=1e-5)
    _, rest = partition(spec.manifest.items("search"), (1, 1))
    later = asking.run(replace(request, companions=rest))
    assert {task: part.item_ids for task, part in later.companions.items()} == rest
    assert_same_scores(later, outcome)
    assert outcome.companions.keys() == outcome.task_scores.keys()
    for task, part in outcome.companions.items():
        assert part.item_ids == outcome.task_scores[task].item_ids
        assert (part.values < 0).all()


def test_request_is_refused_when_its_items_are_not_those_of_its_block(make_request):
    items = {"tiny_text": ("a", "b")}
    recipe = make_request(1.0, 1.0, 1.0).recipe
    for block, asked in ((WHOLE, items), (block_name(items), None), ("0123", items)):
        with pytest.raises(ValueError, match="the key names block"):
            EvaluationRequest(EvaluationKey(7, "search", block), recipe, asked)


def test_runner_scores_what_export_writes(runner, spec, make_request, tmp_path):
    from workers.merged_checkpoint import write_checkpoint

    request = make_request(0.9, -0.2, 0.4)
    written = write_checkpoint(request.recipe, spec.sources, tmp_path / "merge")
    assert runner.run(request).weights_digest == written


def test_runner_forgets_the_candidate_before(runner, make_request):
    first, other = make_request(30.0, 0.0, 0.0), make_request(0.0, -40.0, 25.0)
    alone = runner.run(first)
    between = runner.run(other)
    again = runner.run(first)
    assert between.texts != alone.texts, "the two merges do not even differ"
    assert_same_scores(again, alone)


def test_runner_reports_a_recipe_of_unknown_sources_as_failed(runner, make_request):
    strangers = tuple(Source(name=name, digest="f" * 64) for name in "abc")
    outcome = runner.run(make_request(1.0, 1.0, 1.0, checkpoints=strangers))
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.error_class) == (Stage.MATERIALIZE, "CheckpointError")
    assert "ffffffffffff" in outcome.message
    assert isinstance(runner.run(make_request(0.1, 0.1, 0.1)), Completed)


def test_runner_reports_logits_that_are_not_finite_as_failed(runner, make_request, monkeypatch):
    materialize = runner._materializer.into

    def spoil(model, recipe):
        materialize(model, recipe)
        model.get_parameter("model.norm.weight").fill_(float("nan"))

    monkeypatch.setattr(runner._materializer, "into", spoil)
    outcome = runner.run(make_request(0.1, 0.1, 0.1))
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.error_class) == (Stage.EVALUATE, EvaluationError.__name__)
    assert outcome.seconds["materialize"] > 0
    monkeypatch.undo()
    assert isinstance(runner.run(make_request(0.1, 0.1, 0.1)), Completed)


@pytest.mark.parametrize("error_name", ["OutOfMemoryError", "AcceleratorError"])
def test_runner_reports_a_device_error_as_failed(runner, make_request, monkeypatch, error_name):
    import torch

    def fail(*_):
        raise getattr(torch, error_name)("out of order")

    monkeypatch.setattr(runner._evaluator, "evaluate", fail)
    outcome = runner.run(make_request(0.1, 0.1, 0.1))
    assert isinstance(outcome, Failed)
    assert (outcome.stage, outcome.error_class) == (Stage.EVALUATE, error_name)
    assert outcome.message == "out of order"


def test_runner_lets_an_interrupt_through(runner, make_request, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner._materializer, "into", interrupt)
    with pytest.raises(KeyboardInterrupt):
        runner.run(make_request(0.1, 0.1, 0.1))


def test_runner_evaluates_in_the_dtype_of_the_recipe(runner, spec, make_request, tmp_path):
    from workers.merged_checkpoint import write_checkpoint

    narrow = make_request(0.9, 0.2, 0.4, dtype="bfloat16")
    wide = make_request(0.9, 0.2, 0.4)
    before = runner.run(wide)
    written = write_checkpoint(narrow.recipe, spec.sources, tmp_path / "merge")
    assert runner.run(narrow).weights_digest == written
    assert str(runner._live.model.dtype) == "torch.bfloat16"
    assert_same_scores(runner.run(wide), before)


def test_model_before_is_gone_when_another_data_type_is_loaded(runner, make_request, monkeypatch):
    import weakref

    from workers import job

    runner.run(make_request(0.9, 0.2, 0.4))
    before = weakref.ref(runner._live.model.get_input_embeddings().weight)
    load = job.load_live_model
    held = []

    def failing(*_):
        held.append(before())
        raise MemoryError("no room")

    monkeypatch.setattr(job, "load_live_model", failing)
    outcome = runner.run(make_request(0.9, 0.2, 0.4, dtype="bfloat16"))
    assert (outcome.stage, outcome.message) == (Stage.MATERIALIZE, "no room")
    assert held == [None]
    monkeypatch.setattr(job, "load_live_model", load)
    assert isinstance(runner.run(make_request(0.9, 0.2, 0.4)), Completed)


def test_runner_works_again_after_it_was_closed(runner, make_request):
    before = runner.run(make_request(0.9, 0.2, 0.4))
    runner.close()
    assert runner._evaluator._lm_eval._runner is None
    assert_same_scores(runner.run(make_request(0.9, 0.2, 0.4)), before)


def test_live_model_has_no_gradients_and_is_in_evaluation_mode(runner):
    model = runner._live.model
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loading_says_which_directory_holds_no_model(spec, tiny_pool, tmp_path):
    from dataclasses import replace

    from workers.job import load_live_model

    directory = tmp_path / "broken"
    shutil.copytree(tiny_pool.base, directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "no-such-model"}))
    sources = replace(spec.sources, base=replace(spec.sources.base, directory=directory))
    with pytest.raises(CheckpointError, match=f"{directory}: cannot be loaded as a causal"):
        load_live_model(replace(spec, sources=sources), None)


def test_spec_survives_pickling(spec):
    assert pickle.loads(pickle.dumps(spec)) == spec  # noqa: S301 - our own bytes


def test_importing_job_and_pool_loads_no_heavy_library():
    program = (
        "import sys, workers.job, workers.pool, workers.outcome\n"
        "print(sorted({'torch', 'transformers', 'ray', 'lm_eval', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        ({"device": "cpu", "cpus": 16}, 0),
        ({"device": "cuda"}, 2),
        ({"device": "cuda", "cpus": 0.5}, 2),
        ({"device": "cuda", "cpus": 6}, 5),
        ({"device": "cuda", "cpus": 64}, 8),
        ({"device": "cuda", "cpus": 6, "scoring_processes": 0}, 0),
        ({"device": "cpu", "scoring_processes": 12}, 12),
    ],
)
def test_texts_are_scored_on_the_cores_that_are_reserved_beside_a_gpu(settings, number) -> None:
    from workers.job import scoring_processes

    assert scoring_processes(WorkerSettings.model_validate(settings)) == number
