"""How well workers are kept busy, and what the driver takes, as workers become many.

    python -m scripts.bench.scaling --json

Real searches on real Ray actors, which sleep instead of evaluating: log-normal durations with a
median of 2 s and sigma 0.8, by recipe. For every number of workers a row per strategy: the share
of their time that workers spend in evaluations while there is something to propose (their start and
the end, where fewer and fewer are left, do not count), and the processor time of the driver's
thread per outcome. Beside it, on the same workers, what a barrier after every generation leaves of
their time: as many evaluations as workers are begun at once, and the next ones when all have ended.

``archive_outcomes_per_s`` is what an archive on the disk of TMPDIR records with full durability, in
evaluations of 3 tasks of 64 items (``scripts.bench.archive`` has more of that).

By arithmetic: the number of workers with evaluations of five minutes at which one driver is busy
all the time, and how busy it is with 1,024.
"""

import argparse
import hashlib
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from configs.errors import WorkerError
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.events import Event, Finished, ignore_event
from optimizer.space import SearchSpace
from scripts.bench.archive import record
from scripts.bench.printing import print_report
from workers.job import WorkerSpec
from workers.outcome import Completed, EvaluationKey, EvaluationRequest, Outcome
from workers.pool import WorkerState
from workers.ray_pool import RayPool
from workers.sources import ResolvedSource, Sources

STRATEGIES = ("dirichlet", "surrogate_cma")
WORKERS = (1, 4, 16, 64)
MEDIAN_S, SIGMA = 2.0, 0.8
# What a row may take; the slowest worker counts have the fewest evaluations.
ROW_S = 22.0
BARRIER_GENERATIONS = 3
NUM_ITEMS = 32
ARCHIVE_OUTCOMES = 500
PAPER_WORKERS, PAPER_EVALUATION_S = 1024, 300.0
NAMES = ("instruct", "code", "math")


def duration_s(recipe_id: str) -> float:
    """Return how long an evaluation of a recipe takes: log-normal, the same every time."""
    digest = hashlib.sha256(f"duration {recipe_id}".encode()).digest()
    uniform = (int.from_bytes(digest[:6], "big") + 0.5) / 2**48
    return MEDIAN_S * math.exp(SIGMA * statistics.NormalDist().inv_cdf(uniform))


class SleepingRunner:
    """Sleeps, and scores by a formula: the best merge is no equal weighting."""

    def __init__(self, spec: WorkerSpec, worker: str) -> None:
        self._manifest = spec.manifest
        self._worker = worker

    def run(self, request: EvaluationRequest, attempt: int = 1) -> Outcome:
        """Return a made-up outcome after a while; ``seconds`` says how long it really was."""
        start = time.perf_counter()
        time.sleep(duration_s(request.recipe.recipe_id))
        weights = np.array(request.recipe.weights)[:, 0]
        quality = float(np.exp(-2 * ((weights - [0.3, 0.7, 1.1]) ** 2).sum()))
        scores = {}
        for place, (task, items) in enumerate(self._manifest.items("search").items()):
            level = 0.6 * quality + 0.3 * min(1.0, float(weights[place]))
            draws = np.random.default_rng(place).random(len(items))
            scores[task] = TaskScores(task, tuple(items), (draws < level).astype(np.float64))
        return Completed(
            key=request.key,
            attempt=attempt,
            worker=self._worker,
            weights_digest=request.recipe.recipe_id[:32],
            task_scores=scores,
            seconds={"sleep": time.perf_counter() - start},
        )

    def close(self) -> None:
        """Nothing was started."""


def make_job(archive: Path, strategy: str, workers: int, evaluations: int) -> JobConfig:
    """Return a job on checkpoints that are not there."""
    return JobConfig.model_validate(
        {
            "models": {
                "base": "none/base",
                "checkpoints": {name: f"none/{name}" for name in NAMES},
            },
            "objectives": {name: f"task_{name}" for name in NAMES},
            "search": {
                "strategy": strategy,
                "ask_ahead": max(1, workers // 8),
                # Every evaluation is one of all items.
                "racing": {"enabled": False},
            },
            "budget": {"evaluations": evaluations},
            "workers": {"count": workers, "cpus": 0.01, "hang_factor": None},
            "archive": str(archive),
        }
    )


def make_spec(job: JobConfig) -> WorkerSpec:
    """Return what workers are made from, without a file of it."""
    sources = [ResolvedSource(name, Path("none") / name, name * 8) for name in ("base", *NAMES)]
    items = {f"task_{name}": tuple(f"{name}-{i}" for i in range(NUM_ITEMS)) for name in NAMES}
    manifest = Manifest(
        {"search": items, "select": items, "report": items},
        dict.fromkeys(items, "0" * 16),
    )
    return WorkerSpec(job, Sources(sources[0], tuple(sources[1:])), manifest)


class _SearchIsOver(Exception):  # noqa: N818 - an end, not an error
    """Enough was measured; held-out validation is not."""


class MeasuredPool:
    """A pool that notes when every worker was given something for the first time, and the last.

    Implements ``workers.pool.WorkerPool`` around another pool, which the caller closes.
    """

    def __init__(self, pool: RayPool, workers: int) -> None:
        self._pool, self._workers = pool, workers
        self.submitted_at: list[float] = []
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
                raise _SearchIsOver

        start = time.thread_time()
        with archive:
            try:
                space = SearchSpace(job, spec.sources)
                run_search(archive, measured, space, on_event=stop_before_validation)
            except _SearchIsOver:
                pass
        spent_s = time.thread_time() - start
    return Measured(measured.utilisation(), 1000 * spent_s / evaluations, evaluations)


def measure_barrier(pool: RayPool, workers: int) -> float:
    """Return the share of workers' time in evaluations when each generation waits for its last."""
    space = SearchSpace(
        make_job(Path("none"), "dirichlet", workers, 1), make_spec(_any_job(workers)).sources
    )
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


def on_paper(rows: Iterable[Mapping[str, Any]]) -> dict[str, object]:
    """Say where one driver is busy all the time, if evaluations take five minutes."""
    found: dict[str, object] = {}
    for strategy in STRATEGIES:
        costs = [row["driver_ms_per_outcome"] for row in rows if row["strategy"] == strategy]
        if costs:
            worst_s = max(costs) / 1000
            found[strategy] = {
                "saturates_at_workers": int(PAPER_EVALUATION_S / worst_s),
                "driver_share_of_1024": PAPER_WORKERS * worst_s / PAPER_EVALUATION_S,
            }
    return found


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--workers", type=int, nargs="+", default=list(WORKERS))
    arguments = parser.parse_args()
    rows = [row for workers in arguments.workers for row in measure(workers, STRATEGIES)]
    report = {
        "rows": rows,
        "archive_outcomes_per_s": archive_rate(),
        "on_paper_300_s": on_paper(rows),
    }
    if arguments.json:
        print_report(report, as_json=True)
        return
    for row in rows:
        print(json.dumps(row))
    print_report({name: report[name] for name in report if name != "rows"}, as_json=False)


if __name__ == "__main__":
    main()
