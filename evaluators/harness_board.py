"""The responses of one evaluation: collected as the model gives them, and scored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from configs.errors import EvaluationError
from evaluators.scores import TaskScores

if TYPE_CHECKING:
    from concurrent.futures import Future

    from evaluators.harness_requests import FrozenItem, FrozenRequest
    from evaluators.harness_scoring import ItemScorer, Responses, ScoringPool, Weighted
    from evaluators.harness_tasks import LoadedTask


class _Unit(NamedTuple):
    """What is asked of the model at once: an item's requests, or its reference answer."""

    task: str
    item: FrozenItem
    requests: tuple[FrozenRequest, ...]
    is_target: bool


class Board:
    """Collects the responses of one evaluation, and has items scored as they come.

    Args:
        tasks: Task name -> task.
        frozen: Task name -> the items to score.
        beside: Task name -> the items whose companions are wanted; tasks without are passed over.
        pool: Scores items while others are run; None leaves it to :meth:`finish`.
    """

    def __init__(
        self,
        tasks: Mapping[str, LoadedTask],
        frozen: Mapping[str, Sequence[FrozenItem]],
        beside: Mapping[str, Sequence[FrozenItem]],
        pool: ScoringPool | None,
    ) -> None:
        self._tasks = tasks
        self._frozen = frozen
        self._beside = {
            task: items for task, items in beside.items() if items and tasks[task].has_companion
        }
        self._pool = pool
        # New processes take seconds to start: what is left of this evaluation is scored here.
        self._is_pool_whole = True
        self._units: list[_Unit] = []
        for task, items in frozen.items():
            for item in items:
                if item.requests:
                    self._units.append(_Unit(task, item, item.requests, is_target=False))
                if item.target is not None and not tasks[task].has_companion:
                    self._units.append(_Unit(task, item, (item.target,), is_target=True))
        for task, items in self._beside.items():
            for item in items:
                if item.target is not None:
                    self._units.append(_Unit(task, item, (item.target,), is_target=True))
        self._responses: dict[tuple[str, str], Responses] = {}
        self._likelihoods: dict[tuple[str, str], float] = {}
        self._futures: dict[tuple[str, str], Future[Weighted]] = {}
        self._scores: dict[tuple[str, str], Weighted] = {}

    @property
    def requests(self) -> list[tuple[FrozenRequest, ...]]:
        """What to ask the model, each with requests of one kind."""
        return [unit.requests for unit in self._units]

    def accept(self, index: int, responses: Responses) -> None:
        """Take the responses to ``requests[index]``, and pass them on to the pool if it can."""
        unit = self._units[index]
        key = unit.task, unit.item.item_id
        if unit.is_target:
            self._likelihoods[key] = self._likelihood(unit, responses)
            return
        self._responses[key] = responses
        if self._pool is not None and self._is_pool_whole:
            future = self._pool.submit(*key, responses)
            self._is_pool_whole = future is not None
            if future is not None:
                self._futures[key] = future

    def finish(self, scorer: ItemScorer) -> None:
        """Wait for the pool, and score in this process what it did not."""
        for key, responses in self._responses.items():
            score = None
            if self._pool is not None and key in self._futures:
                score = self._pool.result(self._futures[key])
            self._scores[key] = scorer.score(*key, responses) if score is None else score

    def cancel(self) -> None:
        """Let the pool score nothing more of this evaluation."""
        for future in self._futures.values():
            future.cancel()

    def task_scores(self) -> dict[str, TaskScores]:
        """Return the scores of all tasks, once :meth:`finish` has run."""
        return {task: self._scores_of(task) for task in self._frozen}

    def companions(self) -> dict[str, TaskScores]:
        """Return what stands beside the scores: the likelihoods of reference answers."""
        return {task: self._likelihoods_of(task, items) for task, items in self._beside.items()}

    def texts(self) -> dict[str, tuple[str, ...]]:
        """Return the generated texts, aligned with the items of their tasks."""
        return {
            task: tuple(str(self._responses[task, item.item_id][0]) for item in items)
            for task, items in self._frozen.items()
            if self._tasks[task].output_type == "generate_until"
        }

    def _scores_of(self, task: str) -> TaskScores:
        reference = self._tasks[task].reference
        if reference is not None and reference.is_objective:
            return self._likelihoods_of(task, self._frozen[task])
        ids = tuple(item.item_id for item in self._frozen[task])
        pairs = [self._scores[task, item] for item in ids]
        values, weights = np.array(pairs, dtype=np.float64).T
        return TaskScores(task, ids, values, None if (weights == 1.0).all() else weights)

    def _likelihoods_of(self, task: str, items: Sequence[FrozenItem]) -> TaskScores:
        ids = tuple(item.item_id for item in items)
        return TaskScores(task, ids, np.array([self._likelihoods[task, item] for item in ids]))

    def _likelihood(self, unit: _Unit, responses: Responses) -> float:
        reference = self._tasks[unit.task].reference
        response = responses[0]
        if reference is None or not isinstance(response, tuple):
            raise TypeError(f"`{unit.task}` has no reference answer whose likelihood this is")
        value = reference.value(response[0], unit.item.target_bytes)
        if not math.isfinite(value):
            raise EvaluationError(
                f"`{unit.task}`: {reference.metric} of item `{unit.item.item_id}` is {value}"
            )
        return value
