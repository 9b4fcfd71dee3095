"""Real archives with made-up outcomes, written through the archive's own interface."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.evaluation import SPLITS, SplitName
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from optimizer.space import SearchSpace
from workers.outcome import Completed, EvaluationKey, Failed, Stage
from workers.sources import ResolvedSource, Sources

NUM_ITEMS = 20
CHECKPOINTS = ("instruct", "code", "math")


@dataclass(frozen=True)
class Merge:
    """A candidate and its scores; each score is a share of ``NUM_ITEMS`` items, None a failure."""

    weights: Sequence[float]
    search: Sequence[float] | None = None
    select: Sequence[float] | None = None
    report: Sequence[float] | None = None
    origin: str = "strategy:cma"
    drop: float = 0.0


def make_job(path: Path, objectives: Sequence[str] = CHECKPOINTS, **changes: object) -> JobConfig:
    content = {
        "name": "synthetic",
        "models": {
            "base": "/models/base",
            "checkpoints": {name: f"/models/{name}" for name in CHECKPOINTS},
        },
        "objectives": {name: f"zoo_{name}" for name in objectives},
        "archive": str(path),
    }
    return JobConfig.model_validate(content | changes)


def make_sources() -> Sources:
    def resolved(name: str) -> ResolvedSource:
        return ResolvedSource(name, Path("/models") / name, digest=name.ljust(64, "0"))

    return Sources(resolved("base"), tuple(resolved(name) for name in CHECKPOINTS))


def make_manifest(objectives: Sequence[str]) -> Manifest:
    splits = {
        split: {f"zoo_{name}": _items(split, name) for name in objectives} for split in SPLITS
    }
    return Manifest(splits, {f"zoo_{name}": "0" * 16 for name in objectives})


def greedy_path() -> list[Merge]:
    """Return what a greedy soup is found by: single checkpoints, and soups of the best of them."""
    singles = [
        Merge(weights, (score,) * 3, report=(score,) * 3, origin=f"baseline:checkpoint {name}")
        for weights, score, name in (
            ((1.0, 0.0, 0.0), 0.3, "instruct"),
            ((0.0, 1.0, 0.0), 0.4, "code"),
            ((0.0, 0.0, 1.0), 0.2, "math"),
        )
    ]
    return [
        *singles,
        Merge((0.5, 0.5, 0.0), (0.6,) * 3, report=(0.55,) * 3, origin="baseline:soup of a"),
        Merge((1 / 3,) * 3, (0.5,) * 3, report=(0.5,) * 3, origin="baseline:uniform soup"),
    ]


def build(
    path: Path,
    merges: Sequence[Merge],
    *,
    objectives: Sequence[str] = CHECKPOINTS,
    chosen: int | None = None,
    **changes: object,
) -> Path:
    """Write an archive with one candidate per merge, in their order; returns its path."""
    job = make_job(path, objectives, **changes)
    sources = make_sources()
    archive = Archive.create(
        path, job=job, job_path=None, sources=sources, manifest=make_manifest(objectives)
    )
    with archive:
        archive.begin_run()
        for merge in merges:
            add(archive, merge)
        for split in ("select", "report"):
            for index, merge in enumerate(merges):
                if (values := getattr(merge, split)) is not None:
                    archive.record_outcome(_outcome(job, index, split, values))
        if chosen is not None:
            archive.record_choice(chosen, "for the test")
    return path


def add(archive: Archive, merge: Merge) -> int:
    """Record one more candidate with its scores on the search split; returns its index."""
    space = SearchSpace(archive.job, make_sources())
    index = len(archive.candidates())
    recipe = space.recipe(
        [[weight] * space.shape[1] for weight in merge.weights],
        [[merge.drop] * space.shape[1] for _ in merge.weights],
    )
    genotype = space.encode(recipe.weights, recipe.drop_ratios)
    archive.record_proposal(Candidate(index, genotype, recipe, merge.origin, seen=index))
    archive.record_outcome(_outcome(archive.job, index, "search", merge.search))
    return index


def _items(split: str, name: str) -> tuple[str, ...]:
    return tuple(f"{split}-{name}-{item:02d}" for item in range(NUM_ITEMS))


def _outcome(
    job: JobConfig, index: int, split: SplitName, values: Sequence[float] | None
) -> Completed | Failed:
    key = EvaluationKey(index, split)
    if values is None:
        return Failed(
            key=key,
            attempt=1,
            worker="test",
            stage=Stage.EVALUATE,
            error_class="EvaluationError",
            message="logits are not finite",
        )
    scores = {}
    for name, value in zip(job.objectives, values, strict=True):
        right = np.arange(NUM_ITEMS) < round(value * NUM_ITEMS)
        task = f"zoo_{name}"
        scores[task] = TaskScores(task, _items(split, name), right.astype(np.float64))
    return Completed(
        key=key, attempt=1, worker="test", weights_digest=f"{index:032x}", task_scores=scores
    )
