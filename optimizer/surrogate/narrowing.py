"""What merges under evaluation take from a posterior's variance, by blocks of them.

The factor of everything, [L, 0; B^T, C], follows from the factor L of what is known: B = L^-1 K and
C C^T = K' - B^T B, with K between the known merges and those under evaluation, and K' among these.
Between two beliefs merges are only added to those under evaluation, so whole blocks of B and C are
kept, and an ask computes the last block alone: with a thousand workers that is what an ask takes.
The operations are the same ones whether blocks are kept or computed anew, so no ask depends on it.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import solve_triangular

from evaluators.scores import FloatArray
from optimizer.surrogate.kernel import Features, Similarities, kernel_matrix
from optimizer.surrogate.linalg import factor_of

BLOCK = 128
"""Merges of a block."""


@dataclass(frozen=True, slots=True)
class _Block:
    """Some of the merges: their ``(n, b)`` parts of K and B, and the ``(b, ...)`` rows of C.

    ``left`` are those rows as far as the blocks before, ``corner`` is what is triangular of them.
    """

    features: Features
    cross: FloatArray
    below: FloatArray
    left: FloatArray
    corner: FloatArray


class Narrowing:
    """The blocks of one process; it keeps the whole ones of the last call.

    Args:
        known: The ``n`` merges that the process knows.
        factor: Lower Cholesky factor of their covariance.
        logs: Hyper-parameters.
    """

    def __init__(self, known: Features, factor: FloatArray, logs: FloatArray) -> None:
        self._known, self._factor, self._logs = known, factor, logs
        self._kept: list[_Block] = []
        self._kept_noise = 0.0

    def by(self, pending: Features, noise: float) -> "Narrowed":
        """Return the system of what is known and ``m`` merges under evaluation.

        Args:
            pending: Those merges, at least one.
            noise: Variance of the noise that their scores will have.
        """
        # A companion is another guess in every ask.
        may_keep = pending.companion is None
        kept = self._kept if may_keep and noise == self._kept_noise else []
        blocks: list[_Block] = []
        for start in range(0, len(pending), BLOCK):
            features, place = pending.take(slice(start, start + BLOCK)), len(blocks)
            if place < len(kept) and _are_equal(kept[place].features, features):
                blocks.append(kept[place])
            else:
                kept = []
                blocks.append(self._block(features, noise, blocks))
        if may_keep:
            self._kept = [block for block in blocks if len(block.features) == BLOCK]
            self._kept_noise = noise
        return Narrowed(self._factor, blocks)

    def _block(self, features: Features, noise: float, before: list[_Block]) -> _Block:
        cross = kernel_matrix(Similarities(self._known, features), self._logs)
        corner = kernel_matrix(Similarities(features, features), self._logs)
        corner[np.diag_indices_from(corner)] += noise
        below = _solved(self._factor, cross)
        corner -= below.T @ below
        above = np.zeros((len(before) * BLOCK, len(features)))
        for place, block in enumerate(before):
            start = place * BLOCK
            right = kernel_matrix(Similarities(block.features, features), self._logs)
            right -= block.below.T @ below
            right -= block.left @ above[:start]
            above[start : start + BLOCK] = _solved(block.corner, right)
        if before:
            corner -= above.T @ above
        return _Block(features, cross, below, above.T, factor_of(corner))


class Narrowed:
    """The linear system of what is known and what is under evaluation, factored."""

    def __init__(self, factor: FloatArray, blocks: list[_Block]) -> None:
        self._factor, self._blocks = factor, blocks

    def expected(self, vector: FloatArray) -> FloatArray:
        """Return K^T times ``(n,)``, ``(m,)``."""
        return np.concatenate([block.cross.T @ vector for block in self._blocks])

    def solve(self, known: FloatArray, pending: FloatArray) -> FloatArray:
        """Return the solution for right-hand sides ``(n,)`` and ``(m,)``, ``(n + m,)``."""
        blocks = self._blocks
        first = _solved(self._factor, known)
        second = np.empty(len(pending))
        for place, block in enumerate(blocks):
            start, end = place * BLOCK, place * BLOCK + len(block.features)
            right = pending[start:end] - block.below.T @ first
            if start:
                right -= block.left @ second[:start]
            second[start:end] = _solved(block.corner, right)
        for place in reversed(range(len(blocks))):
            block, start = blocks[place], place * BLOCK
            tail = _solved(block.corner, second[start : start + BLOCK], transposed=True)
            second[start : start + BLOCK] = tail
            if start:
                second[:start] -= block.left.T @ tail
            first = first - block.below @ tail
        return np.concatenate([_solved(self._factor, first, transposed=True), second])


def _are_equal(one: Features, other: Features) -> bool:
    """Say whether both are the same merges, without companions."""
    return np.array_equal(one.weights, other.weights) and np.array_equal(one.spread, other.spread)


def _solved(factor: FloatArray, right: FloatArray, *, transposed: bool = False) -> FloatArray:
    """Solve by a lower triangular factor, or by its transpose."""
    trans = "T" if transposed else "N"
    solved = solve_triangular(factor, right, lower=True, trans=trans, check_finite=False)
    return np.asarray(solved, dtype=np.float64)
