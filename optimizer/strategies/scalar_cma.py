"""CMA-ES on one number per merge, as mergekit's evolutionary merging runs it: the rival.

Where weights are free and not negative, the coordinates, the start and the step are those that
mergekit-evolve 0.1.x has (``mergekit/scripts/evolve.py``, ``mergekit/evo/genome.py``): one
coordinate per weight and one per density, in their own units and without bounds, of which the
absolute value counts; the mean starts at weights 1/N and density 1, the step at 1/6, and the
population has pycma's default size. Otherwise the coordinates are the genes, clipped to the cube.

``search.l1`` is LoRAHub's penalty (Huang et al., arXiv:2307.13269, its Adapt stage): the weights w
of N adapters minimize L + alpha sum_i |w_i|. As in the authors' code the sum is divided by N, so
that alpha (there 0.05) does not depend on how many checkpoints there are: this maximizes
score - l1 (1/N) sum_i |w_i|.
"""

from collections.abc import Sequence

import numpy as np

from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation, without_nan
from optimizer.scalarize import score_matrix
from optimizer.space import SearchSpace
from optimizer.strategies.cma import Evolution
from optimizer.strategies.strategy import ask_generator

ORIGIN = "strategy:scalar_cma"

_SIGMA = 1 / 6


class ScalarCmaStrategy:
    """Maximizes the preferred mean, or the weighted Tchebycheff distance from the best seen.

    What it learns from is less by ``search.l1`` times the mean absolute weight; scores stay pure.
    It learns from its own candidates only, as mergekit does, a population at a time, in whatever
    order they finish. One that failed is worse than all others.
    """

    takes_l1 = True
    """``search.l1`` means something to it (``optimizer.strategies.registry.check_strategy``)."""

    def __init__(self, job: JobConfig, space: SearchSpace) -> None:
        self._space = space
        self._seed = job.seed
        self._names = tuple(job.objectives)
        self._preference = np.array([job.preference[name] for name in self._names])
        self._scalarization = job.search.scalarization
        self._l1 = job.search.l1
        self._low, self._high = job.merge.weight.low, job.merge.weight.high
        self._drop_low, self._drop_high = job.merge.drop_ratio.low, job.merge.drop_ratio.high
        self._folds = job.merge.parametrization == "free" and self._low >= 0
        size = job.search.population_size or 4 + int(3 * np.log(space.size))
        self._population_size = size
        self._evolution = Evolution(self._start(), _SIGMA, self._population_size)
        # Number of tells before an update -> the distribution after it; an asked point is drawn
        # again from the one that was there when it was asked.
        self._versions = [(0, *self._evolution.affine())]
        self._batch: list[Observation] = []
        self._ideal = np.full(len(self._names), -np.inf)
        self._num_told = 0

    @property
    def num_updates(self) -> int:
        """How many populations it has learnt from."""
        return len(self._versions) - 1

    @property
    def sigma(self) -> float:
        """Overall step size, in units of its coordinates."""
        return self._evolution.sigma

    @property
    def axis_ratio(self) -> float:
        """Longest axis of the distribution over its shortest."""
        return self._evolution.axis_ratio

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Sample the distribution as it is now."""
        genotype = self._genotype(self._point(index, self._num_told))
        recipe = self._space.decode(genotype)
        return Candidate(index, genotype, recipe, ORIGIN, seen=self._num_told)

    def tell(self, observation: Observation) -> None:
        """Update the distribution when a population is complete."""
        observation = without_nan(observation)
        self._num_told += 1
        if observation.candidate.origin != ORIGIN or observation.scores == {}:
            return
        if observation.scores is not None:
            values = score_matrix([observation.scores], self._names)[0]
            self._ideal = np.maximum(self._ideal, values)
        self._batch.append(observation)
        if len(self._batch) >= self._population_size:
            self._update()

    def stop(self) -> dict[str, str]:
        """Nothing but the budget ends a search on noisy scores."""
        return {}

    def _update(self) -> None:
        points = [self._point_of(observation.candidate) for observation in self._batch]
        self._evolution.update(points, self._fitness())
        self._versions.append((self._num_told, *self._evolution.affine()))
        self._batch = []

    def _fitness(self) -> FloatArray:
        """Fitness of the batch, to be minimized."""
        scored = [seen for seen in self._batch if seen.scores]
        if not scored:
            return np.zeros(len(self._batch))
        values = score_matrix([seen.scores for seen in scored if seen.scores], self._names)
        if self._scalarization == "tchebycheff":
            losses = (self._preference * (self._ideal - values)).max(axis=1)
        else:
            losses = -(values @ self._preference)
        losses = losses + [l1_penalty(self._l1, seen.candidate.recipe) for seen in scored]
        fitness = np.full(len(self._batch), losses.max() + 1.0)
        fitness[[seen.scores is not None for seen in self._batch]] = losses
        return fitness

    def _start(self) -> FloatArray:
        checkpoints, groups = self._space.shape
        equal = np.full((checkpoints, groups), 1.0 / checkpoints)
        if not self._folds:
            return self._space.encode(equal.tolist())
        densities = np.ones(self._space.size - self._space.num_weights)
        return np.concatenate([equal.ravel(), densities])

    def _point(self, index: int, seen: int) -> FloatArray:
        """Draw the point of an ask, given how many observations had been told."""
        _, mean, matrix = next(v for v in reversed(self._versions) if v[0] <= seen)
        normal = ask_generator(self._seed, index).standard_normal(self._space.size)
        return np.asarray(mean + matrix @ normal, dtype=np.float64)

    def _point_of(self, candidate: Candidate) -> FloatArray:
        """Return what CMA drew for a candidate: before it was folded or clipped."""
        point = self._point(candidate.index, candidate.seen)
        if np.allclose(self._genotype(point), candidate.genotype, atol=1e-6):
            return point
        # Proposed by another version or machine: what was evaluated is all that is known.
        if not self._folds:
            return np.array(candidate.genotype)
        weights, drops = self._space.parameters(candidate.genotype[None])
        densities = 1.0 - drops.ravel()[: self._space.size - self._space.num_weights]
        return np.concatenate([weights.ravel(), densities])

    def _genotype(self, point: FloatArray) -> FloatArray:
        if not self._folds:
            return np.clip(point, 0.0, 1.0)
        split = self._space.num_weights
        weights = np.clip(np.abs(point[:split]), self._low, self._high).reshape(self._space.shape)
        drops = np.zeros(self._space.shape)
        if self._space.has_drops:
            densities = np.minimum(np.abs(point[split:]), 1.0).reshape(self._space.shape)
            drops = np.clip(1.0 - densities, self._drop_low, self._drop_high)
        return self._space.encode(weights.tolist(), drops.tolist())


def l1_penalty(strength: float, recipe: MergeRecipe) -> float:
    """Return strength (1/N) sum_i |w_i| over the N weights of a recipe, all groups alike.

    Args:
        strength: In units of the score, >= 0.
        recipe: Weights ``(checkpoints, groups)`` of any sign.
    """
    return strength * float(np.abs(np.array(recipe.weights)).mean())
