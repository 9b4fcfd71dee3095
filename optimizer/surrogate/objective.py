"""What is believed of one objective: its shape and process, and those of its companion score.

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
from optimizer.surrogate.bowl import BoolArray
from optimizer.surrogate.gaussian_process import Samples
from optimizer.surrogate.kernel import Features, Similarities
from optimizer.surrogate.shape import Fit, ShapedProcess, fit_shape, unfitted

FIRST_FIT = 12
"""Samples before hyper-parameters are fitted; the prior's means stand until then."""

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

    def at_most(self, samples: Samples) -> BoolArray:
        """Say which values are upper bounds, ``(n,)`` bool: shares as low as they get.

        A merge that solves nothing, or what can be guessed, may be just not good enough or
        broken altogether; taken as a number it would say that there is no difference.
        """
        if not self.is_share:
            return np.zeros(len(samples.values), dtype=bool)
        within = samples.values <= (samples.values + np.sqrt(samples.noise)).min()
        return np.asarray(within)

    def scores(self, values: FloatArray) -> FloatArray:
        """Turn values of a process into scores."""
        if self.is_share:
            return np.asarray(1.0 / (1.0 + np.exp(-np.clip(values, -40.0, 40.0))))
        return values * self.unit + self.shift


Fits = tuple[Fit | None, Fit]
"""Of an objective: that of its companion's process, if it has one, and its own."""


class Known:
    """Observations with their features, and which of them have what."""

    def __init__(self, features: Features, observations: Sequence[Observation]) -> None:
        self.features = features
        self.observations = observations
        self.scored = [row for row, seen in enumerate(observations) if seen.scores]
        self.unscored = [row for row, seen in enumerate(observations) if not seen.scores]
        self.scored_features = features.take(self.scored)
        self._similarities: dict[tuple[int, ...], Similarities] = {}

    def scores(self, name: str) -> list[ObjectiveScore]:
        """Return an objective's scores, for every scored observation."""
        return [(self.observations[row].scores or {})[name] for row in self.scored]

    def companions(self, name: str) -> tuple[list[int], list[ObjectiveScore]]:
        """Return which observations have an objective's companion, and those scores."""
        rows = [row for row, seen in enumerate(self.observations) if name in seen.companions]
        return rows, [self.observations[row].companions[name] for row in rows]

    def similarities(self, rows: Sequence[int]) -> Similarities:
        """Similarities of some of the merges with themselves; kept for the other objectives."""
        key = tuple(rows)
        if key not in self._similarities:
            features = self.features.take(list(rows))
            self._similarities[key] = Similarities(features, features)
        return self._similarities[key]

    def first(self, count: int) -> "Known":
        """Return what was known after the first so many observations."""
        return Known(self.features.take(slice(0, count)), self.observations[:count])


class Query:
    """Merges to be judged; what is computed for one objective is kept for the others."""

    def __init__(self, features: Features) -> None:
        self.features = features
        self._similarities: dict[int, Similarities] = {}

    def cross(self, process: ShapedProcess, smooth: FloatArray | None = None) -> Similarities:
        """Similarities with what a process knows; ``smooth``: where it knows companions."""
        known = process.features
        key = id(known.weights)
        if key not in self._similarities:
            self._similarities[key] = Similarities(self.features, known)
        cross = self._similarities[key]
        if smooth is None or known.companion is None:
            return cross
        return cross.with_companions(smooth, known.companion)


class ObjectiveModel:
    """The process of one objective, with that of its companion where there is one."""

    def __init__(self, name: str, known: Known, fits: Fits) -> None:
        companion_fit, fit = fits
        self._companion: ShapedProcess | None = None
        self._known = known
        features, similarities = known.scored_features, known.similarities(known.scored)
        if companion_fit is not None:
            self._companion = _companion_process(name, known, companion_fit)
            smooth = _companion_means(name, known, self._companion)
            features = features.with_companion(smooth)
            similarities = similarities.with_companions(smooth, smooth)
        scores = known.scores(name)
        self.scale = Scale.of(scores, may_be_shares=True)
        samples = self.scale.samples(features, scores)
        self._noise = float(np.median(samples.noise))
        at_most = self.scale.at_most(samples)
        self._process = ShapedProcess(samples, at_most, fit, similarities)

    def means_and_variance(self, query: Query) -> tuple[FloatArray, FloatArray]:
        """Of the process's values: by every bowl, ``(e, n)``, and the variance ``(n,)``."""
        if self._companion is None:
            return self._process.means_and_variance(query.features, query.cross(self._process))
        by_bowl, spread = self._companion.means_and_variance(
            query.features, query.cross(self._companion)
        )
        smooth = by_bowl.mean(axis=0)
        spread = spread + by_bowl.var(axis=0)
        features = query.features.with_companion(smooth)
        means, variance = self._process.means_and_variance(
            features, query.cross(self._process, smooth)
        )
        # What is not known of the companion counts by how much the mean changes with it.
        ends = []
        for step in (np.sqrt(spread), -np.sqrt(spread)):
            moved = query.features.with_companion(smooth + step)
            ends.append(self._process.mean(moved, query.cross(self._process, smooth + step)))
        return means, variance + ((ends[0] - ends[1]) / 2) ** 2

    def mean_and_move(self, query: Query) -> tuple[FloatArray, FloatArray]:
        """Of the process's values: the mean, and how far a score of each will move it, ``(n,)``.

        The latter is a standard deviation; the score has the noise that scores have had.
        """
        by_bowl, variance = self.means_and_variance(query)
        variance = variance + by_bowl.var(axis=0)
        return by_bowl.mean(axis=0), variance / np.sqrt(variance + self._noise)

    def mean(self, query: Query) -> FloatArray:
        """Of the process's values, ``(n,)``."""
        if self._companion is None:
            return self._process.mean(query.features, query.cross(self._process))
        smooth = self._companion.mean(query.features, query.cross(self._companion))
        features = query.features.with_companion(smooth)
        return self._process.mean(features, query.cross(self._process, smooth))

    def known_mean(self, rest: Query | None) -> FloatArray:
        """The same for all that is known; ``rest`` are the merges without scores among it."""
        found = np.empty(len(self._known.observations))
        found[self._known.scored] = self._process.known_mean()
        if rest is not None:
            found[self._known.unscored] = self.mean(rest)
        return found

    def path(
        self, rng: np.random.Generator, pending: Features | None, spread: float
    ) -> Callable[[Features], FloatArray]:
        """Draw one function from merges to scores."""
        if self._companion is None:
            path = self._process.path(rng, pending, noise=self._noise, spread=spread)
            return lambda features: self.scale.scores(path(features))
        smooth_path = self._companion.path(rng, pending, noise=_LEAST_NOISE, spread=spread)
        if pending is not None:
            pending = pending.with_companion(smooth_path(pending))
        path = self._process.path(rng, pending, noise=self._noise, spread=spread)

        def draw(features: Features) -> FloatArray:
            return self.scale.scores(path(features.with_companion(smooth_path(features))))

        return draw


def _companion_samples(name: str, known: Known) -> Samples:
    rows, smooth = known.companions(name)
    return Scale.of(smooth, may_be_shares=False).samples(known.features.take(rows), smooth)


def _companion_process(name: str, known: Known, fit: Fit) -> ShapedProcess:
    samples = _companion_samples(name, known)
    similarities = known.similarities(known.companions(name)[0])
    return ShapedProcess(samples, _no_bounds(samples), fit, similarities)


def _companion_means(name: str, known: Known, process: ShapedProcess) -> FloatArray:
    """Posterior means of a companion, ``(n,)``, for every merge with scores."""
    rows, _ = known.companions(name)
    means = dict(zip(rows, process.known_mean().tolist(), strict=True))
    missing = [row for row in known.scored if row not in means]
    if missing:
        features = known.features.take(missing)
        found = process.mean(features, Similarities(features, process.features))
        means.update(zip(missing, found.tolist(), strict=True))
    return np.array([means[row] for row in known.scored])


def _no_bounds(samples: Samples) -> BoolArray:
    return np.zeros(len(samples.values), dtype=bool)


def fit_objective(name: str, known: Known) -> Fits:
    """Fit what one objective needs to observations; a function of them alone."""
    features = known.scored_features
    companion_fit = None
    if not known.scored:
        return None, unfitted(features)
    if len(known.companions(name)[0]) >= FIRST_FIT:
        samples = _companion_samples(name, known)
        companion_fit = fit_shape(samples, _no_bounds(samples))
        companion = _companion_process(name, known, companion_fit)
        features = features.with_companion(_companion_means(name, known, companion))
    scores = known.scores(name)
    scale = Scale.of(scores, may_be_shares=True)
    samples = scale.samples(features, scores)
    return companion_fit, fit_shape(samples, scale.at_most(samples))


def moments(means: FloatArray, variance: FloatArray, scale: Scale) -> tuple[FloatArray, FloatArray]:
    """Mean and standard deviation of scores, ``(n,)``, from moments of a process's values.

    Args:
        means: ``(e, n)``, equally likely.
        variance: ``(n,)``, around each.
        scale: Of the values.
    """
    if not scale.is_share:
        deviation = np.sqrt(variance + means.var(axis=0))
        return scale.scores(means.mean(axis=0)), deviation * scale.unit
    # Gauss-Hermite quadrature: the mean of a logistic of a normal has no closed form.
    weights = np.tile(_NODE_WEIGHTS / _NODE_WEIGHTS.sum() / len(means), len(means))
    values = means[:, :, None] + np.sqrt(variance)[:, None] * _NODES
    shares = scale.scores(np.moveaxis(values, 0, 1).reshape(means.shape[1], -1))
    average = shares @ weights
    spread = np.sqrt(np.maximum(shares**2 @ weights - average**2, 0.0))
    return np.asarray(average), np.asarray(spread)
