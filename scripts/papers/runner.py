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
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from pandas import DataFrame

from scripts.bench.zoo_store import ScoreStore
from scripts.papers.bench import FAST_SPLITS, FULL_SPLITS, Bench
from scripts.papers.study import Record, Study
from scripts.papers.zoos import make_zoo, zoo_directory, zoo_recipe
from scripts.zoo.build import OnStep


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


def make_zoos(settings: Settings, cells: Sequence[Cell], on_step: OnStep) -> None:
    """Train what is missing of the zoos of some cells."""
    for (width, seed), names in zoos_of(settings, cells).items():

        def on_own_step(name: str, step: int, zoo: str = f"{width}/{seed}") -> None:
            on_step(f"{zoo} {name}", step)

        make_zoo(settings.root, width=width, seed=seed, names=names, on_step=on_own_step)


def measure_all(
    settings: Settings, on_cell: OnCell, prepare: Callable[[Sequence[Cell]], None]
) -> dict[str, DataFrame]:
    """Measure every cell that is missing, seed by seed; returns study -> records of all its cells.

    Args:
        settings: What to run.
        on_cell: Told of every cell that is there.
        prepare: Called with the cells of a seed that are missing, before they are measured: it
            trains their zoos.

    Raises:
        Exception: Whatever a cell raised, after the others that were running are done and kept.
    """
    known = {study.name: study for study in settings.studies}
    kept = {cell: _recall(settings, known[cell.study], cell) for cell in cells_of(settings)}
    for cell, records in kept.items():
        if records is not None:
            on_cell(cell, 0.0)
    for seed in settings.seeds:
        left = [cell for cell, records in kept.items() if records is None and cell.seed == seed]
        if left:
            prepare(left)
        for cell, records, seconds in _measured(settings, left):
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
    settings: Settings, cells: Sequence[Cell]
) -> Iterator[tuple[Cell, list[Record], float]]:
    if not cells:
        return
    known = {study.name: study for study in settings.studies}
    # One thread per process, set before torch is loaded there.
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(settings.processes, len(cells)), mp_context=context, max_tasks_per_child=1
    ) as pool:
        jobs: dict[Future[tuple[list[Record], float]], Cell] = {
            pool.submit(
                measure_cell, known[cell.study].measure, settings.root, cell, settings.fast
            ): cell
            for cell in cells
        }
        try:
            for job in as_completed(jobs):
                records, seconds = job.result()
                yield jobs[job], records, seconds
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
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
