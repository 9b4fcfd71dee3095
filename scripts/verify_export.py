"""Score an exported checkpoint anew, by the stock ``lm_eval`` command, and compare the scores.

    python scripts/verify_export.py ARCHIVE DIR [--split report]

Runs ``lm_eval`` in a process of its own on DIR, with the task definitions and items that the
search used, and compares every item's score with the one that the archive holds for the recipe
in ``DIR/recipe.json``. The job's own scorers are called on DIR as transformers loads it. In float32
on the CPU the scores must be equal; the exit code says so. The command scores with the seeds that
the search set before each item, since stock IFEval draws random letters. Tasks that are scored by
the likelihood of reference answers are left out: the stock command has no such metric.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
import transformers
import typer

from configs.errors import ArchiveError, CheckpointError, EvaluationError, MergefrontError
from configs.evaluation import SPLITS
from configs.schema import JobConfig
from evaluators.evaluator import LiveModel
from evaluators.harness import Suite
from evaluators.python_scorer import ScorerEvaluator
from evaluators.scores import Items, TaskScores
from evaluators.suite import JobSuite
from optimizer.archive import Archive
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


def main(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="Archive of the search.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The exported checkpoint.")],
    split: Annotated[str, typer.Option(help="Whose items: search, select or report.")] = "report",
) -> None:
    """Say whether the stock command gives the archive's scores, item for item."""
    try:
        differing, total = verify(archive, directory.resolve(), split)
    except MergefrontError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(error.exit_code) from None
    for line in differing[:10]:
        typer.echo(line)
    verdict = "equal" if not differing else f"NOT equal, {len(differing)} items differ"
    typer.echo(f"scored anew: {directory}, {total} items of {split}: {verdict}")
    raise typer.Exit(1 if differing else 0)


def verify(place: str, directory: Path, split: str) -> tuple[list[str], int]:
    """Compare an exported checkpoint with its archive.

    Returns:
        One line per item whose score differs, and the number of items compared.

    Raises:
        ArchiveError: The archive cannot be read, or has no scores of this recipe on the split.
        CheckpointError: The directory was not exported from this archive.
        EvaluationError: The stock command or a scorer failed.
    """
    if split not in SPLITS:
        raise ArchiveError(f"there is no split `{split}`; there are {', '.join(SPLITS)}")
    with Archive.open(place) as archive:
        candidate = _candidate_of(archive, directory)
        ours = archive.task_scores(candidate, split)
        job, manifest = archive.job, archive.manifest
    suite = JobSuite(job.objectives, job.evaluation)
    items = dict(manifest.items(split))
    differing: list[str] = []
    if suite.lm_eval is not None:
        for task in unknown_to_stock(suite.lm_eval):
            typer.echo(f"left out: {task}, whose metric the stock command does not have", err=True)
            del items[task]
        asked = {task: items[task] for task in suite.lm_eval.tasks if task in items}
        differing += compare_with_stock(directory, suite.lm_eval, asked, ours)
    if suite.scorers:
        own = {task: items[task] for task in suite.scorers}
        again = rescore(directory, suite, job, own)
        for task in own:
            differing += _compare_scorer(ours[task], again[task])
    return differing, sum(len(ids) for ids in items.values())


def unknown_to_stock(suite: Suite) -> list[str]:
    """Return the tasks that are scored by the likelihood of their reference answers."""
    return [
        name
        for name, task in suite.tasks.items()
        if task.reference is not None and task.reference.is_objective
    ]


def compare_with_stock(
    directory: Path, suite: Suite, items: Items, ours: Mapping[str, TaskScores]
) -> list[str]:
    """Score items by the stock command; returns one line per item whose score differs.

    Raises:
        EvaluationError: The command failed.
    """
    if not items:
        return []
    with tempfile.TemporaryDirectory() as place:
        stock = run_stock(directory, suite, items, Path(place))
    return [line for task in items for line in _compare(suite, ours[task], stock[task])]


def rescore(
    directory: Path, suite: JobSuite, job: JobConfig, items: Items
) -> dict[str, TaskScores]:
    """Call the job's own scorers on a checkpoint as anybody would load it, on the CPU.

    Raises:
        EvaluationError: A scorer fails.
    """
    torch.set_num_threads(job.workers.threads)
    config = json.loads((directory / "config.json").read_text())
    model = model_class(config).from_pretrained(directory, dtype="auto", use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    evaluator = ScorerEvaluator(suite.scorers.values(), batch_size=job.evaluation.batch_size)
    return evaluator.evaluate(LiveModel(model.eval(), tokenizer), items).task_scores


def run_stock(
    directory: Path, suite: Suite, items: Items, place: Path
) -> dict[str, list[dict[str, Any]]]:
    """Run the stock command on a checkpoint; returns task -> its logged samples.

    Args:
        directory: The checkpoint.
        suite: The tasks as the job has them, and its settings.
        items: Task -> item ids.
        place: An empty directory, for the tasks' YAMLs and what the command writes.

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
    command += ["--model_args", f"pretrained={directory},dtype=float32"]
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


def _candidate_of(archive: Archive, directory: Path) -> int:
    path = directory / "recipe.json"
    try:
        recipe_id = json.loads(path.read_text())["recipe_id"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; give an exported model") from error
    for candidate in archive.candidates():
        if candidate.recipe.recipe_id == recipe_id:
            return candidate.index
    raise CheckpointError(
        f"{path}: recipe {recipe_id[:12]} is not in {archive.place}; give the archive that the "
        "checkpoint was exported from"
    )


def _compare(suite: Suite, ours: TaskScores, stock: list[dict[str, Any]]) -> list[str]:
    """Return one line per item of a task whose two scores differ."""
    task = suite.tasks[ours.task]
    theirs = {
        sample["doc_id"]: task.key.item_score(sample, f"{ours.task}, {sample['doc_id']}")[0]
        for sample in stock
        if sample["filter"] == task.key.filter
    }
    lines = []
    for item, value in zip(ours.item_ids, ours.values, strict=True):
        other = theirs.get(task.indices[item])
        if other is None or abs(other - value) > TOLERANCE:
            lines.append(f"{ours.task} item {item}: archive {value}, stock {other}")
    return lines


def _compare_scorer(ours: TaskScores, again: TaskScores) -> list[str]:
    """Return one line per item of a scorer whose two scores differ."""
    return [
        f"{ours.task} item {item}: archive {before}, now {after}"
        for item, before, after in zip(ours.item_ids, ours.values, again.values, strict=True)
        if abs(before - after) > TOLERANCE
    ]


if __name__ == "__main__":
    typer.run(main)
