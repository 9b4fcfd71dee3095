"""What the items of a task told candidates apart by: the record of a race, item by item.

From it a race chooses which items come first, and predicts what a candidate would get on those that
it was not scored on. Chosen items bias means: a block of the items on which candidates differ most
is no sample of the split. So nothing is concluded from a block's mean. Every item has its usual
score and a spread, over the candidates that were scored on all; a candidate shows an ability on the
items that it was scored on, and its other items are predicted by the usual score shifted by that
ability (``optimizer.rasch``).

An order by a two-parameter model, which also fits how steep every item is, saves more in replays
(``scripts/bench/item_order.py``): 35.9 % of the items instead of 28.0 %, for the same .02 % of the
hypervolume. It is not built: those were four searches of strategies without a model, whose merges
are mostly far from the front, and two numbers per item are fitted to as few as a dozen candidates.
"""

import numpy as np
from scipy.special import logit

from evaluators.scores import FloatArray, TaskScores
from optimizer.rasch import Items, RaschRecord

# Weight of the two scores that every item is given beforehand, the lowest and the highest.
_HALF = 0.5


class ItemRecord(RaschRecord):
    """What candidates got on the items of a task, all of them scored on all items."""

    def __init__(self, first: TaskScores) -> None:
        super().__init__(first)
        self.total = np.zeros(first.values.size)
        self.squares = np.zeros(first.values.size)
        self.count = 0
        self.add(first)

    def add(self, part: TaskScores) -> None:
        """Take in a candidate."""
        self.total = self.total + part.values
        self.squares = self.squares + part.values**2
        self._widen(part)
        self.count += 1

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

    def _items(self, low: float, scale: float) -> Items:
        usual, spread = self.usual(low, low + scale)
        graded = spread / (usual * (1 - usual))
        return Items(logit(usual), graded, np.zeros(usual.size))
