"""CMA-ES (pycma) on noisy objectives, without a generation barrier.

The distribution is updated whenever another population of own outcomes has been told, in
whatever order they finished; proposals drawn meanwhile come from the distribution as it is.
pycma keeps the mean, the step size and the covariance; sampling is done here, from a generator
of each ask's own, since pycma's asks would draw from one running stream.

The one place where a score turns into something that is minimized is :func:`rank_fitness`.

The rules (Hansen, arXiv:1604.00772, appendix A), for a population of lambda points x_k in R^n, of
which x_{i:lambda} is the i-th best, with y_i = (x_{i:lambda} - m) / sigma of the mean m before:

    x_k ~ m + sigma N(0, C)
    w_i = w'_i / sum_{j <= mu} w'_j,   w'_i = log((lambda + 1) / 2) - log(i),   i <= mu
    m <- m + c_m sigma sum_{i <= mu} w_i y_i,   mu = floor(lambda / 2),   c_m = 1
    p_s <- (1 - c_s) p_s + sqrt(c_s (2 - c_s) mu_eff) C^(-1/2) sum_{i <= mu} w_i y_i
    sigma <- sigma exp((c_s / d_s) (|p_s| / E|N(0, I)| - 1))
    p_c <- (1 - c_c) p_c + h_s sqrt(c_c (2 - c_c) mu_eff) sum_{i <= mu} w_i y_i
    C <- C + c_1 (p_c p_c^T - C) + c_mu sum_{i <= lambda} w_i (y_i y_i^T - C)

with mu_eff = 1 / sum_{i <= mu} w_i^2. h_s is 0 while p_s is long, else 1; weights behind mu are
negative, and their y_i scaled to |C^(-1/2) y_i|^2 = n. Rates and weights behind mu are pycma's.
Here :meth:`Evolution.sample` is the first line, and :meth:`Evolution.update` the others.
"""

from collections.abc import Sequence
from typing import Any

import cma
import numpy as np
from scipy.stats import rankdata

from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation, without_nan
from optimizer.pareto import domination_depth, hypervolume_contributions
from optimizer.scalarize import preferred_mean, reference_point, score_matrix
from optimizer.space import SearchSpace
from optimizer.strategies.strategy import ask_generator

ORIGIN = "strategy:cma"


class Evolution:
    """One pycma distribution over ``(n,)`` points, sampled from generators of the caller.

    Args:
        start: First mean.
        sigma: First standard deviation in every direction.
        population_size: Points per update.
    """

    def __init__(self, start: FloatArray, sigma: float, population_size: int) -> None:
        # seed=nan leaves numpy's global generator alone; pycma's own draws (see update) come
        # from a fixed private one.
        private = np.random.default_rng(0)
        options: dict[str, object] = {
            "seed": np.nan,
            "randn": lambda *shape: private.standard_normal(shape),
            "popsize": population_size,
            "verbose": -9,
            "verb_log": 0,
        }
        self._state: Any = cma.CMAEvolutionStrategy(start, sigma, options)
        self._affine: tuple[FloatArray, FloatArray] | None = None

    @property
    def sigma(self) -> float:
        """Overall step size."""
        return float(self._state.sigma)

    @property
    def axis_ratio(self) -> float:
        """Longest axis of the distribution over its shortest."""
        lengths = np.linalg.svd(self.affine()[1], compute_uv=False)
        return float(lengths[0] / lengths[-1])

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw a point from the distribution."""
        state = self._state
        step = state.sigma_vec * state.sm.transform(rng.standard_normal(state.N))
        return np.asarray(state.mean + state.sigma * step, dtype=np.float64)

    def samples(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Draw so many points at once, ``(count, n)``."""
        if self._affine is None:
            self._affine = self.affine()
        mean, matrix = self._affine
        return np.asarray(mean + rng.standard_normal((count, len(mean))) @ matrix.T)

    def affine(self) -> tuple[FloatArray, FloatArray]:
        """Return the mean ``(n,)``, and the ``(n, n)`` matrix that turns normals into steps."""
        state = self._state
        columns = [state.sigma_vec * state.sm.transform(unit) for unit in np.eye(state.N)]
        return np.array(state.mean, dtype=np.float64), state.sigma * np.stack(columns, axis=1)

    def update(self, points: Sequence[FloatArray], fitness: FloatArray) -> None:
        """Learn from a population; fitness is minimized."""
        # pycma wants an ask before every tell. What it returns is not used; check_points=False
        # takes the solutions as they are, where pycma would shorten those it did not draw. The
        # directions that it would inject into an ask are dropped: they are no samples.
        self._affine = None
        self._state.pop_injection_directions = []
        self._state.ask(1)
        self._state.tell(list(points), fitness.tolist(), check_points=False)
        self._state.sm.update_now()


class CmaStrategy:
    """Covariance matrix adaptation, ranked by hypervolume contribution and by preference.

    Hansen, "The CMA Evolution Strategy: A Tutorial" (arXiv:1604.00772). The mean starts at the
    best baseline told so far, by the job's preference, and at equal weights without one.
    Samples outside [0, 1] are clipped, so that a weight or drop ratio can reach its bound.
    """

    def __init__(self, job: JobConfig, space: SearchSpace, *, origin: str = ORIGIN) -> None:
        self._space = space
        self._origin = origin
        self._seed = job.seed
        self._sigma = job.search.sigma
        self._preference = job.preference
        self._preference_share = job.search.preference_share
        self._population_size = job.search.population_size or 4 + int(3 * np.log(space.size))
        self._told: list[Observation] = []
        self._batch: list[Observation] = []
        self._start = space.encode(_equal_weights(space))
        self._start_value = -np.inf
        self._evolution: Evolution | None = None  # once a population was told
        self.num_updates = 0

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Sample the distribution as it is now."""
        genotype = self.sample(ask_generator(self._seed, index))
        recipe = self._space.decode(genotype)
        return Candidate(index, genotype, recipe, self._origin, seen=len(self._told))

    def sample(self, rng: np.random.Generator) -> FloatArray:
        """Draw a genotype from the distribution as it is now."""
        if self._evolution is None:
            sample = self._start + self._sigma * rng.standard_normal(self._space.size)
        else:
            sample = self._evolution.sample(rng)
        clipped: FloatArray = np.clip(sample, 0.0, 1.0)
        return clipped

    def samples(self, count: int, rng: np.random.Generator) -> FloatArray:
        """Draw so many genotypes at once, ``(count, size)``; others than :meth:`sample` draws."""
        if self._evolution is None:
            steps = self._sigma * rng.standard_normal((count, self._space.size))
            return np.asarray(np.clip(self._start + steps, 0.0, 1.0))
        return np.asarray(np.clip(self._evolution.samples(count, rng), 0.0, 1.0))

    def tell(self, observation: Observation) -> None:
        """Remember an observation; update the distribution when a population is complete."""
        observation = without_nan(observation)
        self._told.append(observation)
        if observation.scores == {}:  # Only its companions are known, which rank nothing.
            return
        if observation.candidate.origin != self._origin:
            self._move_start(observation)
            return
        self._batch.append(observation)
        if len(self._batch) >= self._population_size:
            self._update()

    def stop(self) -> dict[str, str]:
        """Nothing but the budget ends a search on noisy scores."""
        return {}

    @property
    def sigma(self) -> float:
        """Overall step size, in units of the genotype."""
        return self._sigma if self._evolution is None else self._evolution.sigma

    @property
    def axis_ratio(self) -> float:
        """Longest axis of the distribution over its shortest; 1 before the first update."""
        return 1.0 if self._evolution is None else self._evolution.axis_ratio

    def _move_start(self, observation: Observation) -> None:
        # Once CMA has begun, its own outcomes lead.
        if self._evolution is not None or not observation.scores:
            return
        value = preferred_mean(observation.scores, self._preference)
        if value > self._start_value and self._space.contains(observation.candidate.recipe):
            self._start_value = value
            self._start = np.array(observation.candidate.genotype)

    def _update(self) -> None:
        if self._evolution is None:
            self._evolution = Evolution(self._start, self._sigma, self._population_size)
        genotypes = [np.array(observation.candidate.genotype) for observation in self._batch]
        self._evolution.update(genotypes, self._fitness_of_batch())
        self.num_updates += 1
        self._batch = []

    def _fitness_of_batch(self) -> FloatArray:
        """Fitness of the batch, ``(population,)``; failures are worse than everything scored."""
        names = tuple(self._preference)
        scored = {seen.candidate.index: seen.scores for seen in self._told if seen.scores}
        worst = len(scored) + 1.0
        if not scored:
            return np.full(len(self._batch), worst)
        ranks = rank_fitness(
            score_matrix(list(scored.values()), names),
            reference_point(self._told, names),
            np.array([self._preference[name] for name in names]),
            self._preference_share,
        )
        rank_of = dict(zip(scored, ranks.tolist(), strict=True))
        return np.array([rank_of.get(seen.candidate.index, worst) for seen in self._batch])


def rank_fitness(
    points: FloatArray, reference: FloatArray, preference: FloatArray, preference_share: float
) -> FloatArray:
    """Turn score vectors into fitness values to be minimized.

    One rank orders the front by hypervolume contribution and everything behind it by how far
    it is dominated; the other orders by the preference-weighted mean. The fitness is their
    mean, weighted by ``preference_share`` in [0, 1] (1: a scalar search).

    Args:
        points: (n, m) scores, higher is better.
        reference: (m,) reference point of the hypervolume.
        preference: (m,) weights of the objectives.
        preference_share: Weight of the preference rank.

    Returns:
        ``(n,)`` float64 in [1, n]; 1 is best, ties share their mean rank.
    """
    contribution = hypervolume_contributions(points, reference)
    depth = domination_depth(points)
    by_volume = rankdata(np.where(contribution > 0, -contribution, depth))
    by_preference = rankdata(-(points @ preference))
    fitness: FloatArray = (1 - preference_share) * by_volume + preference_share * by_preference
    return fitness


def _equal_weights(space: SearchSpace) -> list[list[float]]:
    checkpoints, groups = space.shape
    return [[1.0 / checkpoints] * groups for _ in range(checkpoints)]
