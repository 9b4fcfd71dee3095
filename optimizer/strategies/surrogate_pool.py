"""The pool that a surrogate chooses from: merges near good ones, and some from far away.

Everything is a move of genes in the unit cube. Drop ratios move seldom and are set to zero as
often, since on real merges they have to earn their genes. With layer groups a third of the moves is
the same in every group, and a third changes one group only: groups split from good recipes where
the surrogate sees a gain in it.
"""

from dataclasses import dataclass

import numpy as np

from evaluators.scores import FloatArray
from optimizer.space import SearchSpace
from optimizer.strategies.cma import CmaStrategy
from optimizer.strategies.surrogate_start import draw_merges
from optimizer.surrogate.surrogate import Surrogate

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


@dataclass(frozen=True, slots=True)
class Belief:
    """What observations mean; a function of them alone.

    Attributes:
        surrogate: The posterior of all objectives.
        front: ``(f, m)`` posterior medians of the merges that none dominates by them.
        reference: ``(m,)``, the corner of the hypervolume.
        parents: Where moves start.
    """

    surrogate: Surrogate
    front: FloatArray
    reference: FloatArray
    parents: Parents


def draw_pool(
    space: SearchSpace, parents: Parents, cma: CmaStrategy | None, rng: np.random.Generator
) -> FloatArray:
    """Draw 240 candidate genotypes, ``(n, size)``, all in the unit cube; 200 without CMA-ES."""
    moves = _Moves(space, rng)
    pool = [
        moves.near(moves.pick(parents.best, _LOCAL)),
        moves.along(moves.pick(parents.best, _LINES), moves.pick(parents.known, _LINES)),
        moves.sparse(moves.pick(parents.best, _SPARSE)),
        *([] if cma is None else [cma.samples(_CMA, rng)]),
        draw_merges(space, _RANDOM, rng),
    ]
    return np.clip(np.concatenate(pool), 0.0, 1.0)


def draw_children(space: SearchSpace, elite: FloatArray, rng: np.random.Generator) -> FloatArray:
    """Draw 100 moves from the best so far, ``(n, size)``, best first; in the unit cube."""
    moves = _Moves(space, rng)
    children = [
        moves.near(moves.pick_early(elite, _NEAR_CHILDREN)),
        moves.along(moves.pick(elite, _LINE_CHILDREN), moves.pick(elite, _LINE_CHILDREN)),
        moves.sparse(moves.pick_early(elite, _SPARSE_CHILDREN)),
    ]
    return np.clip(np.concatenate(children), 0.0, 1.0)


class _Moves:
    """Many moves of a kind at once, one per row; results may leave the cube."""

    def __init__(self, space: SearchSpace, rng: np.random.Generator) -> None:
        self._space = space
        self._rng = rng
        zero = space.encode(np.zeros(space.shape).tolist())[: space.num_weights]
        self._zero = zero.reshape(space.shape)

    def pick(self, genotypes: FloatArray, count: int) -> FloatArray:
        """Choose so many genotypes, with replacement."""
        chosen: FloatArray = genotypes[self._rng.integers(len(genotypes), size=count)]
        return chosen

    def pick_early(self, genotypes: FloatArray, count: int) -> FloatArray:
        """Choose so many, the first ones more often: by the square of a uniform draw."""
        rows = (self._rng.random(count) ** 2 * len(genotypes)).astype(int)
        chosen: FloatArray = genotypes[rows]
        return chosen

    def near(self, parents: FloatArray) -> FloatArray:
        """Move weights by a normal step."""
        count = len(parents)
        steps = np.exp(self._rng.uniform(np.log(_STEP_LOW), np.log(_STEP_HIGH), (count, 1)))
        children = parents.copy()
        children[:, : self._space.num_weights] += steps * self._normal(count)
        if self._space.has_scale:
            children[:, -1:] += steps * self._rng.standard_normal((count, 1))
        return self._with_drops(children, steps)

    def along(self, starts: FloatArray, ends: FloatArray) -> FloatArray:
        """Go along the line through two merges, possibly beyond them."""
        return starts + self._rng.uniform(-0.5, 1.2, (len(starts), 1)) * (ends - starts)

    def sparse(self, parents: FloatArray) -> FloatArray:
        """Take a checkpoint out, set its weight anew, or scale all weights."""
        count, (checkpoints, groups) = len(parents), self._space.shape
        children = parents.copy()
        weights = children[:, : self._space.num_weights].reshape(count, checkpoints, groups)
        kind = self._rng.random((count, 1, 1))
        chosen = np.arange(checkpoints)[:, None] == self._rng.integers(checkpoints, size=kind.shape)
        group = self._rng.integers(groups, size=kind.shape)
        where = (self._rng.random(kind.shape) < 0.5) | (np.arange(groups) == group)
        fresh, shrink = self._rng.random(kind.shape), self._rng.uniform(0.7, 1.4, kind.shape)
        scales = np.broadcast_to(kind >= 0.7, weights.shape)
        if self._space.has_scale:
            children[:, -1] = np.where(kind.ravel() >= 0.7, fresh.ravel(), children[:, -1])
            scales = np.zeros_like(scales)
        weights = np.select(
            [chosen & (kind < 0.4), chosen & where & (kind >= 0.4) & (kind < 0.7), scales],
            [self._zero, fresh, self._zero + (weights - self._zero) * shrink],
            weights,
        )
        children[:, : self._space.num_weights] = weights.reshape(count, -1)
        return self._with_drops(children, np.full((count, 1), 0.1))

    def _normal(self, count: int) -> FloatArray:
        """Normal steps of all weights; tied over groups, in one group, or free."""
        checkpoints, groups = self._space.shape
        steps = self._rng.standard_normal((count, checkpoints, groups))
        if groups > 1:
            kind = self._rng.random((count, 1, 1))
            only = np.arange(groups) == self._rng.integers(groups, size=kind.shape)
            steps = np.where(kind < 1 / 3, steps[:, :, :1], steps)
            steps *= only | (kind < 1 / 3) | (kind >= 2 / 3)
        return np.asarray(steps.reshape(count, -1), dtype=np.float64)

    def _with_drops(self, children: FloatArray, steps: FloatArray) -> FloatArray:
        if not self._space.has_drops:
            return children
        drops = children[:, self._space.num_weights : 2 * self._space.num_weights]
        kind = self._rng.random((len(children), 1))
        moved = drops + np.maximum(steps, 0.05) * self._rng.standard_normal(drops.shape)
        drops[:] = np.select([kind >= _CLEAR_DROPS, kind >= _KEEP_DROPS], [moved, 0.0], drops)
        return children
