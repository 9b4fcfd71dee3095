"""Make a zoo of small real language models: a base and specialists fine-tuned from it.

    python scripts/make_zoo.py --out runs/zoo

About three minutes on two CPU cores; a zoo that is already there is reused at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

# Runs from any directory, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.errors import MergefrontError
from scripts.zoo.build import ForeignDirectoryError, OnStep, build_zoo
from scripts.zoo.item import SKILLS
from scripts.zoo.recipe import GENERALISTS, SPECIALISTS, Recipe


def main(
    out: Annotated[Path, typer.Option(help="Directory of the zoo.")] = Path("runs/zoo"),
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    generalists: Annotated[
        bool, typer.Option("--generalists", help="Train two generalists as well.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Make a zoo of small language models to merge: a base, and instruct, code and math."""
    recipe = Recipe(tuned=(*SPECIALISTS, *GENERALISTS) if generalists else SPECIALISTS)
    console = Console(stderr=True, quiet=quiet)
    try:
        with _progress(console) as progress:
            zoo = build_zoo(out, recipe, seed=seed, on_step=_follow(progress, recipe))
    except (MergefrontError, ForeignDirectoryError) as error:
        Console(stderr=True).print(f"error: {error}", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
    if not quiet:
        Console().print(_table(zoo))
        console.print(f"zoo in {out}, made in {zoo['wall_time_s']:g} s", markup=False)


def _progress(console: Console) -> Progress:
    """Return the progress display; it shows bars on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("{task.description:>14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, disable=console.quiet)


def _follow(progress: Progress, recipe: Recipe) -> OnStep:
    """Return a callback that keeps one bar per checkpoint, from its first step on."""
    total = {c.name: c.schedule.steps for c in recipe.checkpoints}
    bars: dict[str, Any] = {}

    def on_step(name: str, step: int) -> None:
        if name not in bars:
            bars[name] = progress.add_task(name, total=total[name])
        progress.update(bars[name], completed=step)

    return on_step


def _table(zoo: dict[str, Any]) -> Table:
    """Return the scores of the checkpoints on a few held-out items."""
    table = Table("checkpoint", *SKILLS, "mean", "seconds", title="zoo")
    for name, entry in zoo["checkpoints"].items():
        scores = [entry["scores"][skill] for skill in SKILLS]
        cells = [f"{score:.2f}" for score in (*scores, sum(scores) / len(scores))]
        table.add_row(name, *cells, f"{entry['wall_time_s']:.0f}")
    return table


if __name__ == "__main__":
    typer.run(main)
