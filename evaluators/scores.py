"""Per-item scores and what is made of one candidate's: means and their standard errors.

Two candidates are compared by ``evaluators.paired``.

Every score here is *higher is better*; the harness turns a metric around where it is not.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.evaluation import Objective

FloatArray = NDArray[np.float64]

Items = Mapping[str, Sequence[str]]
"""Task name -> item ids to score, in the order in which they are scored."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of one task, item by item; the task's score is their weighted mean.

    Attributes:
        task: Name of the task.
        item_ids: The items, in the order in which they were scored.
        values: ``(n,)`` float64 array aligned with ``item_ids``; finite, higher is better.
        weights: ``(n,)`` float64 array, how much each item counts (bytes of a text, instructions
            of a prompt); finite, positive. None where all count alike.
    """

    task: str
    item_ids: tuple[str, ...]
    values: FloatArray
    weights: FloatArray | None = None

    def __post_init__(self) -> None:
        for name, array in (("values", self.values), ("weights", self.weights)):
            if array is not None and array.shape != (len(self.item_ids),):
                raise ValueError(
                    f"{name} of `{self.task}` must have shape ({len(self.item_ids)},), one per "
                    f"item, found {array.shape}"
                )

    @property
    def mean(self) -> float:
        """The score of the task: the mean of the values by the weights."""
        if self.weights is None:
            return float(self.values.mean())
        return float(np.average(self.values, weights=self.weights))

    def restricted_to(self, items: Collection[str]) -> "TaskScores":
        """Return the scores of some items, in their order here; others are passed over."""
        rows = [row for row, item in enumerate(self.item_ids) if item in items]
        weights = None if self.weights is None else self.weights[rows]
        ids = tuple(self.item_ids[row] for row in rows)
        return TaskScores(self.task, ids, self.values[rows], weights)


@dataclass(frozen=True, slots=True)
class ObjectiveScore:
    """Mean of an objective over its items, its standard error, and the number of items."""

    value: float
    stderr: float
    count: int


Scores = dict[str, ObjectiveScore]
"""Objective name -> score, in the order of the job file."""


def aggregate(objectives: Mapping[str, Objective], task_scores: Mapping[str, TaskScores]) -> Scores:
    """Combine per-item scores into one score per objective.

    An objective is the weighted mean of its tasks' means; its standard error adds the tasks'
    errors in quadrature, since their items are different.

    Raises:
        KeyError: A task of an objective has no scores.
    """
    scores: Scores = {}
    for name, objective in objectives.items():
        weights = np.array([spec.weight for spec in objective.tasks])
        weights /= weights.sum()
        parts = [task_scores[spec.task] for spec in objective.tasks]
        errors = [standard_error(part.values, part.weights) for part in parts]
        scores[name] = ObjectiveScore(
            value=float(sum(w * part.mean for w, part in zip(weights, parts, strict=True))),
            stderr=math.hypot(*(w * error for w, error in zip(weights, errors, strict=True))),
            count=sum(part.values.size for part in parts),
        )
    return scores


def standard_error(values: FloatArray, weights: FloatArray | None = None) -> float:
    """Standard error of the mean of an ``(n,)`` array; 0 for a single value.

    With weights it is that of the weighted mean, to first order: items are drawn together with
    their weights, so the mean is a ratio of two sums (Cochran, "Sampling Techniques", 1977,
    equation 2.39 with no finite population correction).
    """
    if values.size < 2:
        return 0.0
    if weights is None:
        return float(values.std(ddof=1)) / math.sqrt(values.size)
    residuals = weights * (values - np.average(values, weights=weights))
    n = values.size
    return math.sqrt(n / (n - 1) * float(residuals @ residuals)) / float(weights.sum())
