"""Exports are verified by the stock command with the job's own examples, budgets and items."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.errors import EvaluationError
from configs.evaluation import EvaluationSettings, Objective, SplitSizes
from evaluators.harness import HarnessEvaluator
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from optimizer.publish.verify_export import (
    Verification,
    compare_with_stock,
    unknown_to_stock,
    verify,
)
from optimizer.space import SearchSpace
from tests.unit.optimizer.synthetic_archive import make_job, make_sources
from workers.outcome import Completed, EvaluationKey

# A scorer that draws, as IFEval's do.
DRAWING = """
import random

def drawn(doc, results):
    return {"drawn": random.random()}
"""
DRAWN = """
include: ../first/tiny_text.yaml
task: tiny_drawn
process_results: !function drawing.drawn
metric_list: [{metric: drawn, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def evaluator(task_directory: Path, tmp_path: Path) -> HarnessEvaluator:
    """Tasks of two own directories and a stock one, each other than its YAML says."""
    first, second, data = tmp_path / "first", tmp_path / "second", tmp_path / "data"
    shutil.copytree(task_directory, first)
    shutil.move(first / "items", data / "items")
    second.mkdir()
    shutil.move(first / "tiny_shots.yaml", second / "tiny_shots.yaml")
    shutil.copy(first / "scoring.py", second / "scoring.py")
    (second / "drawing.py").write_text(DRAWING)
    (second / "tiny_drawn.yaml").write_text(DRAWN)
    (data / "gsm8k").mkdir()
    for split, start in (("test", 0), ("train", 100)):
        rows = [
            {"question": f"What is {n} + 1?", "answer": f"It is.\n#### {n + 1}"}
            for n in range(start, start + 20)
        ]
        (data / "gsm8k" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = EvaluationSettings(
        include_path=[str(first), str(second)],
        data_dir=str(data),
        splits=SplitSizes(search=4, select=2, report=6),
        batch_size="auto",
    )
    tasks = [
        {"task": "tiny_shots", "num_fewshot": 1, "max_new_tokens": 5},
        {"task": "gsm8k", "metric": "target_bits_per_byte", "num_fewshot": 0},
        {"task": "tiny_text", "metric": "length", "max_new_tokens": 3},
        {"task": "tiny_choice", "metric": "acc_norm", "num_fewshot": 0},
        {"task": "tiny_drawn", "max_new_tokens": 3},
    ]
    return HarnessEvaluator({"o": Objective(tasks=tasks)}, settings)


@pytest.mark.slow
def test_stock_command_gives_the_scores_of_the_job_and_not_of_the_tasks_defaults(
    evaluator, load, write_checkpoint, tmp_path
) -> None:
    model = write_checkpoint(tmp_path / "model", 0, max_positions=1024)
    items = dict(evaluator.manifest.items("report"))
    ours = evaluator.evaluate(load(model), items).task_scores
    assert unknown_to_stock(evaluator.suite) == ["gsm8k"]
    del items["gsm8k"]
    found = compare_with_stock(model, evaluator.suite, items, ours)
    assert {check.task: check.num_items for check in found} == dict.fromkeys(items, 6)
    assert not any(check.differences for check in found)
    before = ours["tiny_text"].values[0]
    ours["tiny_text"].values[0] += 1.0
    found = compare_with_stock(model, evaluator.suite, items, ours)
    (check,) = [check for check in found if check.differences]
    (gap,) = check.differences
    assert (check.task, gap.item) == ("tiny_text", items["tiny_text"][0])
    assert (gap.recorded, gap.found) == (before + 1.0, before)
    assert check.lines == [
        "tiny_text: 1 of 6 items differ",
        f"  item {gap.item}: recorded {before + 1:g}, now {before:g}",
    ]


@pytest.mark.slow
def test_stock_task_is_verified_on_local_items(evaluator, load, write_checkpoint, tmp_path) -> None:
    spec = {"task": "gsm8k", "metric": "exact_match,flexible-extract", "num_fewshot": 1}
    objectives = {"o": Objective(tasks=[spec | {"max_new_tokens": 8}])}
    local = HarnessEvaluator(objectives, evaluator.suite.settings)
    # A comma is a path like any other.
    model = write_checkpoint(tmp_path / "model, v=2", 0, max_positions=1024)
    items = local.manifest.items("report")
    ours = local.evaluate(load(model), items).task_scores
    (check,) = compare_with_stock(model, local.suite, items, ours)
    assert check.lines == ["gsm8k: 6 items, equal"]


def test_export_of_which_nothing_can_be_compared_is_not_equal(evaluator, tmp_path) -> None:
    spec = {"task": "gsm8k", "metric": "target_bits_per_byte", "num_fewshot": 0}
    settings = evaluator.suite.settings.model_dump()
    job = make_job(tmp_path / "a.sqlite", evaluation=settings).model_copy(
        update={"objectives": {"o": Objective(tasks=[spec])}}
    )
    sources, manifest = make_sources(), HarnessEvaluator(job.objectives, job.evaluation).manifest
    recipe = SearchSpace(job, sources).recipe([[0.4]] * 3, [[0.0]] * 3)
    scores = TaskScores("gsm8k", manifest.items("search")["gsm8k"], np.ones(4))
    model = tmp_path / "model"
    model.mkdir()
    (model / "recipe.json").write_text(json.dumps({"recipe_id": recipe.recipe_id}))
    with Archive.create(
        tmp_path / "a.sqlite", job=job, job_path=None, sources=sources, manifest=manifest
    ) as archive:
        genes = SearchSpace(job, sources).encode(recipe.weights)
        archive.record_proposal(Candidate(0, genes, recipe, "strategy:cma", seen=0))
        key, found = EvaluationKey(0, "search"), {"gsm8k": scores}
        archive.record_outcome(
            Completed(key=key, attempt=1, worker="w", weights_digest="0" * 32, task_scores=found)
        )
        with pytest.raises(EvaluationError, match=r"nothing can be compared: gsm8k are scored"):
            verify(archive, model)
    assert not Verification(model, 0, "search", (), ("gsm8k",), "float32").is_equal
