"""Scores of real merges in this process, each item of each recipe once, remembered on disk.

Start at :class:`MergeLab`. Every score is one of the project's own evaluator on a merge that was
really made; ``scripts.bench.zoo_store`` keeps it by recipe and item.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, Self

import numpy as np

from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.blocks import block_name
from evaluators.manifest import Manifest
from evaluators.scores import Items, TaskScores
from evaluators.suite import JobSuite
from optimizer.given_baselines import resolve_baselines
from optimizer.space import SearchSpace
from scripts.bench.zoo_store import Remembered, ScoreStore, Signal
from workers.job import JobRunner, WorkerSpec
from workers.outcome import EvaluationKey, EvaluationRequest, Failed, Outcome, Stage
from workers.sources import Sources, resolve_sources

Kind = Literal["generate", "likelihood"]


class PausedError(Exception):
    """The time is over that this process was given; what it scored is remembered."""


@dataclass(slots=True)
class Cost:
    """What scores cost, remembered or not: items and the processor seconds of their evaluation."""

    items: int = 0
    seconds: float = 0.0


class MergeLab:
    """Scores merges of one pool of checkpoints, each item of each recipe once.

    Args:
        jobs: What is scored how: ``generate`` is the search's own job, ``likelihood`` the same with
            metrics that read references. A kind that is not there cannot be asked for.
        store: What was scored before.
        deadline: ``time.monotonic()`` from which on nothing is scored any more; what is
            remembered is still found.
    """

    def __init__(
        self,
        jobs: Mapping[Kind, JobConfig],
        store: ScoreStore,
        *,
        deadline: float = float("inf"),
    ) -> None:
        self.jobs = dict(jobs)
        self._deadline = deadline
        self._store = store
        self.sources: Sources = resolve_sources(self.jobs["generate"].models)
        self.manifests: dict[Kind, Manifest] = {
            kind: JobSuite(job.objectives, job.evaluation).manifest
            for kind, job in self.jobs.items()
        }
        self.space = SearchSpace(self.jobs["generate"], self.sources)
        given = resolve_baselines(self.jobs["generate"], self.sources, self.space)
        self.sources = replace(self.sources, coefficients=given.coefficients)
        self.given = {one.label: one.recipe for one in given.baselines}
        """The merges that the job names as baselines, and what they are as plain weights."""
        self._runners: dict[Kind, JobRunner] = {}
        self.paid: dict[Kind, Cost] = {kind: Cost() for kind in self.jobs}
        """What was asked for since the lab was made, whether it had to be scored or not."""
        self.scored_items = 0
        """Items that really had to be scored."""
        self.scoring_s = 0.0
        """Wall seconds that were spent on scores, remembered or not."""

    @property
    def is_over(self) -> bool:
        """Whether the deadline has passed."""
        return time.monotonic() > self._deadline

    @property
    def full_items(self) -> int:
        """Items of one full evaluation on the search split."""
        return sum(len(ids) for ids in self.manifest.items("search").values())

    @property
    def manifest(self) -> Manifest:
        """The items of every split."""
        return self.manifests["generate"]

    def scores(
        self, recipe: MergeRecipe, items: Items, kind: Kind = "generate"
    ) -> dict[str, TaskScores] | Failed:
        """Score a merge on items, from memory where they were scored before.

        Returns:
            Task -> scores in the order of ``items``, or the failure of this recipe.

        Raises:
            PausedError: Something would have to be scored after the deadline.
        """
        started = time.perf_counter()
        try:
            return self._scores(recipe, items, kind)
        finally:
            self.scoring_s += time.perf_counter() - started

    def _scores(
        self, recipe: MergeRecipe, items: Items, kind: Kind
    ) -> dict[str, TaskScores] | Failed:
        _, failure = self._store.digest_and_failure(recipe)
        if failure is not None:
            return failed(failure)
        found = {
            task: self._store.lookup(recipe, self._signal(task, kind), ids)
            for task, ids in items.items()
        }
        left = {
            task: tuple(item for item in ids if item not in found[task])
            for task, ids in items.items()
        }
        left = {task: ids for task, ids in left.items() if ids}
        if left:
            fresh = self._score(recipe, left, kind)
            if isinstance(fresh, Failed):
                return fresh
            for task, by_item in fresh.items():
                found[task] |= by_item
        cost = self.paid[kind]
        for task, ids in items.items():
            cost.items += len(ids)
            cost.seconds += sum(found[task][item].seconds for item in ids)
        return {
            task: TaskScores(task, tuple(ids), np.array([found[task][item].value for item in ids]))
            for task, ids in items.items()
        }

    def digest(self, recipe: MergeRecipe) -> str:
        """Return the digest of a merge that was scored."""
        return self._store.digest_and_failure(recipe)[0] or ""

    def close(self) -> None:
        """End what the evaluators started."""
        for runner in self._runners.values():
            runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _signal(self, task: str, kind: Kind) -> Signal:
        metrics = {
            spec.task: spec.metric
            for objective in self.jobs[kind].objectives.values()
            for spec in objective.tasks
        }
        return Signal(self.manifests[kind].task_hashes[task], metrics[task] or "")

    def _score(
        self, recipe: MergeRecipe, items: Items, kind: Kind
    ) -> dict[str, dict[str, Remembered]] | Failed:
        """Merge and score; remember what came of it.

        The evaluator runs once per task, so that seconds are those of the task's own items.
        """
        if self.is_over:
            raise PausedError
        found: dict[str, dict[str, Remembered]] = {}
        digest = ""
        for task, ids in items.items():
            started = time.process_time()
            outcome = self._runner(kind).run(_request(recipe, {task: tuple(ids)}))
            seconds = _model_seconds(outcome, time.process_time() - started) / len(ids)
            if isinstance(outcome, Failed):
                self._store.remember_failure(recipe, f"{outcome.error_class}: {outcome.message}")
                return outcome
            scores = outcome.task_scores[task]
            found[task] = {
                item: Remembered(value, seconds)
                for item, value in zip(scores.item_ids, scores.values.tolist(), strict=True)
            }
            digest = outcome.weights_digest
            self.scored_items += len(ids)
        signals = {self._signal(task, kind): by_item for task, by_item in found.items()}
        self._store.remember(recipe, signals, digest)
        return found

    def _runner(self, kind: Kind) -> JobRunner:
        if kind not in self._runners:
            spec = WorkerSpec(self.jobs[kind], self.sources, self.manifests[kind])
            self._runners[kind] = JobRunner(spec, "bench")
        return self._runners[kind]


def _model_seconds(outcome: Outcome, processor_s: float) -> float:
    """Return the processor seconds of the model's passes.

    Of the processor's time that is the share that forward passes have of what is done in this
    process; programs run in others. The wall clock would count whatever else the machine does.
    """
    here = sum(outcome.seconds.get(stage, 0.0) for stage in ("materialize", "digest", "prepare"))
    forward = outcome.seconds.get("forward", 0.0)
    return processor_s * forward / (here + forward) if forward else 0.0


def _request(recipe: MergeRecipe, items: Mapping[str, tuple[str, ...]]) -> EvaluationRequest:
    """Ask for items of the search split, as a block of them."""
    return EvaluationRequest(EvaluationKey(0, "search", block_name(items)), recipe, items)


def failed(message: str, key: EvaluationKey | None = None) -> Failed:
    """Return the outcome of a recipe that failed before."""
    return Failed(
        key=key or EvaluationKey(0, "search"),
        attempt=1,
        worker="bench",
        stage=Stage.EVALUATE,
        error_class="EvaluationError",
        message=message,
    )
