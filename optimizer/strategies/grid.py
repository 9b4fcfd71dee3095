"""Interpolations of checkpoints on a grid: what rewarded soups are, without a search.

Rame et al., "Rewarded soups" (arXiv:2306.04488): with one checkpoint C_i per objective, tuned from
one base, the merges sum_i l_i C_i for l of the simplex (l_i >= 0, sum_i l_i = 1).
"""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace

ORIGIN = "strategy:grid"

# After so many points in a row that are no other merges there are no more.
_PATIENCE = 1000

Point = tuple[float, ...]


class GridStrategy:
    """Takes the points of ever finer grids of the simplex: steps of 1, 1/2, 1/3, ...

    A grid is finished before the next one begins, in an order drawn from the seed, so that any
    budget covers the simplex evenly. What was scored before, as a baseline above all, is left out.
    Groups have the same weights, and nothing is dropped.
    """

    def __init__(self, job: JobConfig, space: SearchSpace) -> None:
        self._space = space
        self._points = grid_points(space.shape[0], job.seed)
        # What the points are here, as far as asks have come.
        self._made: dict[Point, tuple[FloatArray, MergeRecipe]] = {}
        self._barren = 0
        self._known: set[Point] = set()
        self._num_told = 0

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Propose the first point that was neither told nor is pending."""
        known = self._known | {_key(other.recipe) for other in pending}
        genotype, recipe = self._first_but(known)
        return Candidate(index, genotype, recipe, ORIGIN, self._num_told)

    def tell(self, observation: Observation) -> None:
        """Remember the merge."""
        self._num_told += 1
        self._known.add(_key(observation.candidate.recipe))

    def stop(self) -> dict[str, str]:
        """Only the budget ends it."""
        return {}

    def _first_but(self, known: set[Point]) -> tuple[FloatArray, MergeRecipe]:
        """Return the first merge that is not known; the last one where there are no more."""
        for key, made in self._made.items():
            if key not in known:
                return made
        # Of one checkpoint there is one interpolation, and bounds of weights may leave few.
        while self._barren < _PATIENCE and (point := next(self._points, None)) is not None:
            genotype = self._space.encode([[part] * self._space.shape[1] for part in point])
            recipe = self._space.decode(genotype)
            key = _key(recipe)
            if key in self._made:
                self._barren += 1
                continue
            self._barren = 0
            self._made[key] = genotype, recipe
            if key not in known:
                return genotype, recipe
        return next(reversed(self._made.values()))


def grid_points(count: int, seed: int) -> Iterator[Point]:
    """Yield points of the simplex with ``count`` coordinates, grid by grid, each point once.

    With steps of 1/k there are (k + count - 1 choose count - 1), of which those are new whose
    numerators have no common divisor with k.
    """
    for steps in itertools.count(1) if count > 1 else (1,):
        level = _level(count, steps)
        order = np.random.default_rng([seed, steps]).permutation(len(level))
        yield from (level[row] for row in order)


def _level(count: int, steps: int) -> list[Point]:
    """Return the points that come with steps of 1/steps."""
    bars = itertools.combinations(range(steps + count - 1), count - 1)
    found = []
    for places in bars:
        edges = (-1, *places, steps + count - 1)
        parts = [after - before - 1 for before, after in itertools.pairwise(edges)]
        if math.gcd(*parts) == 1:
            found.append(tuple(part / steps for part in parts))
    return found


def _key(recipe: MergeRecipe) -> Point:
    """Return weights and drop ratios, rounded, since decoding changes the last bits."""
    rows = (*recipe.weights, *recipe.drop_ratios)
    return tuple(round(number, 6) for row in rows for number in row)
