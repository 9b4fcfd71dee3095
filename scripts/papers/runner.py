"""Run studies: make the zoos, measure what was not measured yet, and collect the records.

A cell is one study on one zoo. Cells run side by side, one thread each, and their records are
files: a run that was interrupted goes on where it stood, and a study that measures otherwise than
before is measured again, from scores that are remembered by recipe and item.
"""

import ast
import hashlib
import json
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pandas import DataFrame

from scripts.bench.zoo_store import ScoreStore
from scripts.papers.bench import FAST_SPLITS, FULL_SPLITS, Bench
from scripts.papers.study import Record, Study
from scripts.papers.zoos import zoo_directory, zoo_recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to run: studies, seeds of zoos, where everything is kept, and whether little will do."""

    root: Path
    studies: tuple[Study, ...]
    seeds: tuple[int, ...]
    fast: bool
    processes: int = os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Cell:
    """One study on one zoo."""

    study: str
    width: int
    seed: int


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
    known = {study.name: study for study in settings.studies}
    kept = {cell: _recall(settings, known[cell.study], cell) for cell in cells_of(settings)}
    for cell, records in kept.items():
        if records is not None:
            on_cell(cell, 0.0)
    for seed in settings.seeds:
        left = [cell for cell, records in kept.items() if records is None and cell.seed == seed]
        for cell, records, seconds in _measured(settings, left, make_zoo):
            kept[cell] = records
            _keep(settings, known[cell.study], cell, records)
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
        for name in known
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
    zoos = zoos_of(settings, cells)
    # One thread per process, set before torch is loaded there.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(
            settings.processes, mp_context=context, max_tasks_per_child=1
        ) as processes,
        ThreadPoolExecutor(settings.processes) as threads,
    ):

        def measure(cell: Cell) -> tuple[list[Record], float]:
            study = known[cell.study]
            return processes.submit(
                measure_cell, study.measure, settings.root, cell, settings.fast
            ).result()

        # The wide first, whose training takes longest.
        order = sorted(zoos, reverse=True)
        trainings = {threads.submit(make_zoo, *zoo, zoos[zoo]): zoo for zoo in order}
        jobs: dict[Future[tuple[list[Record], float]], Cell] = {}
        pending: set[Future[Any]] = set(trainings)
        try:
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                for job in done:
                    if job in jobs:
                        yield jobs[job], *job.result()
                        continue
                    job.result()
                    ready = [c for c in cells if (c.width, c.seed) == trainings[job]]
                    new = {threads.submit(measure, cell): cell for cell in ready}
                    jobs |= new
                    pending |= set(new)
        except BaseException:
            threads.shutdown(wait=True, cancel_futures=True)
            raise


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


def _path(settings: Settings, study: Study, cell: Cell) -> Path:
    """Return the file of a cell; its name says which code and which zoo it is of."""
    module = Path(str(import_module(study.measure.__module__).__file__))
    # A study's own parts stand beside it: `name.py`, `name_training.py`.
    helpers = sorted(module.parent.glob(f"{module.stem}_*.py"))
    files = [module, *helpers, Path(__file__).with_name("bench.py")]
    digest = hashlib.sha256("".join(map(measuring_code, files)).encode())
    recipe = zoo_recipe(cell.width, study.checkpoints)
    digest.update("".join(recipe.digest(one) for one in recipe.checkpoints).encode())
    kind = "fast" if settings.fast else "full"
    name = f"{cell.study}-{cell.width}-{cell.seed}-{kind}-{digest.hexdigest()[:8]}.json"
    return settings.root / "cells" / name


def measuring_code(file: Path) -> str:
    """Return a module without comments, docstrings, and what its study says of the records."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if not _is_study(node)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value = ast.Constant(None)
    return ast.unparse(tree)


def _is_study(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Assign) else None
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == Study.__name__
    )


def _recall(settings: Settings, study: Study, cell: Cell) -> list[Record] | None:
    path = _path(settings, study, cell)
    if not path.is_file():
        return None
    records: list[Record] = json.loads(path.read_text(encoding="utf-8"))["records"]
    return records


def _keep(settings: Settings, study: Study, cell: Cell, records: list[Record]) -> None:
    path = _path(settings, study, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    content = {"machine": platform.machine(), "records": records}
    partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
    partial.replace(path)


def write_records(settings: Settings, file: Path) -> None:
    """Write the cells of a run that was measured whole to one file, a line each."""
    known = {study.name: study for study in settings.studies}
    paths = [_path(settings, known[cell.study], cell) for cell in cells_of(settings)]
    lines = [
        json.dumps({"cell": path.stem, **json.loads(path.read_text(encoding="utf-8"))})
        for path in paths
    ]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_records(settings: Settings, file: Path) -> None:
    """Take cells from a file that :func:`write_records` wrote, where there are none yet.

    Those that were measured otherwise than they would be now stay unused.
    """
    folder = settings.root / "cells"
    folder.mkdir(parents=True, exist_ok=True)
    for line in file.read_text(encoding="utf-8").splitlines():
        content = json.loads(line)
        path = folder / f"{content.pop('cell')}.json"
        if not path.exists():
            path.write_text(json.dumps(content), encoding="utf-8")
