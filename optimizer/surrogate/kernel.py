"""What the surrogate believes before it has seen anything: features of merges, and their kernel.

Near a base the loss of a merge is close to a quadratic of its weights, and DARE adds a variance
proportional to w^2 p / (1 - p) (arXiv:2311.03099, section 3: the dropped sum is unbiased). So the
prior of every score is a sum of Gaussian processes: a quadratic of the weights, a trend in DARE's
variance, and a Matern 5/2 process for whatever is neither. How much each contributes is fitted to
the data. With layer groups the quadratic is one of the mean over groups plus one per group.
"""

from copy import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from evaluators.scores import FloatArray
from optimizer.space import SearchSpace

AnyFloats = TypeVar("AnyFloats", NDArray[np.float32], NDArray[np.float64])
# The level of a score is unknown: prior variance of the constant, in squared logits.
LEVEL_VARIANCE = 4.0
_LARGEST_ODDS = 99.0


@dataclass(frozen=True, slots=True)
class Features:
    """Merges as the kernel sees them, all arrays with one row per merge.

    Attributes:
        weights: ``(n, checkpoints, groups)``, as in the recipe.
        spread: ``(n, checkpoints, groups)``: asinh of w sqrt(p / (1 - p)) for methods that drop
            at random (zero where nothing is dropped, or where a checkpoint has no part), asinh
            of w p for others.
        companion: ``(n,)`` smooth companion score, standardized; None without.
    """

    weights: FloatArray
    spread: FloatArray
    companion: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.weights)

    def take(self, rows: "slice | FloatArray | list[int]") -> "Features":
        """Return some of the rows."""
        companion = None if self.companion is None else self.companion[rows]
        return Features(self.weights[rows], self.spread[rows], companion)

    def followed_by(self, other: "Features") -> "Features":
        """Return these merges and others after them; both with companion scores, or neither."""
        companion = None
        if self.companion is not None and other.companion is not None:
            companion = np.concatenate([self.companion, other.companion])
        return Features(
            np.concatenate([self.weights, other.weights]),
            np.concatenate([self.spread, other.spread]),
            companion,
        )

    def with_companion(self, companion: FloatArray) -> "Features":
        """Return the same merges with companion scores."""
        return Features(self.weights, self.spread, companion)


def features_of(weights: FloatArray, drops: FloatArray, space: SearchSpace) -> Features:
    """Return the features of ``(n, checkpoints, groups)`` weights and drop ratios."""
    if space.drop_kind == "trim":
        spread = np.abs(weights) * drops
    else:
        odds = np.minimum(drops / np.maximum(1.0 - drops, 1e-9), _LARGEST_ODDS)
        spread = np.abs(weights) * np.sqrt(odds)
    return Features(weights, np.arcsinh(spread))


class Similarities:
    """Everything of the kernel between two sets of merges that no hyper-parameter changes.

    Distances are in single precision, and so is what is computed of them: correlations between
    0 and 1, which take most of an ask's time. Polynomials can be large, and are not.

    Args:
        left: ``n`` merges.
        right: ``m`` merges; both with companion scores or both without.
    """

    def __init__(self, left: Features, right: Features) -> None:
        groups = left.weights.shape[2]
        flat = [side.weights.reshape(len(side), -1) / np.sqrt(groups) for side in (left, right)]
        spread = [side.spread.reshape(len(side), -1) / np.sqrt(groups) for side in (left, right)]
        squares = [side**2 for side in spread]
        means = [side.weights.mean(axis=2) for side in (left, right)]
        # Each is a kernel of its own, multiplied by an amplitude.
        self.linear = [
            (1.0 + means[0] @ means[1].T) ** 2,
            squares[0] @ squares[1].T,
        ]
        if groups > 1:
            products = np.einsum("icg,jcg->gij", left.weights, right.weights, optimize=True)
            self.linear.append(((1.0 + products) ** 2).mean(axis=0))
        self.weight_distances = _squared_distances(*flat)
        self.spread_distances = _squared_distances(*spread)
        if left.companion is not None and right.companion is not None:
            self.linear.append(_companion_similarity(left.companion, right.companion))

    def with_companions(self, left: FloatArray, right: FloatArray) -> "Similarities":
        """Return those of the same merges with companion scores ``(n,)`` and ``(m,)``."""
        new = copy(self)
        new.linear = [*self.linear, _companion_similarity(left, right)]
        return new


@dataclass(frozen=True, slots=True)
class Prior:
    """Log-normal priors of the hyper-parameters, in the order of :meth:`Kernel.matrix`.

    ``means`` and ``deviations``: ``(k,)``, of natural logarithms.
    """

    means: FloatArray
    deviations: FloatArray

    @classmethod
    def of(cls, features: Features) -> "Prior":
        """Return the prior for merges of this shape.

        In order: length-scales of weights and of spread, amplitudes of the Matern process, of
        the quadratic, of DARE's trend, of the quadratics of groups (with groups), of the
        companion (with one), and last the factor of the stated noise.
        """
        checkpoints = features.weights.shape[1]
        means = [np.log(0.5 * np.sqrt(checkpoints)), np.log(1.5 * np.sqrt(checkpoints))]
        means += [np.log(0.3), np.log(3.0), np.log(0.02)]
        deviations = [0.7, 0.7, 1.5, 1.5, 1.5]
        if features.weights.shape[2] > 1:
            means.append(np.log(3.0))
            deviations.append(1.5)
        if features.companion is not None:
            means.append(np.log(1.0))
            deviations.append(1.5)
        # Candidates share their items, so what differs between them is less than binomial.
        return cls(np.array([*means, np.log(0.8)]), np.array([*deviations, 0.3]))


def kernel_matrix(similarities: Similarities, logs: FloatArray) -> FloatArray:
    """Return the ``(n, m)`` prior covariance for hyper-parameters in the order of the prior."""
    matern = matern_correlations(_scaled_squares(similarities, logs))
    covariance: FloatArray = np.exp(logs[2]) * matern.astype(np.float64)
    covariance += LEVEL_VARIANCE
    for log_amplitude, part in zip(logs[3:-1], similarities.linear, strict=True):
        covariance += np.exp(log_amplitude) * part
    return covariance


def kernel_diagonal(features: Features, logs: FloatArray) -> FloatArray:
    """Return the ``(n,)`` prior variances of merges."""
    means = features.weights.mean(axis=2)
    parts = [
        (1.0 + (means**2).sum(axis=1)) ** 2,
        (features.spread**4).sum(axis=(1, 2)) / features.weights.shape[2] ** 2,
    ]
    if features.weights.shape[2] > 1:
        parts.append(((1.0 + (features.weights**2).sum(axis=1)) ** 2).mean(axis=1))
    if features.companion is not None:
        parts.append(features.companion**2 + 1.0)
    amplitudes = np.exp(logs[3:-1])
    total = sum(a * part for a, part in zip(amplitudes, parts, strict=True))
    return np.asarray(total + LEVEL_VARIANCE + np.exp(logs[2]), dtype=np.float64)


def kernel_gradients(similarities: Similarities, logs: FloatArray) -> list[NDArray[Any]]:
    """Return the derivatives of :func:`kernel_matrix` by every hyper-parameter but the noise."""
    matern = matern_correlations(_scaled_squares(similarities, logs))
    slope = _matern_slope(similarities, logs)
    amplitude = np.float32(np.exp(logs[2]))
    slope *= amplitude
    gradients: list[NDArray[Any]] = [
        slope * similarities.weight_distances * np.float32(np.exp(-2 * logs[0])),
        slope * similarities.spread_distances * np.float32(np.exp(-2 * logs[1])),
        matern * amplitude,
    ]
    gradients += [
        np.exp(log_amplitude) * part
        for log_amplitude, part in zip(logs[3:-1], similarities.linear, strict=True)
    ]
    return gradients


def matern_correlations(squared: AnyFloats) -> AnyFloats:
    """Matern 5/2, (1 + s + s^2 / 3) exp(-s) with s = sqrt(5) r, of squared distances r^2.

    Takes ``squared`` for itself: it holds something else afterwards.
    """
    squared *= 5.0
    scaled = np.sqrt(squared)
    squared *= 1.0 / 3.0
    squared += scaled
    squared += 1.0
    np.negative(scaled, out=scaled)
    squared *= np.exp(scaled, out=scaled)
    return squared


def _matern_slope(similarities: Similarities, logs: FloatArray) -> NDArray[np.float32]:
    """Return the derivative of the Matern kernel by a log length-scale, per squared distance.

    dk / d log l = 5/3 r_l^2 (1 + s) exp(-s), r_l^2 the part of r^2 with length-scale l.
    """
    scaled = np.sqrt(5.0 * _scaled_squares(similarities, logs))
    slope: NDArray[np.float32] = np.exp(-scaled)
    slope *= (5.0 / 3.0) * (1.0 + scaled)
    return slope


def _scaled_squares(similarities: Similarities, logs: FloatArray) -> NDArray[np.float32]:
    weight, spread = np.exp(-2 * logs[:2]).astype(np.float32)
    squared: NDArray[np.float32] = similarities.weight_distances * weight
    squared += similarities.spread_distances * spread
    return squared


def _companion_similarity(left: FloatArray, right: FloatArray) -> FloatArray:
    gap = left.astype(np.float32)[:, None] - right.astype(np.float32)
    gap *= gap
    gap *= -0.5
    similarity: FloatArray = left[:, None] * right
    similarity += np.exp(gap, out=gap)
    return similarity


def _squared_distances(left: FloatArray, right: FloatArray) -> NDArray[np.float32]:
    # Of what is close together little is left: only the difference is rounded.
    squared = (left**2).sum(axis=1)[:, None] + (right**2).sum(axis=1)[None]
    squared -= 2.0 * left @ right.T
    return np.asarray(np.maximum(squared, 0.0), dtype=np.float32)
