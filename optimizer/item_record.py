"""What the items of a task told candidates apart by: the record of a race, item by item.

From it a race chooses which items come first, and predicts what a candidate would get on those that
it was not scored on. Chosen items bias means: a block of the items on which candidates differ most
is no sample of the split. So nothing is concluded from a block's mean. Every item has its usual
score and a spread, over the candidates that were scored on all; a candidate shows an ability on the
items that it was scored on, and its other items are predicted by the usual score shifted by that
ability: Rasch's model ("Probabilistic models", 1960) on scores scaled to [0, 1].

An order by a two-parameter model, which also fits how steep every item is, saves more in replays
(``scripts/bench/item_order.py``): 35.9 % of the items instead of 28.0 %, for the same .02 % of the
hypervolume. It is not built: those were four searches of strategies without a model, whose merges
are mostly far from the front, and two numbers per item are fitted to as few as a dozen candidates.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit

from evaluators.scores import FloatArray, ObjectiveScore, TaskScores

PRIOR_PRECISION = 0.25
"""Of abilities, and of how easy items are: variance 4, in logits."""
# So many of Newton's steps, each of one logit at the most.
_STEPS = 8
# Weight of the two scores that every item is given beforehand, the lowest and the highest.
_HALF = 0.5


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

    def scaled(self, low: float, scale: float) -> "Prediction":
        """Return the prediction of scores from ``low`` to ``low + scale``, of one from 0 to 1."""
        variance, sampling = scale**2 * self.variance, scale**2 * self.sampling
        return Prediction(low + scale * self.mean, variance, sampling, self.count)


class ItemRecord:
    """What candidates got on the items of a task, all of them scored on all items."""

    def __init__(self, first: TaskScores) -> None:
        self.first = first
        self.total = np.zeros(first.values.size)
        self.squares = np.zeros(first.values.size)
        self.low, self.high = float("inf"), float("-inf")
        self.count = 0
        self._place = {item: place for place, item in enumerate(first.item_ids)}
        self.add(first)

    def add(self, part: TaskScores) -> None:
        """Take in a candidate."""
        self.total = self.total + part.values
        self.squares = self.squares + part.values**2
        self.low = min(self.low, float(part.values.min()))
        self.high = max(self.high, float(part.values.max()))
        self.count += 1

    @property
    def span(self) -> float:
        """The largest difference that two scores of an item had."""
        return self.high - self.low

    def usual(self, low: float, high: float) -> tuple[FloatArray, FloatArray]:
        """Return every item's usual score and its variance, both ``(n,)``.

        Scores are scaled so that ``low`` is 0 and ``high`` is 1. A usual score is never 0 or 1,
        since that all solved an item is no certainty.
        """
        scale = high - low
        weight = self.count + 2 * _HALF
        mean = ((self.total - self.count * low) / scale + _HALF) / weight
        square = self.squares - 2 * low * self.total + self.count * low**2
        variance = (square / scale**2 + _HALF) / weight - mean**2
        return mean, np.maximum(variance, 0.0)

    def worth(self) -> dict[str, float]:
        """Return item -> how much it tells candidates apart: the variance of what they got."""
        if not self.span:
            return dict.fromkeys(self.first.item_ids, 0.0)
        _, variance = self.usual(self.low, self.high)
        return dict(zip(self.first.item_ids, variance.tolist(), strict=True))

    def predict(self, part: TaskScores) -> Prediction:
        """Predict a candidate's mean from its scores on some items.

        Where all scores of all candidates are one number, that is the mean, with no error.
        """
        low = min(self.low, float(part.values.min()))
        scale = max(self.high, float(part.values.max())) - low
        if not scale:
            return Prediction(low, 0.0, 0.0, part.values.size)
        usual, spread = self.usual(low, low + scale)
        scored = np.array([self._place[item] for item in part.item_ids])
        known = (part.values - low) / scale
        logits = logit(usual)
        chance = expit(logits + ability_of(known, logits[scored]))
        # Graded scores vary less than right and wrong ones with the same mean.
        errors = spread / (usual * (1 - usual)) * chance * (1 - chance)
        found = predict_whole(self.first, scored, known, chance, errors=errors, unsure=errors)
        return found.scaled(low, scale)


def ability_of(known: FloatArray, logits: FloatArray) -> float:
    """Return the ability that a candidate shows, in logits.

    Args:
        known: ``(k,)``, its scores in [0, 1].
        logits: ``(k,)``, of the usual scores of those items.
    """
    ability = 0.0
    for _ in range(_STEPS):
        chance = expit(logits + ability)
        slope = float((known - chance).sum()) - PRIOR_PRECISION * ability
        curvature = float((chance * (1 - chance)).sum()) + PRIOR_PRECISION
        ability += min(1.0, max(-1.0, slope / curvature))
    return ability


def predict_whole(
    first: TaskScores,
    scored: NDArray[np.intp],
    known: FloatArray,
    chance: FloatArray,
    *,
    errors: FloatArray,
    unsure: FloatArray,
) -> Prediction:
    """Predict a mean of scores in [0, 1] over a split of ``n`` items.

    Args:
        first: Some candidate's, on all items; their weights are the split's.
        scored: ``(k,)``, places of the items that were scored.
        known: ``(k,)``, the scores there.
        chance: ``(n,)``, what is expected of every item.
        errors: ``(n,)``, variances of scores around that.
        unsure: ``(n,)``, the same with what is not known of the item itself.
    """
    rest = np.ones(chance.size, dtype=bool)
    rest[scored] = False
    precision = float(errors[scored].sum()) + PRIOR_PRECISION
    values = chance.copy()
    values[scored] = known
    share = np.ones(chance.size) if first.weights is None else first.weights
    share = share / share.sum()
    mean = float(share @ values)
    unknown = float((share**2 * unsure)[rest].sum())
    unknown += float((share * errors)[rest].sum()) ** 2 / precision
    across = float(share @ (values - mean) ** 2) + float((share * errors)[rest].sum())
    return Prediction(mean, unknown, across * float((share**2).sum()), scored.size)
