"""Functions drawn from the surrogate's prior, which can be evaluated anywhere, again and again.

A draw from a posterior is a draw from the prior plus what the data correct about it (Matheron's
rule; Wilson et al., "Efficiently Sampling Functions from Gaussian Process Posteriors",
arXiv:2002.09309). So one Thompson sample can be searched for its best merge generation by
generation, where a joint draw over a pool costs the cube of the pool.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluators.scores import FloatArray
from optimizer.surrogate.kernel import LEVEL_VARIANCE, Features, matern_correlations

# Random Fourier features of the Matern process, and of the companion's.
_FREQUENCIES, _COMPANION_FREQUENCIES = 128, 64
_MATERN_FREEDOM = 5.0


class PriorPath:
    """One function with the covariance of ``kernel_matrix``.

    The quadratics and trends are finite-dimensional and drawn exactly; the Matern process by
    random Fourier features (Rahimi & Recht 2007), whose frequencies are Student's t with 5 degrees
    of freedom.

    Args:
        features: Any merges of the space, for its shape and whether they have companions.
        logs: Hyper-parameters.
        rng: Where the function comes from.
    """

    def __init__(self, features: Features, logs: FloatArray, rng: np.random.Generator) -> None:
        _, checkpoints, groups = features.weights.shape
        size = checkpoints * groups
        amplitudes = np.exp(0.5 * np.asarray(logs[2:-1]))
        scales = np.repeat(np.exp(-np.asarray(logs[:2])), size) / np.sqrt(groups)
        shrink = np.sqrt(rng.chisquare(_MATERN_FREEDOM, _FREQUENCIES) / _MATERN_FREEDOM)
        waves = rng.standard_normal((2 * size, _FREQUENCIES))
        self._frequencies = (waves * scales[:, None] / shrink).astype(np.float32)
        self._phases = rng.uniform(0, 2 * np.pi, _FREQUENCIES).astype(np.float32)
        wave_size = amplitudes[0] * np.sqrt(2 / _FREQUENCIES)
        self._waves = (wave_size * rng.standard_normal(_FREQUENCIES)).astype(np.float32)
        self._quadratic = _Quadratic.drawn(checkpoints, 1, amplitudes[1], rng)
        self._trend = amplitudes[2] * rng.standard_normal(size) / groups
        self._level = float(np.sqrt(LEVEL_VARIANCE) * rng.standard_normal())
        self._groups: _Quadratic | None = None
        if groups > 1:
            amplitude = amplitudes[3] / np.sqrt(groups)
            self._groups = _Quadratic.drawn(checkpoints, groups, amplitude, rng)
        self._companion: tuple[NDArray[Any], ...] | None = None
        if features.companion is not None:
            count = _COMPANION_FREQUENCIES
            self._companion = (
                rng.standard_normal(count).astype(np.float32),
                rng.uniform(0, 2 * np.pi, count).astype(np.float32),
                amplitudes[-1] * np.sqrt(2 / count) * rng.standard_normal(count),
                amplitudes[-1] * rng.standard_normal(1),
            )

    def __call__(self, features: Features) -> FloatArray:
        """Return the function's values at n merges, ``(n,)``."""
        count = len(features)
        spread = features.spread.reshape(count, -1)
        parts = [features.weights.reshape(count, -1), spread]
        # Waves are of the size of one: single precision is enough, and several times as fast.
        flat = np.concatenate(parts, axis=1, dtype=np.float32)
        waves = np.cos(flat @ self._frequencies + self._phases) @ self._waves
        values = waves.astype(np.float64)
        values += self._quadratic(features.weights.mean(axis=2, keepdims=True))
        values += spread**2 @ self._trend + self._level
        if self._groups is not None:
            values += self._groups(features.weights)
        if self._companion is not None and features.companion is not None:
            frequencies, phases, sizes, slope = self._companion
            smooth = features.companion
            near = smooth.astype(np.float32)[:, None]
            values += np.cos(near * frequencies + phases) @ sizes + slope * smooth
        return np.asarray(values, dtype=np.float64)


class KernelProduct:
    """The kernel between any merges and known ones, times a vector.

    What is finite-dimensional of the kernel is summed up once, so that a query costs the Matern
    process only, and that in single precision: its correlations are between 0 and 1.

    Args:
        known: ``n`` merges.
        logs: Hyper-parameters.
        vector: ``(n,)``.
    """

    def __init__(self, known: Features, logs: FloatArray, vector: FloatArray) -> None:
        count, checkpoints, groups = known.weights.shape
        amplitudes = np.exp(np.asarray(logs[2:-1]))
        size = checkpoints * groups
        scales = np.repeat(np.exp(-np.asarray(logs[:2])), size) / np.sqrt(groups)
        self._scales = scales.astype(np.float32)
        self._known = self._positions(known)
        self._norms = (self._known**2).sum(axis=1)
        self._vector = (amplitudes[0] * vector).astype(np.float32)
        self._level = LEVEL_VARIANCE * vector.sum()
        means = known.weights.mean(axis=2, keepdims=True)
        self._quadratic = _Quadratic.of_kernel(means, amplitudes[1] * vector)
        squares = known.spread.reshape(count, -1) ** 2 / groups
        self._trend = amplitudes[2] * (vector @ squares) / groups
        self._groups: _Quadratic | None = None
        if groups > 1:
            self._groups = _Quadratic.of_kernel(known.weights, amplitudes[3] / groups * vector)
        self._companion = known.companion
        self._companion_vector = amplitudes[-1] * vector

    def __call__(self, features: Features) -> FloatArray:
        """Return the product for n merges, ``(n,)``."""
        positions = self._positions(features)
        squared = -2.0 * (positions @ self._known.T)
        squared += (positions**2).sum(axis=1)[:, None]
        squared += self._norms
        near = matern_correlations(np.maximum(squared, 0.0, out=squared))
        values = (near @ self._vector).astype(np.float64) + self._level
        values += self._quadratic(features.weights.mean(axis=2, keepdims=True))
        values += features.spread.reshape(len(features), -1) ** 2 @ self._trend
        if self._groups is not None:
            values += self._groups(features.weights)
        if self._companion is not None and features.companion is not None:
            gaps = (features.companion[:, None] - self._companion).astype(np.float32)
            values += np.exp(-0.5 * gaps**2) @ self._companion_vector
            values += features.companion * (self._companion @ self._companion_vector)
        return np.asarray(values, dtype=np.float64)

    def _positions(self, features: Features) -> NDArray[np.float32]:
        """Where merges are, in length-scales; single precision."""
        parts = [part.reshape(len(features), -1) for part in (features.weights, features.spread)]
        positions: NDArray[np.float32] = np.concatenate(parts, axis=1, dtype=np.float32)
        positions *= self._scales
        return positions


@dataclass(frozen=True, slots=True)
class _Quadratic:
    """A sum over groups g of quadratics of the weights of each.

    ``square``: ``(g, checkpoints, checkpoints)``; ``slope``: ``(g, checkpoints)``.
    """

    square: FloatArray
    slope: FloatArray
    level: float

    @classmethod
    def drawn(
        cls, checkpoints: int, groups: int, amplitude: float, rng: np.random.Generator
    ) -> "_Quadratic":
        """Draw a function with covariance sum_g (1 + x_g . y_g)^2, times the amplitude squared."""
        square = amplitude * rng.standard_normal((groups, checkpoints, checkpoints))
        slope = amplitude * np.sqrt(2) * rng.standard_normal((groups, checkpoints))
        return cls(square, slope, float(amplitude * rng.standard_normal(groups).sum()))

    @classmethod
    def of_kernel(cls, known: FloatArray, vector: FloatArray) -> "_Quadratic":
        """Return sum_g (1 + x_g . y_g)^2 over known y, times the vector, as a function of x."""
        by_group = np.moveaxis(known, 2, 0)  # gnc
        square = np.swapaxes(by_group * vector[:, None], 1, 2) @ by_group
        return cls(square, 2.0 * (vector @ by_group), float(vector.sum() * len(by_group)))

    def __call__(self, weights: FloatArray) -> FloatArray:
        # g: group, n: merge, c: checkpoint
        by_group = np.moveaxis(weights, 2, 0)  # gnc
        bent = ((by_group @ self.square) * by_group).sum(axis=2)
        sloped = (by_group @ self.slope[:, :, None])[:, :, 0]
        return np.asarray((bent + sloped).sum(axis=0) + self.level, dtype=np.float64)
