"""Run studies: make the zoos, measure what was not measured yet, and collect the records.

A cell is one study on one zoo. Cells run side by side, one thread each, and their records are
files: a run that was interrupted goes on where it stood, and a study that measures otherwise than
before is measured again, from scores that are remembered by recipe and item.
"""

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from pandas import DataFrame

from scripts.bench.zoo_store import ScoreStore
from scripts.papers.bench import FAST_SPLITS, FULL_SPLITS, Bench
from scripts.papers.cells import Cell, CellStore
from scripts.papers.study import Record, Study
from scripts.papers.zoos import zoo_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to run: studies, seeds of zoos, where everything is kept, and whether little will do."""

    root: Path
    studies: tuple[Study, ...]
    seeds: tuple[int, ...]
    fast: bool
    processes: int = os.cpu_count() or 1

    @property
    def cells(self) -> CellStore:
        """Where records are kept."""
        return CellStore(self.root / "cells", {one.name: one for one in self.studies}, self.fast)


OnCell = Callable[[Cell, float], None]
"""Called when a cell is there, with the seconds that it took now: 0 where it was there before."""

MakeZoo = Callable[[int, int, tuple[str, ...]], object]
"""Trains what is missing of the zoo of a width and a seed; takes names of tuned checkpoints."""


def cells_of(settings: Settings) -> list[Cell]:
    """Return all cells, seed by seed, so that a run that is stopped has whole seeds."""
    return [
        Cell(study.name, width, seed)
        for seed in settings.seeds
        for study in settings.studies
        for width in (study.widths[:1] if settings.fast else study.widths)
    ]


def zoos_of(settings: Settings, cells: Sequence[Cell]) -> dict[tuple[int, int], tuple[str, ...]]:
    """Return (width, seed) -> names of the tuned checkpoints that any of some cells wants."""
    known = {study.name: study for study in settings.studies}
    wanted: dict[tuple[int, int], dict[str, None]] = {}
    for cell in cells:
        names = wanted.setdefault((cell.width, cell.seed), {})
        names |= dict.fromkeys(known[cell.study].checkpoints)
    return {zoo: tuple(names) for zoo, names in wanted.items()}


def measure_all(settings: Settings, on_cell: OnCell, make_zoo: MakeZoo) -> dict[str, DataFrame]:
    """Measure every cell that is missing, seed by seed; returns study -> records of all its cells.

    Args:
        settings: What to run.
        on_cell: Told of every cell that is there.
        make_zoo: Trains what is missing of a zoo that a missing cell needs, on one processor.

    Raises:
        Exception: Whatever a zoo or a cell raised, after what was running is done and kept.
    """
    store = settings.cells
    kept = {cell: store.recall(cell) for cell in cells_of(settings)}
    for cell, records in kept.items():
        if records is not None:
            on_cell(cell, 0.0)
    for seed in settings.seeds:
        left = [cell for cell, records in kept.items() if records is None and cell.seed == seed]
        for cell, records, seconds in _measured(settings, left, make_zoo):
            kept[cell] = records
            store.keep(cell, records, seconds)
            on_cell(cell, seconds)
    return {
        name: DataFrame(
            [
                {"width": cell.width, "seed": cell.seed, **record}
                for cell, records in kept.items()
                if cell.study == name
                for record in records or ()
            ]
        )
        for name in store.studies
    }


def _measured(
    settings: Settings, cells: Sequence[Cell], make_zoo: MakeZoo
) -> Iterator[tuple[Cell, list[Record], float]]:
    """Yield cells as they are measured: each when its zoo is there, beside the training of others.

    A thread per processor waits for a process, which trains or measures.
    """
    if not cells:
        return
    known = {study.name: study for study in settings.studies}
    # One thread per process, set before torch is loaded there.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    failed: BaseException | None = None
    with (
        ProcessPoolExecutor(
            settings.processes, mp_context=context, max_tasks_per_child=1
        ) as processes,
        ThreadPoolExecutor(settings.processes) as threads,
    ):
        # Zoos are begun before any cell, so that no cell waits for one that is behind it. Wide ones
        # take longest: they are trained first, and their cells come last.
        zoos = zoos_of(settings, cells)
        trained = {
            zoo: threads.submit(make_zoo, *zoo, zoos[zoo]) for zoo in sorted(zoos, reverse=True)
        }

        def measure(cell: Cell) -> tuple[list[Record], float]:
            trained[cell.width, cell.seed].result()
            arguments = (known[cell.study].measure, settings.root, cell, settings.fast)
            return processes.submit(measure_cell, *arguments).result()

        order = sorted(cells, key=lambda cell: cell.width)
        jobs = {threads.submit(measure, cell): cell for cell in order}
        try:
            for job in as_completed(jobs):
                if job.cancelled():
                    continue
                if (error := job.exception()) is None:
                    yield jobs[job], *job.result()
                elif failed is None:
                    failed = error
                    # What has begun goes on, and is kept.
                    for other in jobs:
                        other.cancel()
        finally:
            threads.shutdown(wait=True, cancel_futures=True)
    if failed is not None:
        raise failed


def measure_cell(
    measure: Callable[[Bench], list[Record]], root: Path, cell: Cell, fast: bool
) -> tuple[list[Record], float]:
    """Measure one cell in this process; returns its records and the seconds that it took."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    started = time.perf_counter()
    with ScoreStore(root / "scores.sqlite") as store:
        bench = Bench(
            root=root,
            zoo=zoo_directory(root, cell.width, cell.seed),
            width=cell.width,
            seed=cell.seed,
            fast=fast,
            store=store,
            splits=FAST_SPLITS if fast else FULL_SPLITS,
        )
        records = measure(bench)
    return records, time.perf_counter() - started
