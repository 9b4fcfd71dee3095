"""A Gaussian process with known noise per point: hyper-parameters, posterior, samples.

Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), algorithm 2.1 for the
posterior and equation 5.9 for the gradient of the marginal likelihood. Everything is exact, by
Cholesky factors. scikit-learn's regressor takes the same noise, but fits 5 to 10 times slower,
since its kernels are objects that know neither what stays the same between steps nor each other.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, solve_triangular
from scipy.optimize import minimize

from evaluators.scores import FloatArray
from optimizer.surrogate.kernel import (
    Features,
    Prior,
    Similarities,
    kernel_diagonal,
    kernel_gradients,
    kernel_matrix,
)
from optimizer.surrogate.linalg import factor_of
from optimizer.surrogate.narrowing import Narrowing
from optimizer.surrogate.path import KernelProduct, PriorPath

_FIT_ITERATIONS = 20
# Hyper-parameters stay within this many standard deviations of their prior.
_FIT_RANGE = 4.0


@dataclass(frozen=True, slots=True)
class Samples:
    """What a process learns from: features of n merges, their values and noise variances."""

    features: Features
    values: FloatArray
    noise: FloatArray

    def take(self, rows: list[int]) -> "Samples":
        """Return some of the rows."""
        return Samples(self.features.take(rows), self.values[rows], self.noise[rows])


def fit_hyperparameters(samples: Samples) -> FloatArray:
    """Return the hyper-parameters of the largest posterior density (logs, see ``Prior.of``).

    Starts at the prior's means, so that the result depends on the samples alone. Costs about
    10 ms per iteration and 200 samples.
    """
    prior = Prior.of(samples.features)
    if not len(samples.values):
        return prior.means
    similarities = Similarities(samples.features, samples.features)
    centred = samples.values - _level(samples)

    def loss(logs: FloatArray) -> tuple[float, FloatArray]:
        return _negative_log_posterior(logs, similarities, centred, samples.noise, prior)

    bounds = np.stack([prior.means, prior.means], axis=1)
    bounds += _FIT_RANGE * prior.deviations[:, None] * np.array([-1.0, 1.0])
    found = minimize(
        loss,
        prior.means,
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": _FIT_ITERATIONS},
    )
    return np.asarray(found.x, dtype=np.float64)


class GaussianProcess:
    """The posterior of one score, given samples and hyper-parameters.

    Args:
        samples: With at least one row, all finite.
        logs: From :func:`fit_hyperparameters`.
        similarities: Of the samples' features with themselves, where they are there already.
    """

    def __init__(
        self, samples: Samples, logs: FloatArray, similarities: Similarities | None = None
    ) -> None:
        if not (np.isfinite(samples.values).all() and np.isfinite(samples.noise).all()):
            raise ValueError("a Gaussian process learns from finite values only")
        self.features = samples.features
        self._logs = logs
        self._level = _level(samples)
        self._values = samples.values
        self._noise = samples.noise * np.exp(logs[-1])
        covariance = kernel_matrix(
            similarities or Similarities(samples.features, samples.features), logs
        )
        covariance[np.diag_indices_from(covariance)] += self._noise
        self._factor = factor_of(covariance)
        self._narrowing = Narrowing(samples.features, self._factor, logs)
        self._solved = cho_solve((self._factor, True), samples.values - self._level)

    def known_mean(self) -> FloatArray:
        """Posterior means of the samples, ``(n,)``: K a = y - N a with a = (K + N)^-1 y."""
        return np.asarray(self._values - self._noise * self._solved, dtype=np.float64)

    def mean(self, cross: Similarities) -> FloatArray:
        """Posterior means, ``(n,)``, of merges by their similarities to :attr:`features`."""
        prior = kernel_matrix(cross, self._logs)
        return np.asarray(prior @ self._solved + self._level, dtype=np.float64)

    def mean_and_variance(
        self, features: Features, cross: Similarities
    ) -> tuple[FloatArray, FloatArray]:
        """Posterior means and variances of the noiseless score, both ``(n,)``.

        Args:
            features: Of the merges.
            cross: Similarities of these and :attr:`features`.
        """
        prior = kernel_matrix(cross, self._logs)
        reduced = solve_triangular(self._factor, prior.T, lower=True, check_finite=False)
        variance = kernel_diagonal(features, self._logs) - (reduced**2).sum(axis=0)
        return prior @ self._solved + self._level, np.maximum(variance, 0.0)

    def path(
        self,
        rng: np.random.Generator,
        pending: Features | None = None,
        *,
        noise: float = 1.0,
        spread: float = 1.0,
        values: FloatArray | None = None,
    ) -> "PosteriorPath":
        """Draw one function from the posterior.

        Args:
            rng: Where it comes from.
            pending: Merges that are being evaluated: what will be known of them narrows the
                posterior, while its mean stays.
            noise: Variance of the noise that their scores will have.
            spread: Multiplies how far the function is from the posterior's mean.
            values: What the samples' values are taken to be; None: what they are.
        """
        mean_solved = self._solved
        if values is None:
            values = self._values
        else:
            mean_solved = cho_solve((self._factor, True), values - self._level, check_finite=False)
        prior = PriorPath(self.features, self._logs, rng)
        noises = np.sqrt(self._noise) * rng.standard_normal(len(self._noise))
        errors = values - self._level - prior(self.features) - noises
        if pending is None:
            solved = cho_solve((self._factor, True), errors, check_finite=False)
            return self._path(prior, self.features, solved, mean_solved, spread)
        narrowed = self._narrowing.by(pending, noise)
        expected = narrowed.expected(mean_solved)
        expected -= prior(pending) + np.sqrt(noise) * rng.standard_normal(len(pending))
        solved = narrowed.solve(errors, expected)
        known = self.features.followed_by(pending)
        return self._path(prior, known, solved, mean_solved, spread)

    def _path(
        self,
        prior: PriorPath,
        known: Features,
        correction: FloatArray,
        mean_solved: FloatArray,
        spread: float,
    ) -> "PosteriorPath":
        # The mean is the kernel times mean_solved: a weighted mean of the two is one product.
        mixed = spread * correction
        mixed[: len(mean_solved)] += (1.0 - spread) * mean_solved
        product = KernelProduct(known, self._logs, mixed)
        return PosteriorPath(prior, product, self._level, spread)


@dataclass(frozen=True, slots=True)
class PosteriorPath:
    """One function drawn from a posterior: a prior draw and its correction by the data."""

    prior: PriorPath
    correction: KernelProduct
    level: float
    spread: float

    def __call__(self, features: Features) -> FloatArray:
        """Return the function's values at n merges, ``(n,)``."""
        values = self.spread * self.prior(features) + self.correction(features)
        return np.asarray(values + self.level, dtype=np.float64)


def _negative_log_posterior(
    logs: FloatArray,
    similarities: Similarities,
    centred: FloatArray,
    noise: FloatArray,
    prior: Prior,
) -> tuple[float, FloatArray]:
    covariance = kernel_matrix(similarities, logs)
    scaled_noise = noise * np.exp(logs[-1])
    covariance[np.diag_indices_from(covariance)] += scaled_noise
    factor = factor_of(covariance)
    solved = cho_solve((factor, True), centred, check_finite=False)
    value = 0.5 * centred @ solved + np.log(np.diag(factor)).sum()
    inverse = cho_solve((factor, True), np.eye(len(centred)), check_finite=False)
    # d(-log likelihood) = 1/2 sum((K^-1 - a a^T) * dK), with a = K^-1 y.
    inner = inverse - np.outer(solved, solved)
    gradient = [0.5 * np.vdot(inner, part) for part in kernel_gradients(similarities, logs)]
    gradient.append(0.5 * np.diag(inner) @ scaled_noise)
    scaled = (logs - prior.means) / prior.deviations
    return (
        float(value + 0.5 * scaled @ scaled),
        np.array(gradient) + scaled / prior.deviations,
    )


def _level(samples: Samples) -> float:
    """Mean of the values, weighted by what is known of each."""
    return float(np.average(samples.values, weights=1.0 / (samples.noise + 0.1)))
