"""Where one driver saturates: the real one, with workers that are there on paper only.

The search loop, its strategy and its archive are those of every search, and take the time that they
take. Workers are numbers: an evaluation ends when a clock says so, which goes on with the
processor time of the driver, and jumps to the next end when the driver waits. So thousands of
workers with evaluations of minutes are simulated in seconds, in the middle of a long search: as
many outcomes as a belief keeps are recorded before, and evaluations have been under way for a time.

Not part of it are Ray, which ``scripts.bench.scaling`` measures on real workers, and the disk,
whose limit is ``archive_outcomes_per_s``.
"""

import contextlib
import heapq
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from typing_extensions import override

from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.space import SearchSpace
from scripts.bench.scaling_search import (
    SIGMA,
    STRATEGIES,
    made_up_scores,
    make_job,
    make_spec,
    uniform,
)
from workers.job import WorkerSpec
from workers.outcome import Completed, EvaluationRequest, Outcome
from workers.pool import WorkerPool, WorkerState

PAPER_WORKERS = (64, 256, 1024, 4096)
EVALUATION_S = 300.0
"""How long an evaluation takes on average."""

# Beyond this many outcomes a belief takes no longer.
_TOLD = 640
OUTCOMES, FULL_OUTCOMES = 96, 960
"""How many outcomes a row has at most."""
# Seconds of the driver after which a row ends, per 100 outcomes that were wanted, but not before
# it has outcomes of two beliefs.
_MOST_S, _LEAST_OUTCOMES = 10.0, 40
# No search of a row comes to its end.
_MANY = 1_000_000


class _EnoughError(Exception):
    """As many outcomes as wanted."""


class PaperPool(WorkerPool):
    """Workers whose evaluations end by a clock of their own; implements ``WorkerPool``.

    Args:
        spec: Of the search.
        workers: How many.
        most: Ends with :class:`_EnoughError` when that many outcomes were taken.
        most_s: The same, when the driver has worked so long on them.
    """

    def __init__(
        self, spec: WorkerSpec, workers: int, *, most: int, most_s: float = math.inf
    ) -> None:
        self._manifest = spec.manifest
        self._states: dict[str, WorkerState] = {f"worker-{i + 1}": "busy" for i in range(workers)}
        self._num_workers, self._most, self._most_s = workers, most, most_s
        # When evaluations end, by the clock, which begins when every worker has one.
        self._ends: list[tuple[float, int, EvaluationRequest]] = []
        self._num_submitted = 0
        self._now = self._mark = 0.0
        self._due: float | None = None
        self.num_taken = 0
        self.driver_s = self.idle_s = 0.0

    @property
    def num_free(self) -> int:
        """Workers without an evaluation."""
        return self._num_workers - len(self._ends)

    @property
    def num_pending(self) -> int:
        """Workers with one."""
        return len(self._ends)

    @property
    def elapsed_s(self) -> float:
        """What has passed by the clock."""
        return self._now

    def submit(self, request: EvaluationRequest) -> None:
        """Begin an evaluation; the first of every worker has been under way for a while."""
        self._go_on()
        recipe_id = request.recipe.recipe_id
        deviate = statistics.NormalDist().inv_cdf(uniform("length", recipe_id))
        if self._num_submitted < self._num_workers:
            # Who looks at a random moment finds a long one, at any point of it.
            length_s = EVALUATION_S * math.exp(SIGMA * deviate + SIGMA**2 / 2)
            left_s = length_s * uniform("begun", recipe_id)
        else:
            left_s = EVALUATION_S * math.exp(SIGMA * deviate - SIGMA**2 / 2)
        if self._due is not None:
            self.idle_s += self._now - self._due
            self._due = None
        heapq.heappush(self._ends, (self._now + left_s, self._num_submitted, request))
        self._num_submitted += 1
        self._mark = time.thread_time()

    @override
    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        """Take the evaluation that ends next; the clock goes there if it is not beyond."""
        self._go_on()
        is_late = self.driver_s >= self._most_s and self.num_taken >= _LEAST_OUTCOMES
        if self.num_taken >= self._most or is_late:
            raise _EnoughError
        self._due, _, request = heapq.heappop(self._ends)
        self._now = max(self._now, self._due)
        self.num_taken += 1
        outcome = Completed(
            key=request.key,
            attempt=1,
            worker="paper",
            weights_digest=request.recipe.recipe_id[:32],
            task_scores=made_up_scores(self._manifest, request),
        )
        self._mark = time.thread_time()
        return outcome

    def worker_states(self) -> dict[str, WorkerState]:
        """All busy."""
        return dict(self._states)

    def close(self) -> None:
        """Nothing was started."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _go_on(self) -> None:
        """Let the clock go on with what the driver did since the last call."""
        if self.num_taken:
            spent_s = time.thread_time() - self._mark
            self._now += spent_s
            self.driver_s += spent_s


def on_paper(
    workers: Iterable[int] = PAPER_WORKERS,
    strategies: Sequence[str] = STRATEGIES,
    *,
    most: int = OUTCOMES,
) -> list[dict[str, object]]:
    """Return a row per number of workers and strategy, each of so many outcomes at most."""
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-", dir=_in_memory()) as directory:
        begun = Path(directory) / "begun.sqlite"
        _search(begun, "dirichlet", workers=8, most=_TOLD)
        rows, most_s = [], _MOST_S * most / 100
        for count in workers:
            for strategy in strategies:
                path = Path(directory) / f"{strategy}{count}.sqlite"
                shutil.copy(begun, path)
                # Proposals for everybody, by the strategy that takes no time for them.
                _search(path, "dirichlet", workers=count, most=0)
                pool = _search(path, strategy, workers=count, most=most, most_s=most_s)
                rows.append(_row(pool, count, strategy))
        return rows


def _in_memory() -> str | None:
    """Return a directory that no disk is behind, where there is one."""
    # Other users write there, too; S108 is about names that they could take first. `tempfile` makes
    # a new directory in it, under a name that nobody knows.
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108


def _search(
    path: Path, strategy: str, *, workers: int, most: int, most_s: float = math.inf
) -> PaperPool:
    """Begin a search or go on with it, until it has so many outcomes more."""
    job = make_job(path, strategy, workers, _MANY)
    spec = make_spec(job)
    if path.exists():
        archive = Archive.open(path, writable=True)
    else:
        archive = Archive.create(
            path, job=job, job_path=None, sources=spec.sources, manifest=spec.manifest
        )
    pool = PaperPool(spec, workers, most=most, most_s=most_s)
    with archive, contextlib.suppress(_EnoughError):
        run_search(archive, pool, SearchSpace(job, spec.sources), job=job)
    return pool


def _row(pool: PaperPool, workers: int, strategy: str) -> dict[str, object]:
    cost_s = pool.driver_s / pool.num_taken
    return {
        "workers": workers,
        "strategy": strategy,
        "evaluation_s": EVALUATION_S,
        "driver_ms_per_outcome": 1000 * cost_s,
        # Of its time; from 1 on it is busy all the time, and workers wait for it.
        "driver_share": workers * cost_s / EVALUATION_S,
        "utilisation": 1.0 - pool.idle_s / (workers * pool.elapsed_s),
        "outcomes": pool.num_taken,
        "told_before": _TOLD,
    }


def saturation(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return by strategy with how many workers the driver is busy all the time.

    Between rows, and beyond the last, the share of its time goes with a power of the workers.
    """
    found = {}
    for strategy in dict.fromkeys(row["strategy"] for row in rows):
        points = [
            (math.log(row["workers"]), math.log(row["driver_share"]))
            for row in rows
            if row["strategy"] == strategy
        ]
        if len(points) < 2:
            continue
        beyond = [place for place, (_, share) in enumerate(points) if share >= 0]
        last = max(1, beyond[0] if beyond else len(points) - 1)
        (x0, y0), (x1, y1) = points[last - 1], points[last]
        found[strategy] = round(math.exp(x0 - y0 * (x1 - x0) / (y1 - y0)))
    return found
