"""The driver that is disturbed: a whole search on a cluster, by the real driver.

    python -m scripts.bench.fault_search SETTINGS

The JSON object SETTINGS is a :class:`Settings`. The search is begun, or goes on. What happens is
told on standard output, a JSON object per line: ``opened`` (the archive), ``began`` (the search),
``recorded`` with a ``key``, ``told`` with a ``candidate``, ``fault`` with a ``kind``, and at the
end ``ended``, ``terminated``, ``interrupted`` or ``refused`` with a ``message``.
"""

import faulthandler
import json
import signal
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from configs.errors import MergefrontError
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.events import BlockFinished, Event, Finished
from optimizer.remembered import past_of
from optimizer.space import SearchSpace
from optimizer.termination import Terminated, finishing_on_sigterm
from scripts.bench.fault_runner import HANG_S, DisturbedPool, FaultyRunner
from scripts.bench.scripted import (
    COMPANIONS,
    IN_FULL,
    OFTEN,
    make_job,
    make_manifest,
    make_sources,
)
from workers.job import WorkerSpec
from workers.ray_pool import RayPool

VARIANTS: dict[str, dict[str, Mapping[str, object]]] = {
    "cma": {"search": {"strategy": "cma", "population_size": 6, **IN_FULL}},
    "racing": {"search": {"strategy": "dirichlet", "ask_ahead": 2, **OFTEN}},
    # What a job gets that says nothing but that its tasks have companions.
    "defaults": {"objectives": COMPANIONS, "search": {}},
}
"""Kinds of searches: changes of the job by name."""

# The baselines, and some of the search's own.
EVALUATIONS = 30
GRACE_S = 5.0
# Tells a driver to print the stacks of its threads on standard error.
STACK_SIGNAL = signal.SIGUSR1
# Shorter than the patience of the bench: a driver that gets no worker says so itself.
START_TIMEOUT_S = 120
# Every search has so many workers, each of which is content with little of a node.
NUM_WORKERS, WORKER_CPUS = 3, 0.1


@dataclass(frozen=True, slots=True)
class Settings:
    """Which search it is, and which life of its driver."""

    archive: str
    log: str
    address: str
    variant: str
    seed: int
    life: int


def fault_job(settings: Settings) -> JobConfig:
    """Return the job of a search that expects trouble."""
    changes = dict(VARIANTS[settings.variant])
    changes["search"] = {**changes["search"], "max_failed_share": 1.0}
    workers = {
        "count": NUM_WORKERS,
        "cpus": WORKER_CPUS,
        "address": settings.address,
        "hang_floor_s": HANG_S,
        "grace_s": GRACE_S,
        "start_timeout_s": START_TIMEOUT_S,
    }
    return make_job(
        Path(settings.archive),
        seed=settings.seed,
        budget={"evaluations": EVALUATIONS},
        validation={"candidates": 3},
        workers=workers,
        **changes,
    )


def open_or_create(job: JobConfig) -> Archive:
    """Open the archive of a job for writing, or make it."""
    path = Path(job.archive)
    if path.exists():
        return Archive.open(path, writable=True)
    return Archive.create(
        path, job=job, job_path=None, sources=make_sources(), manifest=make_manifest()
    )


def _tell(event: str, **more: object) -> None:
    print(json.dumps({"event": event, **more}), flush=True)


def _tell_event(event: Event) -> None:
    if isinstance(event, Finished | BlockFinished):
        _tell("recorded", key=asdict(event.outcome.key))
    if isinstance(event, Finished) and event.outcome.key.split == "search":
        _tell("told", candidate=event.candidate.index)


def run(settings: Settings) -> None:
    """Begin the search or go on with it, to its end."""
    job = fault_job(settings)
    with open_or_create(job) as archive:
        _tell("opened")
        spec = WorkerSpec(job, archive.sources, archive.manifest)
        runner = partial(FaultyRunner, log=Path(settings.log), life=settings.life)
        space = SearchSpace(archive.job, archive.sources)
        with RayPool(spec, runner, past=past_of(archive)) as pool:
            seed = 1000 * settings.seed + settings.life
            disturbed = DisturbedPool(pool, seed, lambda kind: _tell("fault", kind=kind))
            _tell("began")
            with finishing_on_sigterm(disturbed, _tell_event, GRACE_S) as on_event:
                run_search(archive, disturbed, space, job=job, on_event=on_event)


def main() -> None:
    """Run, and say how it ended."""
    faulthandler.register(STACK_SIGNAL)
    settings = Settings(**json.loads(sys.argv[1]))
    try:
        run(settings)
    except Terminated:
        _tell("terminated")
    except KeyboardInterrupt:
        _tell("interrupted")
    except MergefrontError as error:
        _tell("refused", error=type(error).__name__, message=error.message)
        raise SystemExit(error.exit_code) from error
    else:
        _tell("ended")


if __name__ == "__main__":
    main()
