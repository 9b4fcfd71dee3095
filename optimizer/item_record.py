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
from scipy.special import expit, logit

from evaluators.scores import FloatArray, ObjectiveScore, TaskScores

# An ability has a prior of variance 4, in logits.
_PRIOR_PRECISION = 0.25
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
        rest = np.ones(usual.size, dtype=bool)
        rest[scored] = False
        known = (part.values - low) / scale
        # Graded scores vary less than right and wrong ones with the same mean.
        graded = spread / (usual * (1 - usual))
        ability, chance = 0.0, usual
        for _ in range(_STEPS):
            slope = float((known - chance[scored]).sum()) - _PRIOR_PRECISION * ability
            curvature = float((chance * (1 - chance))[scored].sum()) + _PRIOR_PRECISION
            ability += min(1.0, max(-1.0, slope / curvature))
            chance = expit(logit(usual) + ability)
        errors = graded * chance * (1 - chance)
        precision = float(errors[scored].sum()) + _PRIOR_PRECISION
        values = chance.copy()
        values[scored] = known
        share = np.ones(usual.size) if self.first.weights is None else self.first.weights
        share = share / share.sum()
        mean = float(share @ values)
        unknown = float((share**2 * errors)[rest].sum())
        unknown += float((share * errors)[rest].sum()) ** 2 / precision
        across = float(share @ (values - mean) ** 2) + float((share * errors)[rest].sum())
        sampling = across * float((share**2).sum())
        return Prediction(low + scale * mean, scale**2 * unknown, scale**2 * sampling, scored.size)
