"""NSGA-II (pymoo's operators), without a generation barrier.

The population changes whenever as many of its own outcomes have been told as it has members: it
survives with them by rank and crowding. pymoo's algorithm object draws from a running stream
and waits for whole generations; here its operators are called one by one, each with a generator
that is a function of the ask or of the number of tells, so that a search is resumed exactly.

The rules (Deb et al. 2002, section III), for objectives f_m that are minimized, here minus scores:

- a dominates b where f_m(a) <= f_m(b) for all m and f_m(a) < f_m(b) for one. Rank 0 has what none
  dominates, rank r what none dominates once all smaller ranks are taken away.
- Crowding of the i-th by f_m of one rank: sum_m (f_m(i+1) - f_m(i-1)) / (max f_m - min f_m), and
  infinite at both ends of any objective. (pymoo's is the mean over m, which orders alike.)
- Old and new members survive by rank; of the rank that does not fit whole, the least crowded do.
- Parents are drawn two at a time; the one that dominates the other is taken, else the less crowded.
- Simulated binary crossover (Deb and Agrawal 1995) of x and y, per gene with probability 1/2:
  ((1 + b) x + (1 - b) y) / 2 and ((1 - b) x + (1 + b) y) / 2, where for u ~ U(0, 1) b is
  (2 u)^(1/(eta+1)) if u <= 1/2, else (2 (1 - u))^(-1/(eta+1)); eta = 15.
- Polynomial mutation, per gene with probability min(1/2, 1/n): x + d (high - low), where d is
  (2 u)^(1/(eta+1)) - 1 if u <= 1/2, else 1 - (2 (1 - u))^(1/(eta+1)); eta = 20.

pymoo's b and d have the forms for bounds, whose children lie within; far from them they are these.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation, without_nan
from optimizer.scalarize import score_matrix
from optimizer.space import SearchSpace
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.strategies.strategy import ask_generator

ORIGIN = "strategy:nsga2"

_POPULATION_SIZE = 20


class Nsga2Strategy:
    """Deb et al., "A fast and elitist multiobjective genetic algorithm: NSGA-II" (2002).

    Simulated binary crossover and polynomial mutation as pymoo sets them by default; the first
    population is drawn as ``dirichlet`` draws. Failures never survive.
    """

    def __init__(self, job: JobConfig, space: SearchSpace) -> None:
        self._space = space
        self._seed = job.seed
        self._names = tuple(job.objectives)
        self._size = job.search.population_size or _POPULATION_SIZE
        self._random = DirichletStrategy(job, space)
        self._batch: list[tuple[FloatArray, FloatArray]] = []
        self._population: Any = None  # pymoo's Population, once there is one
        self._num_told = 0

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Draw at random, or cross and mutate two members of the population."""
        rng = ask_generator(self._seed, index)
        genotype = self._random.draw(rng) if self._population is None else self._offspring(rng)
        recipe = self._space.decode(genotype)
        return Candidate(index, genotype, recipe, ORIGIN, seen=self._num_told)

    def tell(self, observation: Observation) -> None:
        """Let the population survive with what was told when that is enough."""
        observation = without_nan(observation)
        self._num_told += 1
        if observation.candidate.origin != ORIGIN or not observation.scores:
            return
        values = score_matrix([observation.scores], self._names)[0]
        self._batch.append((np.array(observation.candidate.genotype), values))
        if len(self._batch) >= self._size:
            self._survive()

    def stop(self) -> dict[str, str]:
        """Nothing but the budget ends a search on noisy scores."""
        return {}

    def _offspring(self, rng: np.random.Generator) -> FloatArray:
        from pymoo.algorithms.moo.nsga2 import binary_tournament
        from pymoo.core.mating import Mating
        from pymoo.operators.crossover.sbx import SBX
        from pymoo.operators.mutation.pm import PM
        from pymoo.operators.selection.tournament import TournamentSelection

        mating = Mating(
            TournamentSelection(func_comp=binary_tournament), SBX(eta=15, prob=0.9), PM(eta=20)
        )
        rules = SimpleNamespace(random_state=rng, tournament_type="comp_by_dom_and_crowding")
        children = mating.do(
            self._problem(), self._population, 1, algorithm=rules, random_state=rng
        )
        return np.clip(np.asarray(children.get("X")[0], dtype=np.float64), 0.0, 1.0)

    def _survive(self) -> None:
        from pymoo.core.population import Population
        from pymoo.operators.survival.rank_and_crowding import RankAndCrowding

        genotypes, values = zip(*self._batch, strict=True)
        newborn = Population.new(X=np.array(genotypes), F=-np.array(values))
        for member in newborn:
            member.set("CV", np.zeros(1))
        everyone = (
            newborn if self._population is None else Population.merge(self._population, newborn)
        )
        self._population = RankAndCrowding().do(
            self._problem(),
            everyone,
            n_survive=self._size,
            random_state=ask_generator(self._seed, self._num_told),
        )
        self._batch = []

    def _problem(self) -> object:
        from pymoo.core.problem import Problem

        return Problem(n_var=self._space.size, n_obj=len(self._names), xl=0.0, xu=1.0)
