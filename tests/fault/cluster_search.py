"""A whole search with real Ray workers and scripted scores: what the fault tests disturb.

``python -m tests.fault.cluster_search ARCHIVE SETTINGS`` runs it from wherever its archive stands.
The JSON object SETTINGS names the cluster (``address``), and more settings of workers. Every worker
writes which attempts it began to ``ARCHIVE.begun``, and which it came to the end of to
``ARCHIVE.ended``. Evaluations take so many seconds longer as ``ARCHIVE.slow`` says, where there is
such a file: a JSON object, seconds by the name of the host.
"""

import hashlib
import json
import os
import socket
import sys
import time
from dataclasses import replace
from pathlib import Path

from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.events import Event, Finished
from optimizer.remembered import past_of
from optimizer.space import SearchSpace
from optimizer.termination import Terminated, finishing_on_sigterm
from scripts.bench.scripted import (
    IN_FULL,
    make_job,
    make_manifest,
    make_sources,
    scripted_outcome,
)
from workers.job import WorkerSpec
from workers.outcome import EvaluationRequest, Outcome
from workers.ray_pool import RayPool

EVALUATIONS = 44
CHANGES = {
    # Proposals that depend on what was told, and on nothing else; every candidate has an outcome.
    "search": {"strategy": "cma", "population_size": 6, **IN_FULL},
    "budget": {"evaluations": EVALUATIONS},
    "validation": {"candidates": 3},
}


class ScriptedRunner:
    """Takes a while, and gives the scripted outcome of a recipe."""

    def __init__(self, spec: WorkerSpec, worker: str) -> None:
        self._spec = spec
        self._worker = worker

    def run(self, request: EvaluationRequest, attempt: int = 1) -> Outcome:
        self._note("begun", request, attempt)
        time.sleep(duration_s(request) + self._slow_s())
        self._note("ended", request, attempt)
        outcome = scripted_outcome(self._spec.job, self._spec.manifest, request)
        return replace(outcome, attempt=attempt, worker=self._worker)

    def close(self) -> None:
        pass

    def _note(self, what: str, request: EvaluationRequest, attempt: int) -> None:
        entry = {
            "candidate": request.key.candidate, "split": request.key.split, "attempt": attempt,
            "host": socket.gethostname(), "pid": os.getpid(), "at": time.time(),
        }  # fmt: skip
        with Path(f"{self._spec.job.archive}.{what}").open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def _slow_s(self) -> float:
        try:
            by_host = json.loads(Path(f"{self._spec.job.archive}.slow").read_text())
        except FileNotFoundError:
            return 0.0
        return float(by_host.get(socket.gethostname(), 0.0))


def duration_s(request: EvaluationRequest) -> float:
    """Seconds that an evaluation takes: 0.2 to 1.0, by its recipe."""
    digest = hashlib.sha256(f"{request.recipe.recipe_id}{request.key.split}".encode()).digest()
    return 0.2 + 0.8 * digest[0] / 255


def cluster_job(archive: Path, **workers: object) -> JobConfig:
    settings = {"count": 4, "cpus": 0.5, "start_timeout_s": 120, **workers}
    return make_job(archive, workers=settings, **CHANGES)


def main() -> None:
    path, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    job = cluster_job(path, **settings)
    if path.exists():
        archive = Archive.open(path, writable=True)
    else:
        archive = Archive.create(
            path, job=job, job_path=None, sources=make_sources(), manifest=make_manifest()
        )

    def show(event: Event) -> None:
        if isinstance(event, Finished):
            key = event.outcome.key
            print(f"finished {key.split} {key.candidate}", flush=True)

    spec = WorkerSpec(job, archive.sources, archive.manifest)
    space = SearchSpace(archive.job, archive.sources)
    with archive, RayPool(spec, ScriptedRunner, past=past_of(archive)) as pool:
        print("began", flush=True)
        try:
            with finishing_on_sigterm(pool, show, job.workers.grace_s) as on_event:
                result = run_search(archive, pool, space, job=job, on_event=on_event)
        except Terminated:
            print("terminated", flush=True)
            return
    print(f"ended: {result.reason}", flush=True)


if __name__ == "__main__":
    main()
