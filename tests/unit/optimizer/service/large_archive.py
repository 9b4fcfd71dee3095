"""An archive of many candidates with many items, as a long search leaves it."""

from pathlib import Path

import numpy as np

from configs.evaluation import SPLITS
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from optimizer.space import SearchSpace
from tests.unit.optimizer.synthetic_archive import make_job, make_sources
from workers.outcome import Completed, EvaluationKey

NAMES = ("instruct", "code", "math")


def build_large(path: Path, num_candidates: int, num_items: int, *, strategy: str = "cma") -> Path:
    """Write it: right or wrong on ``num_items`` items in all, better where weights are near .6."""
    search = {"strategy": strategy}
    job = make_job(path, NAMES, budget={"evaluations": num_candidates}, search=search)
    sources = make_sources()
    space = SearchSpace(job, sources)
    tasks = {name: f"zoo_{name}" for name in NAMES}
    counts = [num_items // 3 + (number < num_items % 3) for number in range(3)]
    items = {
        split: {
            tasks[name]: tuple(f"{split}-{name}-{item:04d}" for item in range(count))
            for name, count in zip(NAMES, counts, strict=True)
        }
        for split in SPLITS
    }
    manifest = Manifest(items, dict.fromkeys(tasks.values(), "0" * 16))
    rng = np.random.default_rng(0)
    with Archive.create(
        path, job=job, job_path=None, sources=sources, manifest=manifest
    ) as archive:
        archive.begin_run()
        for index in range(num_candidates):
            add_candidate(archive, space, index, rng)
    return path


def add_candidate(
    archive: Archive, space: SearchSpace, index: int, rng: np.random.Generator
) -> None:
    """Record one more proposal, and its scores on the search split."""
    weights = rng.uniform(0, 1.2, size=3)
    recipe = space.recipe([[float(weight)] for weight in weights], [[0.1]] * 3)
    genotype = space.encode(recipe.weights, recipe.drop_ratios)
    origin = "baseline:base" if index == 0 else f"strategy:{archive.job.search.strategy}"
    archive.record_proposal(Candidate(index, genotype, recipe, origin, seen=index))
    scores = {}
    for number, (task, ids) in enumerate(archive.manifest.items("search").items()):
        chance = 0.9 - 0.4 * abs(weights[number] - 0.6) - 0.2 * max(0.0, weights.sum() - 2)
        right = (rng.random(len(ids)) < chance).astype(np.float64)
        scores[task] = TaskScores(task, tuple(ids), right)
    archive.record_outcome(
        Completed(
            key=EvaluationKey(index, "search"),
            attempt=1,
            worker=f"worker-{index % 4}",
            weights_digest=f"{index:032x}",
            task_scores=scores,
            seconds={"materialize": 0.1, "forward": 2.0},
        )
    )
