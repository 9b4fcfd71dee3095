"""How well workers are kept busy, and what the driver takes, as workers become many.

    python -m scripts.bench.scaling --json

Real searches on real Ray actors, which sleep instead of evaluating: log-normal durations with a
median of 2 s and sigma 0.8, by recipe. For every number of workers a row per strategy: the share
of their time that workers spend in evaluations while there is something to propose (their start and
the end, where fewer and fewer are left, do not count), and the processor time of the driver's
thread per outcome, once every worker has had its first evaluation (``driver_start_ms`` is what came
before). Beside it, on the same workers, what a barrier after every generation leaves of
their time: as many evaluations as workers are begun at once, and the next ones when all have ended.

``archive_outcomes_per_s`` is what an archive on the disk of TMPDIR records with full durability, in
evaluations of 3 tasks of 64 items (``scripts.bench.archive`` has more of that).

``paper`` are rows of the same driver with up to 4,096 workers that are there on paper only, whose
evaluations take five minutes (``scripts.bench.scaling_paper``); ``saturates_at_workers`` says by
strategy where it is busy all the time.
"""

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from configs.errors import WorkerError
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.events import Event, Finished, ignore_event
from optimizer.space import SearchSpace
from scripts.bench.archive import record
from scripts.bench.printing import print_report
from scripts.bench.scaling_paper import FULL_OUTCOMES, OUTCOMES, PAPER_WORKERS, on_paper, saturation
from scripts.bench.scaling_search import (
    MEDIAN_S,
    SIGMA,
    STRATEGIES,
    SleepingRunner,
    make_job,
    make_spec,
)
from workers.job import WorkerSpec
from workers.outcome import EvaluationKey, EvaluationRequest, Outcome
from workers.pool import WorkerState
from workers.ray_pool import RayPool

WORKERS = (1, 4, 16, 64)
# What a row may take; the slowest worker counts have the fewest evaluations.
ROW_S = 18.0
BARRIER_GENERATIONS = 3
ARCHIVE_OUTCOMES = 500


class _SearchOverError(Exception):
    """Enough was measured; held-out validation is not."""


class MeasuredPool:
    """A pool that notes when every worker was given something for the first time, and the last.

    Implements ``workers.pool.WorkerPool`` around another pool, which the caller closes.
    """

    def __init__(self, pool: RayPool, workers: int) -> None:
        self._pool, self._workers = pool, workers
        self.submitted_at: list[float] = []
        # Processor seconds of this thread when every worker had an evaluation.
        self.filled_at_s = 0.0
        self.ended: list[tuple[float, float]] = []

    @property
    def num_free(self) -> int:
        """As of the other pool."""
        return self._pool.num_free

    @property
    def num_pending(self) -> int:
        """As of the other pool."""
        return self._pool.num_pending

    def submit(self, request: EvaluationRequest) -> None:
        """Note the time and pass it on."""
        self._pool.submit(request)
        self.submitted_at.append(time.perf_counter())
        if len(self.submitted_at) == self._workers:
            self.filled_at_s = time.thread_time()

    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        """Note how long the evaluation took, and when it was taken."""
        outcome = self._pool.next_outcome(timeout_s)
        if outcome is not None:
            self.ended.append((time.perf_counter(), sum(outcome.seconds.values())))
        return outcome

    def worker_states(self) -> dict[str, WorkerState]:
        """As of the other pool."""
        return self._pool.worker_states()

    def utilisation(self) -> float:
        """Return the share of workers' time in evaluations, from when all had one to the last."""
        begin, end = self.submitted_at[self._workers - 1], self.submitted_at[-1]
        busy = sum(max(0.0, min(at, end) - max(at - seconds, begin)) for at, seconds in self.ended)
        return busy / (self._workers * (end - begin))

    def close(self) -> None:
        """Left to the caller."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Measured:
    """What one search showed."""

    utilisation: float
    driver_ms_per_outcome: float
    driver_start_ms: float
    outcomes: int


def measure_search(pool: RayPool, strategy: str, workers: int, evaluations: int) -> Measured:
    """Run a search to its last proposal and a little beyond."""
    with tempfile.TemporaryDirectory() as directory:
        job = make_job(Path(directory) / "archive.sqlite", strategy, workers, evaluations)
        spec = make_spec(job)
        archive = Archive.create(
            Path(job.archive), job=job, job_path=None, sources=spec.sources, manifest=spec.manifest
        )
        measured = MeasuredPool(pool, workers)

        def stop_before_validation(event: Event) -> None:
            ignore_event(event)
            if isinstance(event, Finished) and event.num_outcomes >= evaluations:
                raise _SearchOverError

        start = time.thread_time()
        with archive:
            try:
                space = SearchSpace(job, spec.sources)
                run_search(archive, measured, space, on_event=stop_before_validation)
            except _SearchOverError:
                pass
        end = time.thread_time()
    return Measured(
        measured.utilisation(),
        1000 * (end - measured.filled_at_s) / evaluations,
        1000 * (measured.filled_at_s - start),
        evaluations,
    )


def measure_barrier(pool: RayPool, workers: int) -> float:
    """Return the share of workers' time in evaluations when each generation waits for its last."""
    job = _any_job(workers)
    space = SearchSpace(job, make_spec(job).sources)
    draws = np.random.default_rng(0)
    busy = 0.0
    start = time.perf_counter()
    for generation in range(BARRIER_GENERATIONS):
        for place in range(workers):
            recipe = space.decode(draws.random(space.size))
            key = EvaluationKey(generation * workers + place, "search")
            pool.submit(EvaluationRequest(key, recipe))
        while pool.num_pending:
            outcome = pool.next_outcome()
            busy += sum(outcome.seconds.values()) if outcome else 0.0
    return busy / (workers * (time.perf_counter() - start))


def _any_job(workers: int) -> JobConfig:
    return make_job(Path("none"), "dirichlet", workers, 1)


def num_evaluations(workers: int) -> int:
    """Return how many evaluations a row takes, so that it takes about ``ROW_S``."""
    mean_s = MEDIAN_S * math.exp(SIGMA**2 / 2)
    return max(24, round(workers * ROW_S / mean_s))


def measure(workers: int, strategies: Iterable[str]) -> list[dict[str, object]]:
    """Return a row per strategy, measured on the same workers."""
    spec = make_spec(_any_job(workers))
    rows: list[dict[str, object]] = []
    with RayPool(spec, SleepingRunner) as pool:
        _warm_up(pool, spec, workers)
        barrier = measure_barrier(pool, workers)
        for strategy in strategies:
            found = measure_search(pool, strategy, workers, num_evaluations(workers))
            rows.append(
                {
                    "workers": workers,
                    "strategy": strategy,
                    "utilisation": found.utilisation,
                    "barrier_utilisation": barrier,
                    "driver_ms_per_outcome": found.driver_ms_per_outcome,
                    "driver_start_ms": found.driver_start_ms,
                    "outcomes": found.outcomes,
                }
            )
    return rows


def _warm_up(pool: RayPool, spec: WorkerSpec, workers: int) -> None:
    """Wait until every worker is there."""
    space = SearchSpace(spec.job, spec.sources)
    recipe = space.decode(np.zeros(space.size))
    end = time.monotonic() + 300
    while "starting" in pool.worker_states().values():
        if time.monotonic() > end:
            raise WorkerError(f"{workers} workers did not start within 300 s")
        pool.submit(EvaluationRequest(EvaluationKey(0, "search"), recipe))
        while pool.num_pending:
            pool.next_outcome()


def archive_rate() -> float:
    """Return how many outcomes an archive records per second."""
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-") as directory:
        return record(Path(directory) / "archive.sqlite", ARCHIVE_OUTCOMES).outcomes_per_s


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--workers",
        type=int,
        nargs="*",
        default=list(WORKERS),
        help="real ones; default: %(default)s",
    )
    parser.add_argument(
        "--paper", type=int, nargs="*", default=list(PAPER_WORKERS),
        help="on paper; default: %(default)s",
    )  # fmt: skip
    parser.add_argument("--full", action="store_true", help="more outcomes on paper")
    arguments = parser.parse_args()
    rows = [row for workers in arguments.workers for row in measure(workers, STRATEGIES)]
    paper = on_paper(arguments.paper, most=FULL_OUTCOMES if arguments.full else OUTCOMES)
    report = {
        "rows": rows,
        "archive_outcomes_per_s": archive_rate(),
        "paper": paper,
        "saturates_at_workers": saturation(paper),
    }
    if arguments.json:
        print_report(report, as_json=True)
        return
    for row in [*rows, *paper]:
        print(json.dumps(row))
    rest = {name: part for name, part in report.items() if name not in {"rows", "paper"}}
    print_report(rest, as_json=False)


if __name__ == "__main__":
    main()
