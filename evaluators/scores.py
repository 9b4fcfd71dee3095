"""Per-item scores and what is made of one candidate's: means and their standard errors.

Two candidates are compared by ``evaluators.paired``.

Every score here is *higher is better*; the harness turns a metric around where it is not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from configs.schema import Objective

FloatArray = NDArray[np.float64]

Items = Mapping[str, Sequence[str]]
"""Task name -> item ids to score, in the order in which they are scored."""


@dataclass(frozen=True, slots=True)
class TaskScores:
    """Scores of one task, item by item.

    ``values`` is an ``(n,)`` float64 array aligned with ``item_ids``; finite, higher is better.
    """

    task: str
    item_ids: tuple[str, ...]
    values: FloatArray

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.item_ids),):
            raise ValueError(
                f"values of `{self.task}` must have shape ({len(self.item_ids)},), one per item, "
                f"found {self.values.shape}"
            )


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
        parts = [task_scores[spec.task].values for spec in objective.tasks]
        scores[name] = ObjectiveScore(
            value=float(sum(w * part.mean() for w, part in zip(weights, parts, strict=True))),
            stderr=math.hypot(
                *(w * standard_error(part) for w, part in zip(weights, parts, strict=True))
            ),
            count=sum(part.size for part in parts),
        )
    return scores


def standard_error(values: FloatArray) -> float:
    """Standard error of the mean of an ``(n,)`` array; 0 for a single value."""
    if values.size < 2:
        return 0.0
    return float(values.std(ddof=1)) / math.sqrt(values.size)
