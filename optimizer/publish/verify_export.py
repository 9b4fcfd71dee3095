"""Scoring an exported checkpoint anew with stock lm-eval, and comparing with the archive's scores.

:func:`verify` runs the stock ``lm_eval`` command in a process of its own on the directory, with the
task definitions and items that the search used, and compares item by item. The job's own scorers
are called on the directory as transformers loads it. In float32 on the CPU the scores must be
equal; in other data types they are at identical batches only. The command scores with the seeds
that the search set before each item, since stock IFEval draws random letters. Tasks that are scored
by the likelihood of reference answers are left out: the stock command has no such metric.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import ArchiveError, CheckpointError, EvaluationError
from configs.evaluation import SPLITS, SplitName
from configs.schema import DtypeName, JobConfig
from evaluators.evaluator import LiveModel
from evaluators.harness_suite import Suite
from evaluators.python_scorer import ScorerEvaluator
from evaluators.scores import Items, TaskScores
from evaluators.suite import JobSuite
from optimizer.archive.archive import Archive
from workers.architecture import model_class

# Discrete scores are equal; loglikelihoods of other batch compositions differ in the last bits.
TOLERANCE = 1e-3
# For `batch_size: auto`, which the stock command searches for on GPUs only.
_ROWS = 8
# The command itself, but scorers are seeded, and programs that a model wrote run in the job's
# sandbox.
_COMMAND = (
    "from evaluators.code_eval import sandboxed_code_eval\n"
    "from evaluators.harness_scoring import seeded_stock_scorers\n"
    "from evaluators.sandbox import select_sandbox\n"
    "from lm_eval.__main__ import cli_evaluate\n"
    "select_sandbox({kind!r})\n"
    "with sandboxed_code_eval(), seeded_stock_scorers():\n"
    "    cli_evaluate()\n"
)
# Items that are shown of each task.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class ItemDifference:
    """An item whose two scores differ; ``found`` is None where it was not scored anew."""

    item: str
    recorded: float
    found: float | None

    @property
    def size(self) -> float:
        """By how much; infinite where there is nothing to compare with."""
        return float("inf") if self.found is None else abs(self.found - self.recorded)


@dataclass(frozen=True, slots=True)
class TaskCheck:
    """The comparison of one task: its items, and those whose scores differ."""

    task: str
    num_items: int
    differences: tuple[ItemDifference, ...]

    @property
    def lines(self) -> list[str]:
        """The comparison in words, the first differences below."""
        if not self.differences:
            return [f"{self.task}: {self.num_items} items, equal"]
        count = len(self.differences)
        shown = [
            f"  item {gap.item}: recorded {gap.recorded:g}, "
            + ("not scored" if gap.found is None else f"now {gap.found:g}")
            for gap in self.differences[:_SHOWN]
        ]
        more = [f"  and {count - _SHOWN} more"] if count > _SHOWN else []
        return [f"{self.task}: {count} of {self.num_items} items differ", *shown, *more]


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of scoring a directory anew.

    Attributes:
        directory: What was scored.
        candidate: Whose recorded scores it was compared with.
        split: Whose items.
        tasks: One comparison per task.
        left_out: Tasks that the stock command cannot score.
        dtype: Data type of the weights.
    """

    directory: Path
    candidate: int
    split: SplitName
    tasks: tuple[TaskCheck, ...]
    left_out: tuple[str, ...]
    dtype: DtypeName

    @property
    def is_equal(self) -> bool:
        """Whether something was compared, and every item of it scores the same."""
        return self.num_items > 0 and not any(check.differences for check in self.tasks)

    @property
    def num_items(self) -> int:
        """Items that were compared."""
        return sum(check.num_items for check in self.tasks)

    @property
    def sentence(self) -> str:
        """The result in words."""
        head = f"scored anew: {self.directory}, {self.num_items} items of {self.split}: "
        if self.is_equal:
            return f"{head}equal"
        count = sum(len(check.differences) for check in self.tasks)
        why = "" if self.dtype == "float32" else f"; in {self.dtype} scores depend on batches"
        return f"{head}NOT equal, {count} items differ{why}"

    @property
    def lines(self) -> list[str]:
        """Everything in words: what was left out, task by task, and the result."""
        return [
            *(f"left out: {task}, whose metric stock lm-eval lacks" for task in self.left_out),
            *(line for check in self.tasks for line in check.lines),
            self.sentence,
        ]

    def record(self) -> dict[str, object]:
        """Return it as JSON."""
        return {
            "equal": self.is_equal,
            "split": self.split,
            "items": self.num_items,
            "left_out": list(self.left_out),
            "tasks": {
                check.task: {
                    "items": check.num_items,
                    "differences": [
                        {"item": gap.item, "recorded": gap.recorded, "found": gap.found}
                        for gap in check.differences
                    ],
                }
                for check in self.tasks
            },
        }


def verify(archive: Archive, directory: Path, split: SplitName | None = None) -> Verification:
    """Score an exported checkpoint anew and compare it with its archive.

    Args:
        archive: The record of the search that it was exported from.
        directory: The checkpoint.
        split: Whose items; None takes the last split on which the archive has its scores: report,
            else select, else what it was scored on in the search.

    Raises:
        ArchiveError: The archive has no scores of this recipe (on the split).
        CheckpointError: The directory was not exported from this archive.
        EvaluationError: The stock command or a scorer failed, or can score none of the tasks.
    """
    candidate, dtype = _candidate_of(archive, directory)
    split, ours = _recorded(archive, candidate, split)
    job = archive.job
    suite = JobSuite(job.objectives, job.evaluation)
    items = {task: list(scores.item_ids) for task, scores in ours.items()}
    left_out = [] if suite.lm_eval is None else unknown_to_stock(suite.lm_eval)
    for task in left_out:
        items.pop(task, None)
    if not any(items.values()):
        raise EvaluationError(
            f"nothing can be compared: {', '.join(left_out)} are scored by the likelihood of "
            "reference answers, which stock lm-eval lacks, and nothing else was scored"
        )
    checks: list[TaskCheck] = []
    if suite.lm_eval is not None:
        asked = {task: items[task] for task in suite.lm_eval.tasks if task in items}
        checks += compare_with_stock(directory, suite.lm_eval, asked, ours, dtype=dtype)
    if own := {task: items[task] for task in suite.scorers if task in items}:
        again = rescore(directory, suite, job, own)
        checks += [_compare_scorer(ours[task], again[task]) for task in own]
    return Verification(directory, candidate, split, tuple(checks), tuple(left_out), dtype)


def _recorded(
    archive: Archive, candidate: int, split: SplitName | None
) -> tuple[SplitName, dict[str, TaskScores]]:
    """Return the recorded scores to compare with; of a stopped candidate those that it has."""
    if split is not None:
        found = archive.scored_items(candidate, split)
        return split, found or archive.task_scores(candidate, split)
    for name in reversed(SPLITS):
        if found := archive.scored_items(candidate, name):
            return name, found
    raise ArchiveError(
        f"candidate {candidate} of archive {archive.place} was never scored, so there is nothing "
        "to compare with",
        candidate=candidate,
    )


def unknown_to_stock(suite: Suite) -> list[str]:
    """Return the tasks that are scored by the likelihood of their reference answers."""
    return [
        name
        for name, task in suite.tasks.items()
        if task.reference is not None and task.reference.is_objective
    ]


def compare_with_stock(
    directory: Path,
    suite: Suite,
    items: Items,
    ours: Mapping[str, TaskScores],
    *,
    dtype: DtypeName = "float32",
) -> list[TaskCheck]:
    """Score items by the stock command on the CPU, and compare them task by task.

    Raises:
        EvaluationError: The command failed.
    """
    if not items:
        return []
    with tempfile.TemporaryDirectory() as place:
        stock = run_stock(directory, suite, items, Path(place), dtype=dtype)
    return [_compare(suite, ours[task], stock[task]) for task in items]


def rescore(
    directory: Path, suite: JobSuite, job: JobConfig, items: Items
) -> dict[str, TaskScores]:
    """Call the job's own scorers on a checkpoint as anybody would load it, on the CPU.

    Raises:
        EvaluationError: A scorer fails.
    """
    import torch
    import transformers

    torch.set_num_threads(job.workers.threads)
    config = json.loads((directory / "config.json").read_text())
    model = model_class(config).from_pretrained(directory, dtype="auto", use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    evaluator = ScorerEvaluator(suite.scorers.values(), batch_size=job.evaluation.batch_size)
    return evaluator.evaluate(LiveModel(model.eval(), tokenizer), items).task_scores


def run_stock(
    directory: Path, suite: Suite, items: Items, place: Path, *, dtype: DtypeName = "float32"
) -> dict[str, list[dict[str, Any]]]:
    """Run the stock command on a checkpoint; returns task -> its logged samples.

    Args:
        directory: The checkpoint.
        suite: The tasks as the job has them, and its settings.
        items: Task -> item ids.
        place: An empty directory, for the tasks' YAMLs and what the command writes.
        dtype: Data type in which the model is loaded.

    Raises:
        EvaluationError: The command failed; the message holds the end of what it printed.
    """
    settings, samples = suite.settings, suite.stock_samples(items)
    tasks, out = place / "tasks", place / "out"
    tasks.mkdir()
    for task in samples:
        (tasks / f"{task}.yaml").write_text(suite.tasks[task].stock)
    command = [sys.executable, "-c", _COMMAND.format(kind=settings.sandbox), "run"]
    command += ["--model", "hf", "--device", "cpu"]
    # As JSON: in the form `key=value,...` a comma in the path would end it. The command runs in
    # another directory, so the path is absolute.
    arguments = {"pretrained": str(directory.absolute()), "dtype": dtype}
    command += ["--model_args", json.dumps(arguments)]
    rows = _ROWS if settings.batch_size == "auto" else settings.batch_size
    command += ["--batch_size", str(rows), "--tasks", ",".join(samples)]
    command += ["--include_path", str(tasks)]
    if settings.apply_chat_template:
        command.append("--apply_chat_template")
    if settings.allow_code_execution:
        command.append("--confirm_run_unsafe_code")
    command += ["--samples", json.dumps(samples), "--log_samples", "--output_path", str(out)]
    done = subprocess.run(
        command, cwd=settings.data_dir, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        shown = " ".join(["lm_eval", *command[3:]])
        raise EvaluationError(f"`{shown}` failed:\n{done.stderr[-2000:]}")
    found = {}
    for task in samples:
        (path,) = out.rglob(f"samples_{task}_*.jsonl")
        found[task] = [json.loads(line) for line in path.read_text().splitlines()]
    return found


def _candidate_of(archive: Archive, directory: Path) -> tuple[int, DtypeName]:
    """Return which candidate a directory was exported from, and its data type."""
    path = directory / "recipe.json"
    try:
        recipe_id = json.loads(path.read_text(encoding="utf-8"))["recipe_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; give an exported model") from error
    for candidate in archive.candidates():
        if candidate.recipe.recipe_id == recipe_id:
            return candidate.index, candidate.recipe.dtype
    raise CheckpointError(
        f"{path}: recipe {str(recipe_id)[:12]} is not in {archive.place}; give the archive that "
        "the checkpoint was exported from"
    )


def _compare(suite: Suite, ours: TaskScores, stock: list[dict[str, Any]]) -> TaskCheck:
    """Compare a task's items with the samples that the stock command logged."""
    task = suite.tasks[ours.task]
    theirs = {
        sample["doc_id"]: task.key.item_score(sample, f"{ours.task}, {sample['doc_id']}")[0]
        for sample in stock
        if sample["filter"] == task.key.filter
    }
    return _check(ours, [theirs.get(task.indices[item]) for item in ours.item_ids])


def _compare_scorer(ours: TaskScores, again: TaskScores) -> TaskCheck:
    """Compare a scorer's items with what it says now."""
    found = dict(zip(again.item_ids, again.values.tolist(), strict=True))
    return _check(ours, [found.get(item) for item in ours.item_ids])


def _check(ours: TaskScores, again: list[float | None]) -> TaskCheck:
    gaps = (
        ItemDifference(item, float(value), other)
        for item, value, other in zip(ours.item_ids, ours.values, again, strict=True)
    )
    return TaskCheck(ours.task, len(again), tuple(gap for gap in gaps if gap.size > TOLERANCE))
