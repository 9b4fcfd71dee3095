"""Random search with a Dirichlet prior: the baseline that a strategy has to beat."""

from collections.abc import Sequence

import numpy as np

from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace
from optimizer.strategies.strategy import ask_generator

ORIGIN = "strategy:dirichlet"

# Concentration below one favours merges that few checkpoints dominate; the total weight covers
# sums up to what merges of conflicting task vectors were found to need.
_CONCENTRATION = 0.7
_TOTAL_LOW, _TOTAL_HIGH = 0.7, 2.6


class DirichletStrategy:
    """Draws weights as Dirichlet(0.7) times a total scale, and drop ratios uniformly.

    Uniform draws from the box of weights almost never hit a useful merge of many checkpoints;
    these do. Where weights sum to one, and no gene scales them, the total is
    left out.
    """

    def __init__(self, job: JobConfig, space: SearchSpace) -> None:
        self._space = space
        self._seed = job.seed
        self._drop = job.merge.drop_ratio
        self._scaled = space.scales
        self._num_told = 0

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Draw a merge; what was told before makes no difference."""
        genotype = self.draw(ask_generator(self._seed, index))
        recipe = self._space.decode(genotype)
        return Candidate(index, genotype, recipe, ORIGIN, seen=self._num_told)

    def draw(self, rng: np.random.Generator) -> FloatArray:
        """Draw a genotype."""
        return self._space.encode(self._draw_weights(rng).tolist(), self._draw_drops(rng))

    def tell(self, observation: Observation) -> None:
        """Count it."""
        self._num_told += 1

    def stop(self) -> dict[str, str]:
        """Only the budget ends a random search."""
        return {}

    def _draw_weights(self, rng: np.random.Generator) -> FloatArray:
        """Return (checkpoints, groups) weights."""
        checkpoints, groups = self._space.shape
        shares = rng.dirichlet(np.full(checkpoints, _CONCENTRATION), size=groups).T
        total = rng.uniform(_TOTAL_LOW, _TOTAL_HIGH) if self._scaled else 1.0
        return np.asarray(shares * total, dtype=np.float64)

    def _draw_drops(self, rng: np.random.Generator) -> list[list[float]]:
        drops = rng.uniform(self._drop.low, self._drop.high, size=self._space.shape)
        return [[float(drop) for drop in row] for row in drops]
