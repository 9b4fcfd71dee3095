"""A whole search on the scripted pool; run as a program, it is what gets killed.

``python scripted_search.py ARCHIVE KILLS SEED NAME`` runs the search that ``SEARCHES`` calls NAME
in a child process, kills the child with SIGKILL after a random time, and resumes it in the next
child, until KILLS kills have hit a running search; then lets it end. It prints, after every kill,
the keys that had been acknowledged and those that the archive holds, as one JSON line each.
"""

import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import astuple
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

from configs.evaluation import SPLITS
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate, Observation
from optimizer.driver import run_search
from optimizer.events import BlockFinished, Event, Finished
from optimizer.space import SearchSpace
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.strategies.registry import STRATEGIES
from scripts.bench.scripted import (
    COMPANIONS,
    IN_FULL,
    OFTEN,
    make_job,
    make_manifest,
    make_sources,
)
from tests.fault.scripted_pool import ScriptedPool
from workers.outcome import EvaluationKey, EvaluationRequest

SEARCHES = {
    "plain": {"search": {"strategy": "cma", "population_size": 6, "ask_ahead": 0, **IN_FULL}},
    "racing": {"search": {"strategy": "cma", "population_size": 6, "ask_ahead": 2, **OFTEN}},
    "screening": {
        "objectives": COMPANIONS,
        "search": {"strategy": "companion_dirichlet", "screening": {"candidates": 3}, **OFTEN},
    },
    # What a job gets that says nothing but that its tasks have companions, or not even that.
    "defaults": {"objectives": COMPANIONS, "search": {}, "budget": {"evaluations": 30}},
    "sampling": {"search": {}, "budget": {"evaluations": 30}},
    "screening samples": {
        "objectives": COMPANIONS,
        "search": {"screening": {"enabled": True}},
        "budget": {"evaluations": 24},
    },
}
"""Changes of the job by name."""


class CompanionDirichlet(DirichletStrategy):
    """Random search that scores the candidate of a group with the best companions."""

    def promote(self, candidates: Sequence[Candidate], observations: Sequence[Observation]) -> int:
        means = [sum(c.value for c in seen.companions.values()) for seen in observations]
        assert [seen.candidate for seen in observations] == list(candidates)
        return int(np.argmax(means))


class SamplingDirichlet(CompanionDirichlet):
    """The same, of samples."""

    learns_from_samples = True


def with_strategies():
    """Within this context, jobs may name the strategies of this module."""
    return patch.dict(
        STRATEGIES, companion_dirichlet=CompanionDirichlet, sampling_dirichlet=SamplingDirichlet
    )


def run(path: Path, *, sleep_s: float = 0.0, on_event=lambda event: None, **changes: object) -> int:
    """Begin a search or go on with it; returns the chosen candidate."""
    job, manifest = make_job(path, **changes), make_manifest()
    if path.exists():
        archive = Archive.open(path, writable=True)
    else:
        archive = Archive.create(
            path, job=job, job_path=None, sources=make_sources(), manifest=manifest
        )
    with archive, with_strategies(), ScriptedPool(job, manifest, sleep_s=sleep_s) as pool:
        space = SearchSpace(archive.job, archive.sources)
        return run_search(archive, pool, space, on_event=on_event).chosen


def record(path: Path) -> dict[str, object]:
    """Everything that must not depend on how often a search was killed."""
    with Archive.open(path) as archive:
        return {
            "proposals": [
                (c.index, c.origin, c.seen, c.recipe.recipe_id, c.genotype.tolist())
                for c in archive.candidates()
            ],
            "outcomes": {
                split: [(o.key.candidate, repr(o.scores)) for o in archive.outcomes(split)]
                for split in SPLITS
            },
            "observations": [
                (o.candidate.index, repr(o.scores), repr(o.companions), o.stopped)
                for o in archive.observations()
            ],
            "stops": {
                index: (found.sequence, found.stop) for index, found in archive.stops().items()
            },
            "evaluations": [(o.key, repr(o.scores)) for o in archive.evaluations()],
            "choice": archive.choice(),
        }


def whole_request(candidate: Candidate) -> EvaluationRequest:
    return EvaluationRequest(EvaluationKey(candidate.index, "search"), candidate.recipe)


def recorded_keys(path: Path) -> list[tuple[object, ...]]:
    if not path.exists():
        return []
    with Archive.open(path) as archive:
        return [astuple(outcome.key) for outcome in archive.evaluations()]


def acknowledge(descriptor: int, event: Event) -> None:
    if isinstance(event, Finished | BlockFinished):
        line = json.dumps(astuple(event.outcome.key)) + "\n"
        os.write(descriptor, line.encode())


def main() -> None:
    path, kills = Path(sys.argv[1]), int(sys.argv[2])
    rng, changes = random.Random(int(sys.argv[3])), SEARCHES[sys.argv[4]]
    while kills:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(read)
            run(path, sleep_s=0.004, on_event=partial(acknowledge, write), **changes)
            os._exit(0)
        os.close(write)
        if rng.random() < 0.7:
            # On a busy machine most kills would come before anything has happened.
            select.select([read], [], [], 30.0)
        time.sleep(rng.uniform(0.02, 0.35))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        with os.fdopen(read) as acknowledged:
            keys = [json.loads(line) for line in acknowledged.read().splitlines()]
        print(json.dumps({"acknowledged": keys, "recorded": recorded_keys(path)}), flush=True)
        if not os.WIFSIGNALED(status):
            print(json.dumps({"ended_before_kills": kills}), flush=True)
            break
        kills -= 1
    run(path, **changes)


if __name__ == "__main__":
    main()
