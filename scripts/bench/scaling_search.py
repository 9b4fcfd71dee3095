"""The searches whose driver is measured: no models, made-up scores, durations by recipe.

``scripts.bench.scaling`` runs them on real workers, ``scripts.bench.scaling_paper`` on paper.
"""

import hashlib
import math
import statistics
import time
from pathlib import Path

import numpy as np

from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from workers.job import WorkerSpec
from workers.outcome import Completed, EvaluationRequest, Outcome
from workers.sources import ResolvedSource, Sources

STRATEGIES = ("dirichlet", "surrogate_cma")
MEDIAN_S, SIGMA = 2.0, 0.8
NUM_ITEMS = 32
NAMES = ("instruct", "code", "math")


def duration_s(recipe_id: str) -> float:
    """Return how long an evaluation of a recipe takes: log-normal, the same every time."""
    deviate = statistics.NormalDist().inv_cdf(uniform("duration", recipe_id))
    return MEDIAN_S * math.exp(SIGMA * deviate)


def uniform(what: str, recipe_id: str) -> float:
    """Return a number between 0 and 1 that a recipe has for something, the same every time."""
    digest = hashlib.sha256(f"{what} {recipe_id}".encode()).digest()
    return (int.from_bytes(digest[:6], "big") + 0.5) / 2**48


def made_up_scores(manifest: Manifest, request: EvaluationRequest) -> dict[str, TaskScores]:
    """Score a recipe by a formula: the best merge is no equal weighting."""
    weights = np.array(request.recipe.weights)[:, 0]
    quality = float(np.exp(-2 * ((weights - [0.3, 0.7, 1.1]) ** 2).sum()))
    scores = {}
    for place, (task, items) in enumerate(manifest.items("search").items()):
        level = 0.6 * quality + 0.3 * min(1.0, float(weights[place]))
        draws = np.random.default_rng(place).random(len(items))
        scores[task] = TaskScores(task, tuple(items), (draws < level).astype(np.float64))
    return scores


class SleepingRunner:
    """Sleeps, and scores by a formula."""

    def __init__(self, spec: WorkerSpec, worker: str) -> None:
        self._manifest = spec.manifest
        self._worker = worker

    def run(self, request: EvaluationRequest, attempt: int = 1) -> Outcome:
        """Return a made-up outcome after a while; ``seconds`` says how long it really was."""
        start = time.perf_counter()
        time.sleep(duration_s(request.recipe.recipe_id))
        return Completed(
            key=request.key,
            attempt=attempt,
            worker=self._worker,
            weights_digest=request.recipe.recipe_id[:32],
            task_scores=made_up_scores(self._manifest, request),
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
