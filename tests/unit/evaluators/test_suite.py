"""A job's tasks and scorers behind one suite and one evaluator."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from configs.errors import ConfigError, EvaluationError
from configs.evaluation import Objective
from evaluators.harness import HarnessEvaluator
from evaluators.job_evaluator import JobEvaluator
from evaluators.manifest import Manifest
from evaluators.suite import JobSuite

SCORER = """
def length(model, tokenizer, items, *, batch_size):
    return [model.lm_head.weight.mean() * len(item["text"]) for item in items]
"""


@pytest.fixture
def scorer(tmp_path: Path) -> Callable[..., dict[str, object]]:
    (tmp_path / "metrics.py").write_text(SCORER)
    lines = [json.dumps({"text": "x" * n}) for n in range(40)]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))

    def make(name: str, **spec: object) -> dict[str, object]:
        files = {"scorer": f"{tmp_path}/metrics.py:length", "items": f"{tmp_path}/items.jsonl"}
        return files | {"name": name} | spec

    return make


@pytest.fixture
def mixed(scorer) -> dict[str, Objective]:
    return {
        "first": Objective(tasks=[scorer("a"), {"task": "tiny_choice", "metric": "acc"}]),
        "second": Objective(tasks=[{"task": "tiny_text", "metric": "vowels"}, scorer("b")]),
    }


def test_manifest_and_descriptions_are_in_the_order_of_the_job(mixed, settings) -> None:
    suite = JobSuite(mixed, settings)
    names = ("a", "tiny_choice", "tiny_text", "b")
    assert suite.manifest.tasks == names
    for split, size in (("search", 8), ("select", 4), ("report", 12)):
        assert tuple(suite.manifest.items(split)) == names
        assert {
            name: len(ids) for name, ids in suite.manifest.items(split).items()
        } == dict.fromkeys(names, size)
    assert [(d.objective, d.task, d.output_type) for d in suite.describe()] == [
        ("first", "a", "scorer"),
        ("first", "tiny_choice", "multiple_choice"),
        ("second", "tiny_text", "generate_until"),
        ("second", "b", "scorer"),
    ]
    assert Manifest.from_json(suite.manifest.to_json()) == suite.manifest


def test_manifest_of_tasks_is_what_it_is_without_scorers(mixed, settings, scorer) -> None:
    alone = {"o": Objective(tasks=["tiny_shots"])}
    both = {"o": Objective(tasks=["tiny_shots", scorer("a")])}
    assert (
        JobSuite(both, settings).manifest.restricted_to(["tiny_shots"])
        == JobSuite(alone, settings).manifest
    )


def test_evaluator_scores_both_kinds_as_each_alone(mixed, settings, live) -> None:
    manifest = JobSuite(mixed, settings).manifest
    evaluator = JobEvaluator(mixed, settings, manifest)
    evaluator.prepare(live, "search")
    items = manifest.items("search")
    found = evaluator.evaluate(live, items)
    assert list(found.task_scores) == list(items)
    assert {"forward", "score", "scorer"} <= found.seconds.keys()
    assert found.texts.keys() == {"tiny_text"}
    tasks = manifest.restricted_to(["tiny_choice", "tiny_text"])
    lm_eval = HarnessEvaluator(mixed, settings, tasks).evaluate(live, tasks.items("search"))
    for name, part in lm_eval.task_scores.items():
        np.testing.assert_array_equal(found.task_scores[name].values, part.values)
    scale = float(live.model.lm_head.weight.detach().mean())
    lengths = found.task_scores["a"].values / scale
    np.testing.assert_allclose(lengths, np.round(lengths), atol=1e-4)
    np.testing.assert_array_equal(found.task_scores["a"].values, found.task_scores["b"].values)


def test_evaluator_scores_what_it_is_asked_for_only(mixed, settings, live) -> None:
    manifest = JobSuite(mixed, settings).manifest
    evaluator = JobEvaluator(mixed, settings, manifest)
    (first, *_) = manifest.items("report")["b"]
    found = evaluator.evaluate(live, {"b": (first,)})
    assert list(found.task_scores) == ["b"]
    assert found.seconds.keys() == {"scorer"}
    with pytest.raises(EvaluationError, match="`none` is not in the manifest"):
        evaluator.evaluate(live, {"none": ("x",)})


@pytest.mark.slow
def test_everything_wrong_is_told_at_once(scorer, settings, tmp_path) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "a"}\n')
    objectives = {
        "o": Objective(
            tasks=["no_such_task", scorer("few", items=f"{tmp_path}/few.jsonl"),
                   scorer("gone", scorer=f"{tmp_path}/metrics.py:gone")]
        )
    }  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        JobSuite(objectives, settings)
    paths = [problem.path for problem in caught.value.problems]
    assert paths == [
        "objectives.o.no_such_task",
        "objectives.o.gone.scorer",
        "objectives.o.few.items",
    ]
    assert "has 1 distinct items, but the splits ask for" in caught.value.problems[2].message


def test_job_without_tasks_imports_no_lm_eval(scorer, settings) -> None:
    code = f"""
import sys
from configs.evaluation import EvaluationSettings, Objective
from evaluators.suite import JobSuite
objectives = {{"o": Objective(tasks=[{scorer("a")!r}])}}
settings = EvaluationSettings(splits={{"search": 8, "select": 4, "report": 12}})
suite = JobSuite(objectives, settings)
print([name for name in ("lm_eval", "datasets", "torch", "ray") if name in sys.modules])
# Who evaluates has a model, and torch with it.
from evaluators.job_evaluator import JobEvaluator
JobEvaluator(objectives, settings, suite.manifest)
print([name for name in ("lm_eval", "datasets", "ray") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[3], capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["[]", "[]"]
