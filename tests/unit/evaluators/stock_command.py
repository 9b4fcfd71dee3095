"""The stock ``lm_eval`` command on an exported checkpoint, and our scores beside its own."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from evaluators.evaluator import Evaluation
from evaluators.harness import HarnessEvaluator

ROOT = Path(__file__).parents[3]
# The command itself, but programs that a model wrote run in the sandbox there too.
COMMAND = (
    "from evaluators.code_eval import sandboxed_code_eval\n"
    "from lm_eval.__main__ import cli_evaluate\n"
    "with sandboxed_code_eval():\n"
    "    cli_evaluate()\n"
)


@dataclass(frozen=True)
class StockRun:
    """What the command wrote: task -> position -> filter -> sample, and task -> metrics."""

    samples: dict[str, dict[int, dict[str, dict]]]
    results: dict[str, dict[str, float]]


def run_stock(
    directory: Path,
    samples: dict[str, list[int]],
    out: Path,
    *,
    include_path: Path | str,
    cwd: Path | str,
    options: Sequence[str] = (),
) -> StockRun:
    """Run the command on items of some tasks, greedily, in float32 and batches of 5."""
    command = [sys.executable, "-c", COMMAND, "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={directory},dtype=float32", "--batch_size", "5"]
    command += ["--tasks", ",".join(samples), "--include_path", str(include_path)]
    command += ["--samples", json.dumps(samples), "--log_samples", "--output_path", str(out)]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    result = subprocess.run(
        [*command, *options],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, dict[int, dict[str, dict]]] = {}
    for task in samples:
        (path,) = out.rglob(f"samples_{task}_*.jsonl")
        found[task] = {}
        for line in path.read_text().splitlines():
            sample = json.loads(line)
            found[task].setdefault(sample["doc_id"], {})[sample["filter"]] = sample
    (path,) = out.rglob("results_*.json")
    return StockRun(found, json.loads(path.read_text())["results"])


def evaluate_after_swaps(
    evaluator: HarnessEvaluator, directories: Sequence[Path], load
) -> Evaluation:
    """Evaluate each checkpoint in the live model of the last; return what the last one got."""
    live = load(directories[-1])
    items = evaluator.manifest.items("report")
    for directory in directories[:-1]:
        live.swap(directory)
        evaluator.evaluate(live, items)
    live.swap(directories[-1])
    return evaluator.evaluate(live, items)


def assert_equal_to_stock(
    evaluator: HarnessEvaluator, ours: Evaluation, stock: StockRun, *, min_texts: int
) -> None:
    """Compare texts, scores of items, and the tasks' scores; texts must not all be alike."""
    texts: set[str] = set()
    for name, ids in evaluator.manifest.items("report").items():
        task, scores = evaluator.suite.tasks[name], ours.task_scores[name]
        assert sorted(stock.samples[name]) == sorted(task.indices[item] for item in ids)
        for index, item in enumerate(ids):
            theirs = stock.samples[name][task.indices[item]][task.key.filter]
            value, weight = task.key.item_score(theirs, name)
            assert scores.values[index] == pytest.approx(value, abs=1e-5)
            assert (1.0 if scores.weights is None else scores.weights[index]) == weight
            if name in ours.texts:
                assert ours.texts[name][index] == theirs["resps"][0][0]
                texts.add(ours.texts[name][index])
        printed = stock.results[name][str(task.key)]
        assert task.key.stock_value(scores.mean) == pytest.approx(printed, rel=1e-5, abs=1e-9)
    assert len(texts) >= min_texts
