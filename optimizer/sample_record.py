"""How easy the items of a task are, learnt from candidates that were scored on some of them.

Rasch's model as in ``optimizer.item_record``, whose usual scores need candidates that were scored
on everything. Here each candidate's ability is found from what is known of its items so far, and
then moves what is known of these: a step of Newton's method for each item, whose precision grows
with every look at it (logistic regression learnt online, with a diagonal Gaussian posterior; for
ratings of players: Glickman, "Parameter estimation in large dynamic paired comparison
experiments", Applied Statistics 48, 1999).
"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from evaluators.scores import TaskScores
from optimizer.item_record import PRIOR_PRECISION, Prediction, ability_of, predict_whole


class SampleRecord:
    """What candidates got on the items of a task, each of them scored on some items.

    What it predicts is a function of the candidates that were added, in their order.

    Args:
        whole: Of a candidate that was scored on all items.
    """

    def __init__(self, whole: TaskScores) -> None:
        self._whole = whole
        self._place = {item: place for place, item in enumerate(whole.item_ids)}
        self._logits = np.zeros(whole.values.size)
        self._precision = np.full(whole.values.size, PRIOR_PRECISION)
        self._low, self._high = float("inf"), float("-inf")
        self.add(whole)

    def add(self, part: TaskScores) -> None:
        """Take in a candidate's scores on some items, or all."""
        self._low = min(self._low, float(part.values.min()))
        self._high = max(self._high, float(part.values.max()))
        if self._high == self._low:
            return
        rows = self._places(part)
        known = (part.values - self._low) / (self._high - self._low)
        chance = expit(self._logits[rows] + ability_of(known, self._logits[rows]))
        self._precision[rows] += chance * (1 - chance)
        self._logits[rows] += (known - chance) / self._precision[rows]

    def predict(self, part: TaskScores) -> Prediction:
        """Predict a candidate's mean over all items from its scores on some.

        Where all scores of all candidates are one number, that is the mean, with no error.
        """
        low = min(self._low, float(part.values.min()))
        scale = max(self._high, float(part.values.max())) - low
        if not scale:
            return Prediction(low, 0.0, 0.0, part.values.size)
        rows = self._places(part)
        known = (part.values - low) / scale
        chance = expit(self._logits + ability_of(known, self._logits[rows]))
        errors = chance * (1 - chance)
        unsure = errors + errors**2 / self._precision
        found = predict_whole(self._whole, rows, known, chance, errors=errors, unsure=unsure)
        return found.scaled(low, scale)

    def _places(self, part: TaskScores) -> NDArray[np.intp]:
        return np.array([self._place[item] for item in part.item_ids])
