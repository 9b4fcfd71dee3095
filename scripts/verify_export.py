"""Score an exported checkpoint with the stock ``lm_eval`` command, and compare with the archive.

    python scripts/verify_export.py ARCHIVE DIR [--split report]

Runs ``lm_eval`` in a process of its own on DIR, with the task definitions and items that the
search used, and compares every item's score with the one that the archive holds for the recipe
in ``DIR/recipe.json``. In float32 on the CPU they must be equal; the exit code says so.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from configs.errors import ArchiveError, CheckpointError, EvaluationError, MergefrontError
from configs.schema import SPLITS, EvaluationSettings
from evaluators.harness import Suite
from evaluators.scores import TaskScores
from optimizer.archive import Archive

# Discrete scores are equal; loglikelihoods of other batch compositions differ in the last bits.
TOLERANCE = 1e-3


def main(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="Archive of the search.")],
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
    typer.echo(f"stock lm_eval on {directory}, {total} items of {split}: {verdict}")
    raise typer.Exit(1 if differing else 0)


def verify(archive_path: Path, directory: Path, split: str) -> tuple[list[str], int]:
    """Compare an exported checkpoint with its archive.

    Returns:
        One line per item whose score differs, and the number of items compared.

    Raises:
        ArchiveError: The archive cannot be read, or has no scores of this recipe on the split.
        CheckpointError: The directory was not exported from this archive.
        EvaluationError: The stock command failed.
    """
    if split not in SPLITS:
        raise ArchiveError(f"there is no split `{split}`; there are {', '.join(SPLITS)}")
    with Archive.open(archive_path) as archive:
        candidate = _candidate_of(archive, directory)
        ours = archive.task_scores(candidate, split)
        suite = Suite(archive.job.objectives, archive.job.evaluation)
        samples = suite.stock_samples(archive.manifest.items(split))
    with tempfile.TemporaryDirectory() as out:
        stock = run_stock(directory, suite.settings, samples, Path(out))
    differing = [line for task in samples for line in _compare(suite, ours[task], stock[task])]
    return differing, sum(len(positions) for positions in samples.values())


def run_stock(
    directory: Path, settings: EvaluationSettings, samples: dict[str, list[int]], out: Path
) -> dict[str, list[dict[str, Any]]]:
    """Run the stock command on a checkpoint; returns task -> its logged samples.

    Raises:
        EvaluationError: The command failed; the message holds the end of what it printed.
    """
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--device", "cpu"]
    command += ["--model_args", f"pretrained={directory},dtype=float32"]
    command += ["--batch_size", str(settings.batch_size), "--tasks", *samples]
    if settings.include_path:
        command += ["--include_path", settings.include_path[0]]
    if settings.apply_chat_template:
        command.append("--apply_chat_template")
    if settings.allow_code_execution:
        command.append("--confirm_run_unsafe_code")
    command += ["--samples", json.dumps(samples), "--log_samples", "--output_path", str(out)]
    done = subprocess.run(
        command, cwd=settings.data_dir, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise EvaluationError(f"`{' '.join(command)}` failed:\n{done.stderr[-2000:]}")
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
        f"{path}: recipe {recipe_id[:12]} is not in {archive.path}; give the archive that the "
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


if __name__ == "__main__":
    typer.run(main)
