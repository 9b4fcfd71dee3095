"""Rasch's model of who solves which item: a candidate's ability, and how easy an item is.

"Probabilistic models" (1960), on scores scaled to [0, 1]: the chance of an item has the logit of
the item's own plus the ability of who meets it. What a candidate got on some items says its
ability, and that what it would get on the others. Records differ in where the items' own logits
come from: ``optimizer.item_record`` counts candidates that were scored on everything,
``optimizer.sample_record`` learns from samples.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from evaluators.scores import FloatArray, ObjectiveScore, TaskScores

IntArray = NDArray[np.intp]

PRIOR_PRECISION = 0.25
"""Of abilities, and of how easy items are: variance 4, in logits."""

# So many of Newton's steps, each of one logit at the most.
_STEPS = 8


@dataclass(frozen=True, slots=True)
class Prediction:
    """A candidate's mean on the whole split, from some of its items.

    ``variance`` is that of what was not scored, ``sampling`` that of a split of so many items;
    ``count`` is the number of scored items.
    """

    mean: float
    variance: float
    sampling: float
    count: int

    @property
    def score(self) -> ObjectiveScore:
        """As the score of a task; its error has both parts."""
        return ObjectiveScore(self.mean, float(np.sqrt(self.variance + self.sampling)), self.count)


@dataclass(frozen=True, slots=True)
class Items:
    """What is known of the items, all ``(n,)``, of scores scaled to [0, 1].

    Attributes:
        logits: How easy they are: of their scores at ability 0.
        graded: Variances of scores, relative to those of right and wrong with the same mean.
        doubt: Variances of ``logits``.
    """

    logits: FloatArray
    graded: FloatArray
    doubt: FloatArray


class RaschRecord(ABC):
    """What candidates got on the items of a task, and what others would get.

    Args:
        whole: Of a candidate that was scored on all items; their weights are the split's.
    """

    def __init__(self, whole: TaskScores) -> None:
        self.first = whole
        self.low, self.high = float("inf"), float("-inf")
        self._place = {item: place for place, item in enumerate(whole.item_ids)}

    @property
    def span(self) -> float:
        """The largest difference that two scores of an item had."""
        return self.high - self.low

    def predict(self, part: TaskScores) -> Prediction:
        """Predict a candidate's mean from its scores on some items.

        Where all scores of all candidates are one number, that is the mean, with no error.
        """
        low = min(self.low, float(part.values.min()))
        scale = max(self.high, float(part.values.max())) - low
        if not scale:
            return Prediction(low, 0.0, 0.0, part.values.size)
        scored = self._places(part)
        known = (part.values - low) / scale
        items = self._items(low, scale)
        chance = expit(items.logits + ability_of(known, items.logits[scored]))
        slope = chance * (1 - chance)
        errors = items.graded * slope
        unsure = errors + slope**2 * items.doubt
        rest = np.ones(errors.size, dtype=bool)
        rest[scored] = False
        precision = float(errors[scored].sum()) + PRIOR_PRECISION
        values = chance.copy()
        values[scored] = known
        share = np.ones(values.size) if self.first.weights is None else self.first.weights
        share = share / share.sum()
        mean = float(share @ values)
        unknown = float((share**2 * unsure)[rest].sum())
        unknown += float((share * errors)[rest].sum()) ** 2 / precision
        across = float(share @ (values - mean) ** 2) + float((share * errors)[rest].sum())
        sampling = across * float((share**2).sum())
        return Prediction(low + scale * mean, scale**2 * unknown, scale**2 * sampling, scored.size)

    @abstractmethod
    def _items(self, low: float, scale: float) -> Items:
        """Return what is known of the items.

        Args:
            low: What is scaled to 0.
            scale: The difference that is scaled to 1.
        """

    def _widen(self, part: TaskScores) -> None:
        self.low = min(self.low, float(part.values.min()))
        self.high = max(self.high, float(part.values.max()))

    def _places(self, part: TaskScores) -> IntArray:
        return np.array([self._place[item] for item in part.item_ids])


def ability_of(known: FloatArray, logits: FloatArray) -> float:
    """Return the ability that a candidate shows, in logits.

    Args:
        known: ``(k,)``, its scores in [0, 1].
        logits: ``(k,)``, of those items.
    """
    ability = 0.0
    for _ in range(_STEPS):
        chance = expit(logits + ability)
        slope = float((known - chance).sum()) - PRIOR_PRECISION * ability
        curvature = float((chance * (1 - chance)).sum()) + PRIOR_PRECISION
        ability += min(1.0, max(-1.0, slope / curvature))
    return ability
