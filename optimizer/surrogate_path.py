"""Functions drawn from the surrogate's prior, which can be evaluated anywhere, again and again.

A draw from a posterior is a draw from the prior plus what the data correct about it (Matheron's
rule; Wilson et al., "Efficiently Sampling Functions from Gaussian Process Posteriors",
arXiv:2002.09309). So one Thompson sample can be searched for its best merge generation by
generation, where a joint draw over a pool costs the cube of the pool.
"""

import numpy as np

from evaluators.scores import FloatArray
from optimizer.surrogate_kernel import LEVEL_VARIANCE, Features

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
        self._frequencies = waves * scales[:, None] / shrink
        self._phases = rng.uniform(0, 2 * np.pi, _FREQUENCIES)
        wave_size = amplitudes[0] * np.sqrt(2 / _FREQUENCIES)
        self._waves = wave_size * rng.standard_normal(_FREQUENCIES)
        self._quadratic = _Quadratic(checkpoints, 1, amplitudes[1], rng)
        self._trend = amplitudes[2] * rng.standard_normal(size) / groups
        self._level = float(np.sqrt(LEVEL_VARIANCE) * rng.standard_normal())
        self._groups: _Quadratic | None = None
        if groups > 1:
            amplitude = amplitudes[3] / np.sqrt(groups)
            self._groups = _Quadratic(checkpoints, groups, amplitude, rng)
        self._companion: tuple[FloatArray, ...] | None = None
        if features.companion is not None:
            count = _COMPANION_FREQUENCIES
            self._companion = (
                rng.standard_normal(count),
                rng.uniform(0, 2 * np.pi, count),
                amplitudes[-1] * np.sqrt(2 / count) * rng.standard_normal(count),
                amplitudes[-1] * rng.standard_normal(1),
            )

    def __call__(self, features: Features) -> FloatArray:
        """Return the function's values at n merges, ``(n,)``."""
        count = len(features)
        spread = features.spread.reshape(count, -1)
        flat = np.concatenate([features.weights.reshape(count, -1), spread], axis=1)
        values = np.cos(flat @ self._frequencies + self._phases) @ self._waves
        values += self._quadratic(features.weights.mean(axis=2, keepdims=True))
        values += spread**2 @ self._trend + self._level
        if self._groups is not None:
            values += self._groups(features.weights)
        if self._companion is not None and features.companion is not None:
            frequencies, phases, sizes, slope = self._companion
            smooth = features.companion
            values += np.cos(smooth[:, None] * frequencies + phases) @ sizes + slope * smooth
        return np.asarray(values, dtype=np.float64)


class _Quadratic:
    """Sum over groups of functions with covariance (1 + x.y)^2, times an amplitude."""

    def __init__(
        self, checkpoints: int, groups: int, amplitude: float, rng: np.random.Generator
    ) -> None:
        self._square = amplitude * rng.standard_normal((groups, checkpoints, checkpoints))
        self._slope = amplitude * np.sqrt(2) * rng.standard_normal((groups, checkpoints))
        self._level = amplitude * rng.standard_normal(groups).sum()

    def __call__(self, weights: FloatArray) -> FloatArray:
        # g: group, n: merge, c: checkpoint
        by_group = np.moveaxis(weights, 2, 0)  # gnc
        bent = ((by_group @ self._square) * by_group).sum(axis=2)
        sloped = (by_group @ self._slope[:, :, None])[:, :, 0]
        return np.asarray((bent + sloped).sum(axis=0) + self._level, dtype=np.float64)
