"""Items of Rasch's model, and candidates that meet them."""

import numpy as np
from scipy.special import expit

from evaluators.scores import TaskScores

ITEMS = 64


def scores(values, weights=None) -> TaskScores:
    """Scores on all items of a task: item ``t-0`` and so on."""
    values = np.asarray(values, dtype=np.float64)
    return TaskScores("t", tuple(f"t-{i}" for i in range(values.size)), values, weights)


def part(whole: TaskScores, rows) -> TaskScores:
    """The scores of some items."""
    return whole.restricted_to({f"t-{row}" for row in rows})


def drawn(rng, ability: float, hardest: float = 4.0) -> TaskScores:
    """What a candidate of an ability solves; items are as hard as that, and as easy."""
    hard = np.linspace(-hardest, hardest, ITEMS)
    return scores(rng.random(ITEMS) < expit(ability - hard))


def graded(rng, ability: float, concentration: float) -> TaskScores:
    """The same of scores between right and wrong, which vary less."""
    chance = expit(ability - np.linspace(-2, 2, ITEMS))
    return scores(rng.beta(concentration * chance, concentration * (1 - chance)))
