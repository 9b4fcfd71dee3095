"""How easy the items of a task are, learnt from candidates that were scored on some of them.

Usual scores, as ``optimizer.item_record`` has them, need candidates that were scored on everything.
Here each candidate's ability is found from what is known of its items so far, and then moves what
is known of these: a step of Newton's method for each item, whose precision grows with every look at
it (logistic regression learnt online, with a diagonal Gaussian posterior; for ratings of players:
Glickman, "Parameter estimation in large dynamic paired comparison experiments", Applied Statistics
48, 1999).
"""

import numpy as np
from scipy.special import expit
from typing_extensions import override

from evaluators.scores import TaskScores
from optimizer.rasch import PRIOR_PRECISION, Items, RaschRecord, ability_of


class SampleRecord(RaschRecord):
    """What candidates got on the items of a task, each of them scored on some items.

    What it predicts is a function of the candidates that were added, in their order.
    """

    def __init__(self, whole: TaskScores) -> None:
        super().__init__(whole)
        self._logits = np.zeros(whole.values.size)
        self._precision = np.full(whole.values.size, PRIOR_PRECISION)
        # Sums of squared errors so far, and of what they would be of right and wrong.
        self._squares = self._binomial = 1.0
        self.add(whole)

    def add(self, part: TaskScores) -> None:
        """Take in a candidate's scores on some items, or all."""
        self._widen(part)
        if not self.span:
            return
        rows = self._places(part)
        known = (part.values - self.low) / self.span
        chance = expit(self._logits[rows] + ability_of(known, self._logits[rows]))
        self._squares += float(((known - chance) ** 2).sum())
        self._binomial += float((chance * (1 - chance)).sum())
        self._precision[rows] += chance * (1 - chance)
        self._logits[rows] += (known - chance) / self._precision[rows]

    @override
    def _items(self, low: float, scale: float) -> Items:
        graded = min(1.0, self._squares / self._binomial)
        return Items(self._logits, np.full(self._logits.size, graded), 1 / self._precision)
