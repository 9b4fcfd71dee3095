"""A process with a shape: bowls say what a score does on the whole, the process what they miss.

What is learnt from is the gap between values and bowls. A function drawn from the posterior has one
of the bowls, and what the process makes of the gaps to that one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluators.scores import FloatArray
from optimizer.surrogate.bowl import BoolArray, Bowls, Lines, fit_bowls, fit_lines
from optimizer.surrogate.gaussian_process import GaussianProcess, Samples, fit_hyperparameters
from optimizer.surrogate.kernel import Features, Prior, Similarities

# More samples than this do not change bowls and hyper-parameters, and cost the cube.
_FIT_SAMPLES = 200


@dataclass(frozen=True, slots=True)
class Fit:
    """What was fitted: a shape, if there is one, and hyper-parameters of the process of gaps."""

    shape: Bowls | Lines | None
    logs: FloatArray

    def shapes(self, features: Features) -> FloatArray:
        """Return the values of every member of the shape, ``(e, n)``; without one, zeros."""
        if self.shape is None:
            return np.zeros((1, len(features)))
        return self.shape(features)


def unfitted(features: Features) -> Fit:
    """Return what stands before anything is fitted."""
    return Fit(None, Prior.of(features).means)


def fit_shape(samples: Samples, at_most: BoolArray) -> Fit:
    """Fit bowls, or lines where there is a companion, and the process of the gaps.

    Args:
        samples: With at least one row.
        at_most: ``(n,)`` bool: which values are upper bounds.

    Returns:
        A function of the samples.
    """
    count = len(samples.values)
    if count > _FIT_SAMPLES:
        rows = np.linspace(0, count - 1, _FIT_SAMPLES).astype(int)
        samples, at_most = samples.take(rows.tolist()), at_most[rows]
    features = samples.features
    shape: Bowls | Lines
    if features.companion is None:
        shape = fit_bowls(features.weights, samples.values, samples.noise, at_most)
    else:
        shape = fit_lines(features.companion, samples.values, samples.noise, at_most)
    gaps = _gaps(samples.values, shape(features), at_most)
    left = Samples(features, gaps.mean(axis=0), samples.noise)
    return Fit(shape, fit_hyperparameters(left))


class ShapedProcess:
    """The posterior of one score, in the values of its scale.

    Args:
        samples: What is known, at least one row.
        at_most: ``(n,)`` bool: which values are upper bounds.
        fit: From :func:`fit_shape`, of these samples or of the first of them.
        similarities: Of the samples' features with themselves, where they are there already.
    """

    def __init__(
        self,
        samples: Samples,
        at_most: BoolArray,
        fit: Fit,
        similarities: Similarities | None = None,
    ) -> None:
        self.features = samples.features
        self._fit = fit
        self._shapes = fit.shapes(samples.features)
        self._gaps = _gaps(samples.values, self._shapes, at_most)
        left = Samples(samples.features, self._gaps.mean(axis=0), samples.noise)
        self._process = GaussianProcess(left, fit.logs, similarities)

    def mean(self, features: Features, cross: Similarities) -> FloatArray:
        """Posterior means, ``(n,)``; ``cross`` are similarities to :attr:`features`."""
        shape: FloatArray = self._fit.shapes(features).mean(axis=0)
        return self._process.mean(cross) + shape

    def known_mean(self) -> FloatArray:
        """Posterior means of the samples themselves, ``(n,)``; nearly free."""
        shape: FloatArray = self._shapes.mean(axis=0)
        return self._process.known_mean() + shape

    def means_and_variance(
        self, features: Features, cross: Similarities
    ) -> tuple[FloatArray, FloatArray]:
        """Posterior means by every bowl, ``(e, n)``, and the variance around each, ``(n,)``."""
        mean, variance = self._process.mean_and_variance(features, cross)
        return mean + self._fit.shapes(features), variance

    def path(
        self,
        rng: np.random.Generator,
        pending: Features | None = None,
        *,
        noise: float = 1.0,
        spread: float = 1.0,
    ) -> Callable[[Features], FloatArray]:
        """Draw one function from the posterior; see :meth:`GaussianProcess.path`."""
        member = int(rng.integers(len(self._gaps)))
        values = self._gaps[member] * spread + self._gaps.mean(axis=0) * (1.0 - spread)
        path = self._process.path(rng, pending, noise=noise, spread=spread, values=values)

        def draw(features: Features) -> FloatArray:
            shapes = self._fit.shapes(features)
            shape: FloatArray = shapes[member] * spread + shapes.mean(axis=0) * (1.0 - spread)
            return path(features) + shape

        return draw


def _gaps(values: FloatArray, shapes: FloatArray, at_most: BoolArray) -> FloatArray:
    """Values less shapes, ``(e, n)``; none where a shape is below what is only a bound."""
    gaps = values - shapes
    return np.where(at_most & (gaps > 0), 0.0, gaps)
