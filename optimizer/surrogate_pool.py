"""The pool that a surrogate chooses from: merges near good ones, and some from far away.

Everything is a move of genes in the unit cube. Drop ratios move seldom and are set to zero as
often, since on real merges they have to earn their genes. With layer groups a third of the moves is
the same in every group, and a third changes one group only: groups split from good recipes where
the surrogate sees a gain in it.
"""

from dataclasses import dataclass

import numpy as np

from evaluators.scores import FloatArray
from optimizer.cma_strategy import CmaStrategy
from optimizer.space import SearchSpace
from optimizer.surrogate_start import draw_merge

# How many candidates come from which source.
_LOCAL, _LINES, _SPARSE, _CMA, _RANDOM = 90, 40, 30, 40, 40
# The same for the children of what was best on a drawn function.
_NEAR_CHILDREN, _LINE_CHILDREN, _SPARSE_CHILDREN = 50, 40, 10
# Step of a local move in genes: log-uniform between these.
_STEP_LOW, _STEP_HIGH = 0.006, 0.25
# Shares of moves that leave, clear and change the drop ratios.
_KEEP_DROPS, _CLEAR_DROPS = 0.7, 0.85


@dataclass(frozen=True, slots=True)
class Parents:
    """Genotypes ``(n, size)`` to start moves from: the model's front, and all that is known."""

    best: FloatArray
    known: FloatArray


def draw_pool(
    space: SearchSpace, parents: Parents, cma: CmaStrategy, rng: np.random.Generator
) -> FloatArray:
    """Draw 240 candidate genotypes, ``(n, size)``, all in the unit cube."""
    moves = _Moves(space, rng)
    pool = [
        *(moves.near(moves.pick(parents.best)) for _ in range(_LOCAL)),
        *(moves.along(moves.pick(parents.best), moves.pick(parents.known)) for _ in range(_LINES)),
        *(moves.sparse(moves.pick(parents.best)) for _ in range(_SPARSE)),
        *(cma.sample(rng) for _ in range(_CMA)),
        *(draw_merge(space, rng) for _ in range(_RANDOM)),
    ]
    return np.clip(np.array(pool), 0.0, 1.0)


def draw_children(space: SearchSpace, elite: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw 100 moves from the best so far, ``(n, size)``, best first; in the unit cube."""
    moves = _Moves(space, rng)
    children = [
        *(moves.near(moves.pick_early(elite)) for _ in range(_NEAR_CHILDREN)),
        *(moves.along(moves.pick(elite), moves.pick(elite)) for _ in range(_LINE_CHILDREN)),
        *(moves.sparse(moves.pick_early(elite)) for _ in range(_SPARSE_CHILDREN)),
    ]
    return np.clip(np.array(children), 0.0, 1.0)


class _Moves:
    """Single moves; each returns a new genotype, which may leave the cube."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator) -> None:
        self._space = space
        self._rng = rng
        self._zero = space.encode(np.zeros(space.shape).tolist())[: space.num_weights]

    def pick(self, genotypes: FloatArray) -> FloatArray:
        """Choose one genotype."""
        chosen: FloatArray = genotypes[self._rng.integers(len(genotypes))]
        return chosen

    def pick_early(self, genotypes: FloatArray) -> FloatArray:
        """Choose one genotype, the first ones more often: by the square of a uniform draw."""
        chosen: FloatArray = genotypes[int(self._rng.random() ** 2 * len(genotypes))]
        return chosen

    def near(self, parent: FloatArray) -> FloatArray:
        """Move weights by a normal step."""
        step = np.exp(self._rng.uniform(np.log(_STEP_LOW), np.log(_STEP_HIGH)))
        child = parent.copy()
        child[: self._space.num_weights] += step * self._normal()
        if self._space.has_scale:
            child[-1] += step * self._rng.standard_normal()
        return self._with_drops(child, step)

    def along(self, start: FloatArray, end: FloatArray) -> FloatArray:
        """Go along the line through two merges, possibly beyond them."""
        return start + self._rng.uniform(-0.5, 1.2) * (end - start)

    def sparse(self, parent: FloatArray) -> FloatArray:
        """Take a checkpoint out, set its weight anew, or scale all weights."""
        child = parent.copy()
        checkpoints, groups = self._space.shape
        weights = child[: self._space.num_weights].reshape(checkpoints, groups)
        zero = self._zero.reshape(checkpoints, groups)
        kind, chosen = self._rng.random(), self._rng.integers(checkpoints)
        if kind < 0.4:
            weights[chosen] = zero[chosen]
        elif kind < 0.7:
            where = slice(None) if self._rng.random() < 0.5 else self._rng.integers(groups)
            weights[chosen, where] = self._rng.random()
        elif self._space.has_scale:
            child[-1] = self._rng.random()
        else:
            weights[:] = zero + (weights - zero) * self._rng.uniform(0.7, 1.4)
        return self._with_drops(child, 0.1)

    def _normal(self) -> FloatArray:
        """Normal steps of all weights; tied over groups, in one group, or free."""
        checkpoints, groups = self._space.shape
        kind = self._rng.random() if groups > 1 else 1.0
        if kind < 1 / 3:
            steps = np.repeat(self._rng.standard_normal((checkpoints, 1)), groups, axis=1)
        else:
            steps = self._rng.standard_normal((checkpoints, groups))
        if 1 / 3 <= kind < 2 / 3:
            steps *= np.arange(groups) == self._rng.integers(groups)
        return np.asarray(steps.ravel(), dtype=np.float64)

    def _with_drops(self, child: FloatArray, step: float) -> FloatArray:
        if not self._space.has_drops:
            return child
        drops = slice(self._space.num_weights, 2 * self._space.num_weights)
        kind = self._rng.random()
        if kind >= _CLEAR_DROPS:
            child[drops] += max(step, 0.05) * self._rng.standard_normal(self._space.num_weights)
        elif kind >= _KEEP_DROPS:
            child[drops] = 0.0
        return child
