"""What is believed of one objective: its process, and that of its companion score.

A score between 0 and 1 is a share of solved items, so its process lives on the logit, with the
variance that the number of items gives it; other scores are standardized. Where an objective has a
smooth companion score, a process of its own models that, and its posterior becomes a feature of
the objective's: screened candidates, which have companions and no scores, teach that one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.scores import FloatArray, ObjectiveScore
from optimizer.candidate import Observation
from optimizer.gaussian_process import GaussianProcess, Samples, fit_hyperparameters
from optimizer.surrogate_kernel import Features, Similarities

FIRST_FIT = 12
"""Samples before hyper-parameters are fitted; the prior's means stand until then."""

# More samples than this do not change hyper-parameters, and cost the cube.
_FIT_SAMPLES = 200
# A logit takes the binomial's variance plus half an item on either side (Cox & Snell, "Analysis
# of Binary Data", 1989, section 2.1.6), so that none and all solved are finite.
_HALF_ITEM = 0.5
# Relative variance of scores that state no error.
_LEAST_NOISE = 1e-4
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(11)


@dataclass(frozen=True, slots=True)
class Scale:
    """Between scores and the values that a process has."""

    is_share: bool
    shift: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, scores: Sequence[ObjectiveScore], *, may_be_shares: bool) -> "Scale":
        """Choose by the scores there are; at least one."""
        values = np.array([score.value for score in scores])
        # Estimates from some of the items can leave the interval by a little.
        inside = ((values >= 0) & (values <= 1)).mean()
        if may_be_shares and inside >= 0.9:
            return cls(is_share=True)
        unit = float(values.std())
        return cls(is_share=False, shift=float(values.mean()), unit=unit if unit > 0 else 1.0)

    def samples(self, features: Features, scores: Sequence[ObjectiveScore]) -> Samples:
        """Turn scores into what a process learns from."""
        values = np.array([score.value for score in scores])
        errors = np.array([score.stderr for score in scores])
        if not self.is_share:
            noise = np.maximum((errors / self.unit) ** 2, _LEAST_NOISE)
            return Samples(features, (values - self.shift) / self.unit, noise)
        counts = np.maximum(np.array([score.count for score in scores], dtype=np.float64), 1.0)
        values = np.clip(values, 0.0, 1.0)
        smoothed = (values * counts + _HALF_ITEM) / (counts + 2 * _HALF_ITEM)
        # Items of graded scores say more than solved or not; weighted ones less.
        spread = smoothed * (1.0 - smoothed)
        graded = np.clip(spread / np.maximum(errors, 1e-12) ** 2, counts / 8, counts * 16)
        worth = np.where((errors > 0) & (values > 0) & (values < 1), graded, counts)
        logits = np.log(smoothed / (1.0 - smoothed))
        return Samples(features, logits, 1.0 / (worth * spread))

    def scores(self, values: FloatArray) -> FloatArray:
        """Turn values of a process into scores."""
        if self.is_share:
            return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -40.0, 40.0))))
        return values * self.unit + self.shift


Hyperparameters = tuple[FloatArray | None, FloatArray]
"""Of an objective: those of its companion's process, if it has one, and its own."""


class Known:
    """Observations with their features, and which of them have what."""

    def __init__(self, features: Features, observations: Sequence[Observation]) -> None:
        self.features = features
        self.observations = observations
        self.scored = [row for row, seen in enumerate(observations) if seen.scores]
        self.scored_features = features.take(self.scored)

    def scores(self, name: str) -> list[ObjectiveScore]:
        """Return an objective's scores, for every scored observation."""
        return [(self.observations[row].scores or {})[name] for row in self.scored]

    def companions(self, name: str) -> tuple[list[int], list[ObjectiveScore]]:
        """Return which observations have an objective's companion, and those scores."""
        rows = [row for row, seen in enumerate(self.observations) if name in seen.companions]
        return rows, [self.observations[row].companions[name] for row in rows]

    def first(self, count: int) -> "Known":
        """Return what was known after the first so many observations."""
        return Known(self.features.take(slice(0, count)), self.observations[:count])


class Query:
    """Merges to be judged; what is computed for one objective is kept for the others."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._similarities: dict[tuple[int, int], Similarities] = {}

    def cross(self, process: GaussianProcess) -> Similarities:
        """Similarities with what a process knows."""
        return self.similarities(process.features, None)

    def similarities(self, known: Features, pending: Features | None) -> Similarities:
        """Similarities with merges that are ``pending`` after those that all objectives share."""
        key = (id(known), 0) if pending is None else (len(known), id(pending))
        if key not in self._similarities:
            self._similarities[key] = Similarities(self.features, known)
        return self._similarities[key]


class ObjectiveModel:
    """The process of one objective, with that of its companion where there is one."""

    def __init__(self, name: str, known: Known, hyperparameters: Hyperparameters) -> None:
        companion_logs, logs = hyperparameters
        self._companion: GaussianProcess | None = None
        features = known.scored_features
        if companion_logs is not None:
            samples = _companion_samples(name, known)
            self._companion = GaussianProcess(samples, companion_logs)
            smooth = self._companion.mean(Similarities(features, samples.features))
            features = features.with_companion(smooth)
        scores = known.scores(name)
        self.scale = Scale.of(scores, may_be_shares=True)
        samples = self.scale.samples(features, scores)
        self._noise = float(np.median(samples.noise))
        self._process = GaussianProcess(samples, logs)

    def mean_and_variance(self, query: Query) -> tuple[FloatArray, FloatArray]:
        """Of the process's values, ``(n,)`` each."""
        if self._companion is None:
            return self._process.mean_and_variance(query.features, query.cross(self._process))
        smooth, spread = self._companion.mean_and_variance(
            query.features, query.cross(self._companion)
        )
        features = query.features.with_companion(smooth)
        known = self._process.features
        mean, variance = self._process.mean_and_variance(features, Similarities(features, known))
        # What is not known of the companion counts by how much the mean changes with it.
        ends = [
            self._process.mean(Similarities(query.features.with_companion(smooth + step), known))
            for step in (np.sqrt(spread), -np.sqrt(spread))
        ]
        return mean, variance + ((ends[0] - ends[1]) / 2) ** 2

    def mean(self, query: Query) -> FloatArray:
        """Of the process's values, ``(n,)``."""
        if self._companion is None:
            return self._process.mean(query.cross(self._process))
        smooth = self._companion.mean(query.cross(self._companion))
        features = query.features.with_companion(smooth)
        return self._process.mean(Similarities(features, self._process.features))

    def path(
        self, rng: np.random.Generator, pending: Features | None, spread: float
    ) -> Callable[[Query], FloatArray]:
        """Draw one function from merges to scores."""
        if self._companion is None:
            path = self._process.path(rng, pending, noise=self._noise, spread=spread)
            return lambda query: self.scale.scores(
                path(query.features, query.similarities(path.known, pending))
            )
        smooth_path = self._companion.path(rng, pending, noise=_LEAST_NOISE, spread=spread)
        if pending is not None:
            pending = pending.with_companion(smooth_path(pending))
        path = self._process.path(rng, pending, noise=self._noise, spread=spread)

        def draw(query: Query) -> FloatArray:
            smooth = smooth_path(query.features)
            return self.scale.scores(path(query.features.with_companion(smooth)))

        return draw


def _companion_samples(name: str, known: Known) -> Samples:
    rows, smooth = known.companions(name)
    return Scale.of(smooth, may_be_shares=False).samples(known.features.take(rows), smooth)


def fit_objective(name: str, known: Known) -> Hyperparameters:
    """Fit what one objective needs to observations; a function of them alone."""
    features = known.scored_features
    companion_logs = None
    if not known.scored:
        return None, fit_hyperparameters(Samples(features, np.zeros(0), np.zeros(0)))
    if len(known.companions(name)[0]) >= FIRST_FIT:
        samples = _companion_samples(name, known)
        companion_logs = fit_hyperparameters(_thinned(samples))
        companion = GaussianProcess(samples, companion_logs)
        smooth = companion.mean(Similarities(features, samples.features))
        features = features.with_companion(smooth)
    scores = known.scores(name)
    samples = Scale.of(scores, may_be_shares=True).samples(features, scores)
    return companion_logs, fit_hyperparameters(_thinned(samples))


def _thinned(samples: Samples) -> Samples:
    """Keep an even choice of so many samples as hyper-parameters are fitted to."""
    count = len(samples.values)
    if count <= _FIT_SAMPLES:
        return samples
    return samples.take(np.linspace(0, count - 1, _FIT_SAMPLES).astype(int).tolist())


def moments(mean: FloatArray, variance: FloatArray, scale: Scale) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of scores, from those of a process's values."""
    deviation = np.sqrt(variance)
    if not scale.is_share:
        return scale.scores(mean), deviation * scale.unit
    # Gauss-Hermite quadrature: the mean of a logistic of a normal has no closed form.
    weights = _NODE_WEIGHTS / _NODE_WEIGHTS.sum()
    shares = scale.scores(mean[:, None] + deviation[:, None] * _NODES)
    average = shares @ weights
    spread = np.sqrt(np.maximum(shares**2 @ weights - average**2, 0.0))
    return np.asarray(average), np.asarray(spread)
