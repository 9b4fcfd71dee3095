"""Measure what papers on merging claim, on zoos of small models that are trained here.

    python scripts/reproduce.py            # all studies, five seeds
    python scripts/reproduce.py --fast     # one seed, few items

On two cores with AVX-512 the first takes about 40 minutes a seed, 3 h 20 min in all; the second
8 minutes, or 2.5 where its zoo is there. Everything is kept under --runs, so a run that was stopped
goes on where it stood. The page is written with the records that it was computed from; from them it
comes again in a moment (what they lack is measured):

    python scripts/reproduce.py --records scripts/bench/results/papers.jsonl --out /tmp/page

What CI asserts of --fast has room on six seeds, whose records are committed, too:

    python scripts/reproduce.py --fast --seeds 6 --out /tmp/fast
    python scripts/reproduce.py --fast --seeds 6 --records scripts/bench/results/papers_fast.jsonl
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from pandas import DataFrame
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

# Runs from any directory, installed or not.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.papers.cells import Cell
from scripts.papers.figures import draw
from scripts.papers.page import FIGURES, PAGE, judge_all, page
from scripts.papers.runner import Settings, cells_of, measure_all
from scripts.papers.studies import STUDIES
from scripts.papers.study import Figure, Judged, Study
from scripts.papers.zoos import DEVELOPMENT_SEED, SEEDS, make_zoo

RESULTS = Path(__file__).resolve().parent / "bench" / "results"
RECORDS, FAST_RECORDS = "papers.jsonl", "papers_fast.jsonl"
_FAST_SEEDS = (DEVELOPMENT_SEED, *SEEDS)


def main(
    *,
    fast: Annotated[
        bool, typer.Option("--fast", help="One seed and few items: minutes, not hours.")
    ] = False,
    study: Annotated[
        list[str] | None, typer.Option(help=f"Only this one: {', '.join(STUDIES)}. Repeatable.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=len(_FAST_SEEDS),
            help=f"How many of the seeds {', '.join(map(str, SEEDS))}, all without it; with --fast "
            f"of {', '.join(map(str, _FAST_SEEDS))}, the first one without it.",
        ),
    ] = None,
    runs: Annotated[Path, typer.Option(help="Where zoos and scores are kept.")] = Path(
        "runs/papers"
    ),
    out: Annotated[
        Path | None,
        typer.Option(
            help="Directory of the page; without it, only a run of everything writes one."
        ),
    ] = None,
    records_file: Annotated[
        Path | None,
        typer.Option(
            "--records",
            exists=True,
            dir_okay=False,
            help=f"{RECORDS} of a run ({FAST_RECORDS} with --fast): what it holds is not measured "
            "again.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON value.")] = False,
) -> None:
    """Measure what papers on merging claim, and write the page of results."""
    if unknown := [name for name in study or () if name not in STUDIES]:
        raise typer.BadParameter(
            f"`{unknown[0]}` is no study; there are {', '.join(STUDIES)}", param_hint="--study"
        )
    chosen = tuple(STUDIES[name] for name in dict.fromkeys(study or STUDIES))
    if not fast and seeds is not None and seeds > len(SEEDS):
        raise typer.BadParameter(
            f"there are {len(SEEDS)} seeds without --fast, found {seeds}", param_hint="--seeds"
        )
    which = _FAST_SEEDS[: seeds or 1] if fast else SEEDS[:seeds]
    settings = Settings(root=runs.resolve(), studies=chosen, seeds=which, fast=fast)
    cells = cells_of(settings)
    console = Console(stderr=True)
    if records_file is not None:
        settings.cells.read(records_file)
        _say_what_is_missing(console, settings)
    with _progress(console) as progress:
        records = _measure(progress, settings)
    if as_json:
        _print_json(judge_all(chosen, records, fast=fast))
    is_whole = not fast and not study and which == SEEDS
    where = out or (RESULTS if is_whole else None)
    drawn = {one.name: _figures(one, records[one.name]) if where else [] for one in chosen}
    text = page(
        chosen,
        records,
        command=_command(settings, study),
        machine="; ".join(settings.cells.machines(cells)),
        figures={
            name: [Path(FIGURES) / f"{figure.name}.svg" for figure in figures]
            for name, figures in drawn.items()
        },
        seconds=settings.cells.seconds(cells),
        fast=fast,
    )
    if where is not None:
        for name, figures in drawn.items():
            for figure in figures:
                draw(figure, records[name], where / FIGURES / f"{figure.name}.svg")
        where.mkdir(parents=True, exist_ok=True)
        (where / PAGE).write_text(text, encoding="utf-8")
        settings.cells.write(cells, where / (FAST_RECORDS if fast else RECORDS))
        console.print(f"{where / PAGE}", markup=False)
    elif not as_json:
        print(text)


def _figures(study: Study, records: DataFrame) -> list[Figure]:
    """Return the figures of a study for whose width there are records."""
    widths = set(records["width"])
    return [figure for figure in study.figures if figure.width in widths]


def _say_what_is_missing(console: Console, settings: Settings) -> None:
    cells = cells_of(settings)
    left = [cell for cell in cells if settings.cells.recall(cell) is None]
    if left:
        console.print(
            f"{len(left)} of {len(cells)} cells are not in the records as they would be measured "
            "now, and are measured.",
            markup=False,
        )


def _print_json(judged: Mapping[str, Judged]) -> None:
    report = {
        key: {
            "verdict": one.verdict,
            "mean": one.mean,
            "by_seed": one.by_seed,
            "margin": one.claim.margin,
            "fast_above": one.claim.fast_above,
            "fast_below": one.claim.fast_below,
        }
        for key, one in judged.items()
    }
    print(json.dumps(report))


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description:>28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console)


def _measure(progress: Progress, settings: Settings) -> dict[str, DataFrame]:
    bar = progress.add_task("measuring", total=len(cells_of(settings)))

    def make(width: int, seed: int, names: tuple[str, ...]) -> None:
        line = progress.add_task(f"zoo {width}/{seed}", total=None)

        def on_step(name: str, step: int) -> None:
            progress.update(line, description=f"zoo {width}/{seed}: {name}", completed=step)

        make_zoo(settings.root, width=width, seed=seed, names=names, on_step=on_step)
        progress.remove_task(line)

    def on_cell(cell: Cell, seconds: float) -> None:
        progress.advance(bar)
        if seconds:
            progress.console.print(
                f"{cell.study}, width {cell.width}, seed {cell.seed}: {seconds:.0f} s", markup=False
            )

    return measure_all(settings, on_cell, make)


def _command(settings: Settings, study: list[str] | None) -> str:
    parts = ["python scripts/reproduce.py", *(["--fast"] if settings.fast else [])]
    parts += [f"--study {name}" for name in study or ()]
    if settings.seeds not in (SEEDS, (DEVELOPMENT_SEED,)):
        parts.append(f"--seeds {len(settings.seeds)}")
    return " ".join(parts)


if __name__ == "__main__":
    typer.run(main)
