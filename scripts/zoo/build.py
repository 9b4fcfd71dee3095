"""Build a zoo directory: what is there is kept, what is missing is trained in worker processes.

Start at :func:`build_zoo`. Nothing here imports torch; each checkpoint is made by a process of
its own (``work``), the base alone on two threads where there are so many processors, then the
others side by side on one each.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import platform
import queue
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from importlib.metadata import version
from multiprocessing.managers import SyncManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from evaluators.sandbox import Sandbox
from scripts.zoo.item import SKILLS
from scripts.zoo.items import held_out_items
from scripts.zoo.recipe import BASE_THREADS, Checkpoint, Recipe

if TYPE_CHECKING:
    from scripts.zoo.work import Trained

MARKER = "zoo.json"
PROGRESS = "progress.json"
_POLL_S = 0.1
_PACKAGES = ("torch", "transformers", "tokenizers")

OnStep = Callable[[str, int], None]
"""Called with the name of a checkpoint and the number of its steps done."""


class ForeignDirectoryError(Exception):
    """The output directory holds files that are not a zoo's."""


def build_zoo(
    out: Path,
    recipe: Recipe,
    *,
    seed: int,
    processors: int = os.cpu_count() or 1,
    on_step: OnStep = lambda _name, _step: None,
) -> dict[str, Any]:
    """Make the zoo directory complete, and return the contents of its ``zoo.json``.

    Checkpoints whose recipe digest and seed match are kept, others are trained again. The marker
    ``zoo.json`` is written last; two builders of one directory wait for each other.

    Args:
        out: Directory of the zoo; created.
        recipe: What to make.
        seed: Seed of everything random; the same seed gives the same zoo on one kind of machine.
        processors: How many to use; the base is trained on two of them at most.
        on_step: Progress of the training runs.

    Raises:
        ForeignDirectoryError: ``out`` has files but was not written by this function.
        SandboxUnavailableError: Code items cannot be graded here.
    """
    if (finished := finished_zoo(out, recipe, seed=seed)) is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    if not (out / PROGRESS).exists():
        if any(out.iterdir()):
            raise ForeignDirectoryError(
                f"`{out}` has files that are not a zoo's; give an empty --out"
            )
        _write_json(out / PROGRESS, {})
    with FileLock(out / ".lock"):
        finished = finished_zoo(out, recipe, seed=seed)
        return finished or _build(out, recipe, seed, processors, on_step)


def finished_zoo(out: Path, recipe: Recipe, *, seed: int) -> dict[str, Any] | None:
    """Return the contents of ``zoo.json`` if all that the recipe names is there, else None."""
    marker = _read_json(out / MARKER)
    known = marker.get("checkpoints", {})
    if marker.get("seed") != seed or _missing(out, recipe, known, seed):
        return None
    return marker


def _missing(out: Path, recipe: Recipe, known: Mapping[str, Any], seed: int) -> list[Checkpoint]:
    """Return the checkpoints that are absent, or were made from another recipe or seed."""
    found = {
        (name, entry["digest"], entry["seed"])
        for name, entry in known.items()
        if (out / name / "model.safetensors").is_file()
    }
    wanted = [c for c in recipe.checkpoints if (c.name, recipe.digest(c), seed) not in found]
    # What is tuned from another base is worth nothing.
    return list(recipe.checkpoints) if recipe.base in wanted else wanted


def _build(
    out: Path, recipe: Recipe, seed: int, processors: int, on_step: OnStep
) -> dict[str, Any]:
    start = time.perf_counter()
    with Sandbox() as sandbox:
        # Grading needs it, minutes from now; say so at once.
        sandbox.run(["pass"])
    (out / MARKER).unlink(missing_ok=True)
    for leftover in out.glob(".*.partial-*"):
        shutil.rmtree(leftover)
    known = _read_json(out / PROGRESS)
    todo = _missing(out, recipe, known, seed)

    def record(checkpoint: Checkpoint, trained: Trained) -> None:
        entry = {"digest": recipe.digest(checkpoint), "seed": seed, **asdict(trained)}
        known[checkpoint.name] = entry
        _write_json(out / PROGRESS, known)

    _write_items(out / "items", recipe, seed)
    for group in ([c for c in todo if c.is_base], [c for c in todo if not c.is_base]):
        _train_all(group, out, recipe, seed, processors, on_step=on_step, record=record)
    marker = {
        "seed": seed,
        "recipe": asdict(recipe),
        "checkpoints": {c.name: known[c.name] for c in recipe.checkpoints},
        "versions": {"python": platform.python_version(), **{p: version(p) for p in _PACKAGES}},
        "wall_time_s": round(time.perf_counter() - start, 1),
    }
    _write_json(out / MARKER, marker)
    return _read_json(out / MARKER)


def _train_all(
    checkpoints: Sequence[Checkpoint],
    out: Path,
    recipe: Recipe,
    seed: int,
    processors: int,
    *,
    on_step: OnStep,
    record: Callable[[Checkpoint, Trained], None],
) -> None:
    """Train checkpoints side by side, as many at once as there are processors."""
    if not checkpoints:
        return
    # Longest first, so that no long run is left alone at the end.
    order = sorted(checkpoints, key=lambda c: -c.schedule.steps)
    # Spawned, not forked: torch and tokenizers do not survive a fork with their threads.
    context = multiprocessing.get_context("spawn")
    num_processes = min(len(order), processors)
    base_threads = min(BASE_THREADS, processors)
    with (
        context.Manager() as manager,
        ProcessPoolExecutor(num_processes, mp_context=context, max_tasks_per_child=1) as pool,
    ):
        steps = _new_queue(manager)
        jobs = {
            pool.submit(_work, recipe, c, out, seed, steps, base_threads=base_threads): c
            for c in order
        }
        pending: set[Future[Trained]] = set(jobs)
        while pending:
            done, pending = wait(pending, timeout=_POLL_S)
            _report(steps, on_step)
            for job in done:
                record(jobs[job], job.result())


def _new_queue(manager: SyncManager) -> queue.Queue[tuple[str, int]]:
    return manager.Queue()


def _report(steps: queue.Queue[tuple[str, int]], on_step: OnStep) -> None:
    while True:
        try:
            name, step = steps.get_nowait()
        except queue.Empty:
            return
        on_step(name, step)


def _work(
    recipe: Recipe,
    checkpoint: Checkpoint,
    out: Path,
    seed: int,
    steps: queue.Queue[Any],
    *,
    base_threads: int,
) -> Trained:
    """Make one checkpoint; the body of a worker process."""
    from scripts.zoo.work import make_checkpoint

    return make_checkpoint(
        recipe,
        checkpoint,
        out=out,
        seed=seed,
        num_threads=base_threads if checkpoint.is_base else 1,
        on_step=lambda step: steps.put((checkpoint.name, step)),
    )


def _write_items(folder: Path, recipe: Recipe, seed: int) -> None:
    """Write the held-out items of every skill as JSON lines."""
    folder.mkdir(exist_ok=True)
    for skill in SKILLS:
        items = held_out_items(skill, count=recipe.held_out_per_skill, seed=seed)
        lines = (json.dumps(item.row(), ensure_ascii=False) for item in items)
        _write_text(folder / f"zoo_{skill}.jsonl", "\n".join(lines) + "\n")


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    _write_text(path, json.dumps(content, indent=2) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
