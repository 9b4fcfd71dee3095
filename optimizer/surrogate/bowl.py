"""Bowls: what merges of task vectors look like from far away.

A loss that is quadratic around its minimum is a sum of squares, so the logit of a score is a top,
less squares of linear functions of the weights: a few, since few directions of a model matter to
one skill. A Gaussian process cannot know that a score has a top, and is most optimistic where it
knows least; a bowl can, and needs less data. Several bowls that fit the data equally well stand for
what is not known of them: each is fitted to data with noise added and to a draw of the prior
(Bardsley et al., "Randomize-then-optimize", SIAM J. Sci. Comput. 36, 2014). Where a score has a
companion, which has bowls of its own, a line through the companion takes their place.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evaluators.scores import FloatArray
from optimizer.surrogate.kernel import Features

BoolArray = NDArray[np.bool_]

MEMBERS = 8
"""How many bowls stand for one score."""

# Squares per bowl, and the prior of their slopes (per unit of a weight that is the same in all
# groups), of their offsets, and of the top; all in logits.
_SQUARES = 4
# With groups: so many of all groups, and so many of each alone.
_COMMON_SQUARES, _GROUP_SQUARES = 2, 1
_SLOPE, _SLOPE_SPREAD = 0.5, 0.7
_OFFSET, _OFFSET_SPREAD = 0.9, 0.7
_TOP, _TOP_SPREAD = 2.0, 1.0
# Below this, bad is bad; bowls agree on where, not on how bad.
_LOWEST = -12.0
# Variance of what no bowl can follow.
_MISFIT = 0.01
# Level and slope of a line through a standardized companion, in logits.
_LINE, _LINE_SPREAD, _LINE_ITERATIONS = (-1.0, 2.0), (2.0, 2.0), 8
_ITERATIONS, _LEAST_GAIN = 20, 3e-3


@dataclass(frozen=True, slots=True)
class Bowls:
    """Functions of weights: ``tops (e,)`` less the sum of squares of ``slopes . w - offsets``.

    ``slopes``: ``(e, k, checkpoints * groups)``; ``offsets``: ``(e, k)``.
    """

    slopes: FloatArray
    offsets: FloatArray
    tops: FloatArray

    def __call__(self, features: Features) -> FloatArray:
        """Return the values of all bowls, ``(e, n)``."""
        flat = features.weights.reshape(len(features), -1)
        roots = flat @ np.swapaxes(self.slopes, 1, 2) - self.offsets[:, None]
        values = self.tops[:, None] - (roots**2).sum(axis=2)
        return np.asarray(np.maximum(values, _LOWEST), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Lines:
    """Functions of a companion score: ``levels (e,)`` and ``slopes (e,)``."""

    levels: FloatArray
    slopes: FloatArray

    def __call__(self, features: Features) -> FloatArray:
        """Return the values of all lines, ``(e, n)``; merges must have companions."""
        smooth = np.zeros(len(features)) if features.companion is None else features.companion
        values = self.levels[:, None] + self.slopes[:, None] * smooth
        return np.asarray(np.maximum(values, _LOWEST), dtype=np.float64)


def fit_lines(
    smooth: FloatArray, values: FloatArray, noise: FloatArray, at_most: BoolArray
) -> Lines:
    """Fit :data:`MEMBERS` lines through ``(n,)`` companion scores; the rest as for bowls."""
    rng = np.random.default_rng(len(values))
    rows = np.stack([np.ones_like(smooth), smooth], axis=1)
    spread = np.array(_LINE_SPREAD)
    drawn = values + np.sqrt(noise) * rng.standard_normal((MEMBERS, len(values)))
    prior = np.array(_LINE) + spread * rng.standard_normal((MEMBERS, 2))
    points: FloatArray = prior
    for _ in range(_LINE_ITERATIONS):
        active = ~(at_most & (points @ rows.T <= drawn))
        precision = active / (noise + _MISFIT)
        normal = np.swapaxes(rows * precision[:, :, None], 1, 2) @ rows + np.diag(spread**-2.0)
        right = (precision * drawn) @ rows + prior * spread**-2.0
        points = np.asarray(np.linalg.solve(normal, right[:, :, None])[:, :, 0], dtype=np.float64)
    return Lines(points[:, 0], points[:, 1])


@dataclass(frozen=True, slots=True)
class _Task:
    """A least-squares problem per member: data ``(e, n)``, prior ``(e, p)``."""

    rows: FloatArray  # (n, d + 1), weights and -1
    values: FloatArray
    precision: FloatArray  # (n,)
    at_most: BoolArray  # (n,) bool
    prior: FloatArray
    prior_precision: FloatArray  # (p,)
    free: NDArray[np.intp]  # which of the p are fitted

    def residuals(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return roots of the squares, ``(e, n, k)``, and weighted data less values."""
        columns = points[:, :-1].reshape(len(points), -1, self.rows.shape[1])
        roots = self.rows @ np.swapaxes(columns, 1, 2)
        gaps = self.values - (points[:, -1:] - (roots**2).sum(axis=2))
        # Whoever is told to be at most so high may be anywhere below.
        return roots, np.where(self.at_most & (gaps > 0), 0.0, gaps)

    def loss(self, points: FloatArray, gaps: FloatArray) -> FloatArray:
        """Return the sum of squares, ``(e,)``."""
        missed = (gaps**2 * self.precision).sum(axis=1)
        strayed = ((points - self.prior) ** 2 * self.prior_precision).sum(axis=1)
        return np.asarray(missed + strayed, dtype=np.float64)


def fit_bowls(
    weights: FloatArray, values: FloatArray, noise: FloatArray, at_most: BoolArray
) -> Bowls:
    """Fit :data:`MEMBERS` bowls; a function of what is given.

    Args:
        weights: ``(n, checkpoints, groups)``, of merges.
        values: ``(n,)``, logits of scores or whatever has about unit scale.
        noise: ``(n,)``, their variances.
        at_most: ``(n,)`` bool: the value is an upper bound.
    """
    count = len(weights)
    rng = np.random.default_rng(count)
    rows = np.concatenate([weights.reshape(count, -1), -np.ones((count, 1))], axis=1)
    means, spreads = _prior(*weights.shape[1:])
    squares, size = means.shape
    mean, spread = np.append(means.ravel(), _TOP), np.append(spreads.ravel(), _TOP_SPREAD)
    variance = noise + _MISFIT
    task = _Task(
        rows,
        values + np.sqrt(noise) * rng.standard_normal((MEMBERS, count)),
        1.0 / variance,
        at_most,
        mean + spread * rng.standard_normal((MEMBERS, mean.size)),
        np.maximum(spread, 1e-12) ** -2.0,
        np.flatnonzero(spread),
    )
    points = _minimize(task)
    columns = points[:, :-1].reshape(MEMBERS, squares, size)
    return Bowls(columns[:, :, :-1], columns[:, :, -1], points[:, -1])


def _prior(checkpoints: int, groups: int) -> tuple[FloatArray, FloatArray]:
    """Means and spreads of slopes, with the offset last, ``(k, checkpoints * groups + 1)``."""
    size = checkpoints * groups
    squares = _SQUARES if groups == 1 else _COMMON_SQUARES
    means = np.full((squares, size + 1), _SLOPE / groups)
    spreads = np.full((squares, size + 1), _SLOPE_SPREAD / np.sqrt(groups))
    if groups > 1:
        group_of = np.tile(np.arange(groups), checkpoints)
        own = np.repeat(np.arange(groups), _GROUP_SQUARES)[:, None] == group_of
        own = np.concatenate([own, np.ones((len(own), 1), dtype=bool)], axis=1)
        means = np.concatenate([means, np.where(own, _SLOPE, 0.0)])
        spreads = np.concatenate([spreads, np.where(own, _SLOPE_SPREAD, 0.0)])
    # All squares together take the base, where weights are zero, as far from the top.
    means[:, -1] = _OFFSET * np.sqrt(_SQUARES / len(means))
    spreads[:, -1] = _OFFSET_SPREAD * np.sqrt(_SQUARES / len(means))
    return means, spreads


def _minimize(task: _Task) -> FloatArray:
    """Levenberg-Marquardt for all members side by side, from their draws of the prior."""
    points = task.prior.copy()
    damping = np.ones(len(points))
    roots, gaps = task.residuals(points)
    loss = task.loss(points, gaps)
    for _ in range(_ITERATIONS):
        steps = _step(task, points, roots, gaps, damping)
        new_roots, new_gaps = task.residuals(points + steps)
        new_loss = task.loss(points + steps, new_gaps)
        better = new_loss < loss
        gain = np.where(better, loss - new_loss, np.inf)
        points = np.where(better[:, None], points + steps, points)
        roots = np.where(better[:, None, None], new_roots, roots)
        gaps = np.where(better[:, None], new_gaps, gaps)
        done = (gain < _LEAST_GAIN * loss).all()
        loss = np.minimum(loss, new_loss)
        damping = damping * np.where(better, 0.3, 4.0)
        if done:
            break
    return points


def _step(
    task: _Task, points: FloatArray, roots: FloatArray, gaps: FloatArray, damping: FloatArray
) -> FloatArray:
    """Solve the damped normal equations; ``(e, p)``."""
    members, count = gaps.shape
    active = ~(task.at_most & (gaps == 0))
    slopes = -2.0 * roots[:, :, :, None] * task.rows[:, None, :]  # e, n, k, d + 1
    jacobian = np.ones((members, count, points.shape[1]))
    jacobian[:, :, :-1] = slopes.reshape(members, count, -1)
    jacobian = jacobian[:, :, task.free] * active[:, :, None]
    weighted = np.swapaxes(jacobian * task.precision[:, None], 1, 2)
    downhill = (weighted @ gaps[:, :, None])[:, :, 0]
    precision = task.prior_precision[task.free]
    downhill += (task.prior - points)[:, task.free] * precision
    normal = weighted @ jacobian
    diagonal = np.arange(len(task.free))
    normal[:, diagonal, diagonal] += precision * (1.0 + damping[:, None])
    steps = np.zeros_like(points)
    steps[:, task.free] = np.linalg.solve(normal, downhill[:, :, None])[:, :, 0]
    return steps
