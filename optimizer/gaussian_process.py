"""A Gaussian process with known noise per point: hyper-parameters, posterior, samples.

Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), algorithm 2.1 for the
posterior and equation 5.9 for the gradient of the marginal likelihood. Everything is exact, by
Cholesky factors. scikit-learn's regressor takes the same noise, but fits 5 to 10 times slower,
since its kernels are objects that know neither what stays the same between steps nor each other.
"""

from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize

from evaluators.scores import FloatArray
from optimizer.surrogate_kernel import (
    Features,
    Prior,
    Similarities,
    kernel_diagonal,
    kernel_gradients,
    kernel_matrix,
)

# Added to the diagonal, relative to its mean, so that equal merges do not make it singular.
_JITTER = 1e-7
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
    """

    def __init__(self, samples: Samples, logs: FloatArray) -> None:
        if not (np.isfinite(samples.values).all() and np.isfinite(samples.noise).all()):
            raise ValueError("a Gaussian process learns from finite values only")
        self.features = samples.features
        self._logs = logs
        self._level = _level(samples)
        covariance = kernel_matrix(Similarities(samples.features, samples.features), logs)
        covariance[np.diag_indices_from(covariance)] += samples.noise * np.exp(logs[-1])
        self._factor = _factor(covariance)
        self._solved = cho_solve((self._factor, True), samples.values - self._level)

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

    def draw(
        self,
        own: Similarities,
        cross: Similarities,
        rng: np.random.Generator,
        *,
        pending: int = 0,
        noise: float = 1.0,
    ) -> FloatArray:
        """Draw one function from the posterior, at many merges at once.

        Args:
            own: Similarities among the n merges. The last ``pending`` of them are being evaluated:
                what will be known of them narrows the posterior, while the mean stays.
            cross: Similarities of these and :attr:`features`.
            rng: Draws one standard normal per merge.
            pending: How many.
            noise: Variance of the noise that their scores will have.

        Returns:
            ``(n - pending,)`` values.
        """
        prior = kernel_matrix(cross, self._logs)
        reduced = solve_triangular(self._factor, prior.T, lower=True, check_finite=False)
        covariance = kernel_matrix(own, self._logs)
        covariance -= reduced.T @ reduced
        mean = prior @ self._solved + self._level
        keep = len(mean) - pending
        if pending:
            known = covariance[keep:, keep:] + noise * np.eye(pending)
            half = solve_triangular(
                _factor(known), covariance[keep:, :keep], lower=True, check_finite=False
            )
            covariance = covariance[:keep, :keep] - half.T @ half
        return np.asarray(mean[:keep] + _factor(covariance) @ rng.standard_normal(keep))


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
    factor = _factor(covariance)
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


def _factor(covariance: FloatArray) -> FloatArray:
    """Lower Cholesky factor; the jitter grows until there is one."""
    diagonal = np.diag_indices_from(covariance)
    jitter = _JITTER * float(np.mean(covariance[diagonal]))
    while True:
        covariance[diagonal] += jitter
        try:
            return np.asarray(cholesky(covariance, lower=True, check_finite=False))
        except np.linalg.LinAlgError:
            jitter = 10.0 * max(jitter, 1e-12)


def _level(samples: Samples) -> float:
    """Mean of the values, weighted by what is known of each."""
    return float(np.average(samples.values, weights=1.0 / (samples.noise + 0.1)))
