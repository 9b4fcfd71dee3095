"""What a search believes of every merge: one Gaussian process per objective.

A score between 0 and 1 is a share of solved items, so its process lives on the logit, with the
variance that the number of items gives it; other scores are standardized. Where an objective has a
smooth companion score, a process of its own models that, and its posterior becomes a feature of
the objective's: screened candidates, which have companions and no scores, teach that one.

Everything here is a function of the observations, in their order, and of what is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, ObjectiveScore
from optimizer.candidate import Candidate, Observation
from optimizer.gaussian_process import GaussianProcess, Samples, fit_hyperparameters
from optimizer.pareto import domination_depth
from optimizer.space import SearchSpace
from optimizer.strategy import without_nan
from optimizer.surrogate_kernel import Features, Similarities, features_of

# Hyper-parameters are fitted again when there are this many times the observations.
_GROWTH = 1.25
_FIRST_FIT = 12
# More samples than this do not change hyper-parameters, and cost the cube.
_FIT_SAMPLES = 200
# Beyond this many, the best and an even choice of the rest are kept, chosen every so many.
_MAX_SAMPLES, _CHOICE_STEP = 600, 200
# A logit takes the binomial's variance plus half an item on either side (Cox & Snell, "Analysis
# of Binary Data", 1989, section 2.1.6), so that none and all solved are finite.
_HALF_ITEM = 0.5
# Relative variance of scores that state no error.
_LEAST_NOISE = 1e-4
_NODES, _NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(11)


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is believed of the true scores of merges: ``(n, m)`` means and standard deviations."""

    mean: FloatArray
    stderr: FloatArray


@dataclass(frozen=True, slots=True)
class _Scale:
    """Between scores and the values that a process has."""

    is_share: bool
    shift: float = 0.0
    unit: float = 1.0

    @classmethod
    def of(cls, scores: Sequence[ObjectiveScore], *, may_be_shares: bool) -> "_Scale":
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


class _Known:
    """Features of observations, and which of them have what; similarities are computed once."""

    def __init__(self, features: Features, observations: Sequence[Observation]) -> None:
        self.features = features
        self.observations = observations
        self.scored = [row for row, seen in enumerate(observations) if seen.scores]
        self.scored_features = features.take(self.scored)

    def scores(self, name: str) -> list[ObjectiveScore]:
        return [(self.observations[row].scores or {})[name] for row in self.scored]

    def companions(self, name: str) -> tuple[list[int], list[ObjectiveScore]]:
        rows = [row for row, seen in enumerate(self.observations) if name in seen.companions]
        return rows, [self.observations[row].companions[name] for row in rows]

    def first(self, count: int) -> "_Known":
        return _Known(self.features.take(slice(0, count)), self.observations[:count])


class _Query:
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


class _ObjectiveModel:
    """The process of one objective, with that of its companion where there is one."""

    def __init__(self, name: str, known: _Known, hyperparameters: Hyperparameters) -> None:
        companion_logs, logs = hyperparameters
        self._companion: GaussianProcess | None = None
        features = known.scored_features
        if companion_logs is not None:
            samples = _companion_samples(name, known)
            self._companion = GaussianProcess(samples, companion_logs)
            smooth = self._companion.mean(Similarities(features, samples.features))
            features = features.with_companion(smooth)
        scores = known.scores(name)
        self.scale = _Scale.of(scores, may_be_shares=True)
        samples = self.scale.samples(features, scores)
        self._noise = float(np.median(samples.noise))
        self._process = GaussianProcess(samples, logs)

    def mean_and_variance(self, query: _Query) -> tuple[FloatArray, FloatArray]:
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

    def mean(self, query: _Query) -> FloatArray:
        """Of the process's values, ``(n,)``."""
        if self._companion is None:
            return self._process.mean(query.cross(self._process))
        smooth = self._companion.mean(query.cross(self._companion))
        features = query.features.with_companion(smooth)
        return self._process.mean(Similarities(features, self._process.features))

    def path(
        self, rng: np.random.Generator, pending: Features | None, spread: float
    ) -> Callable[[_Query], FloatArray]:
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

        def draw(query: _Query) -> FloatArray:
            smooth = smooth_path(query.features)
            return self.scale.scores(path(query.features.with_companion(smooth)))

        return draw


def _companion_samples(name: str, known: _Known) -> Samples:
    rows, smooth = known.companions(name)
    return _Scale.of(smooth, may_be_shares=False).samples(known.features.take(rows), smooth)


def _fit_objective(name: str, known: _Known) -> Hyperparameters:
    """Fit what one objective needs to observations; a function of them alone."""
    features = known.scored_features
    companion_logs = None
    if not known.scored:
        return None, fit_hyperparameters(Samples(features, np.zeros(0), np.zeros(0)))
    if len(known.companions(name)[0]) >= _FIRST_FIT:
        samples = _companion_samples(name, known)
        companion_logs = fit_hyperparameters(_thinned(samples))
        companion = GaussianProcess(samples, companion_logs)
        smooth = companion.mean(Similarities(features, samples.features))
        features = features.with_companion(smooth)
    scores = known.scores(name)
    samples = _Scale.of(scores, may_be_shares=True).samples(features, scores)
    return companion_logs, fit_hyperparameters(_thinned(samples))


def _thinned(samples: Samples) -> Samples:
    """Keep an even choice of so many samples as hyper-parameters are fitted to."""
    count = len(samples.values)
    if count <= _FIT_SAMPLES:
        return samples
    return samples.take(np.linspace(0, count - 1, _FIT_SAMPLES).astype(int).tolist())


class SurrogateMemory:
    """What surrogates of one growing search need not compute again.

    All of it is a function of the observations, so it saves time and changes nothing. It belongs
    to one search: its observations may only be added to.
    """

    def __init__(self, space: SearchSpace, names: Sequence[str]) -> None:
        self._space = space
        self._names = tuple(names)
        self._num_read = 0
        self._usable: list[Observation] = []
        self._choices: dict[int, list[Observation]] = {}
        self._fits: dict[tuple[int, int], list[Hyperparameters]] = {}

    def usable(self, observations: Sequence[Observation]) -> list[Observation]:
        """Return those that a surrogate learns from."""
        new = observations[self._num_read :]
        self._usable += usable_observations(self._space, new)
        self._num_read = len(observations)
        return self._usable

    def choice(self, usable: list[Observation], settled: int) -> list[Observation]:
        """Return what is kept of the first ``settled`` usable observations."""
        if settled not in self._choices:
            self._choices = {settled: _choice(usable[:settled], self._names)}
        return self._choices[settled]

    def fit(self, settled: int, known: "_Known") -> list[Hyperparameters]:
        """Return the hyper-parameters of every objective, fitted to what is known."""
        key = (settled, len(known.observations))
        if key not in self._fits:
            self._fits = {key: [_fit_objective(name, known) for name in self._names]}
        return self._fits[key]


class Surrogate:
    """Posterior of all objectives for any merge of a space, given observations.

    Scores of recipes outside the space (other methods) are left out, as are failures.

    Args:
        space: Of the job; recipes of its method, inside its bounds or not.
        names: The objectives.
        observations: In the order in which they were told; at least one usable one must have
            scores (see :func:`usable_observations`).
        memory: Of the search, where surrogates are made again and again as it grows.

    Raises:
        ValueError: Nothing usable has scores.
    """

    def __init__(
        self,
        space: SearchSpace,
        names: Sequence[str],
        observations: Sequence[Observation],
        *,
        memory: SurrogateMemory | None = None,
    ) -> None:
        self.space = space
        self.names = tuple(names)
        memory = memory or SurrogateMemory(space, names)
        usable = memory.usable(observations)
        if not any(seen.scores for seen in usable):
            raise ValueError("no observation of this space has scores to learn from")
        settled = 0
        fitted_on = _last_fit(usable)
        if len(usable) > _MAX_SAMPLES:
            settled = len(usable) // _CHOICE_STEP * _CHOICE_STEP
            kept = memory.choice(usable, settled)
            fitted_on = len(kept)
            usable = [*kept, *usable[settled:]]
        self.observations = list(usable)
        self._features = self.features_of_recipes([seen.candidate.recipe for seen in usable])
        known = _Known(self._features, self.observations)
        self._models = [
            _ObjectiveModel(name, known, logs)
            for name, logs in zip(
                self.names, memory.fit(settled, known.first(fitted_on)), strict=True
            )
        ]

    def features_of_recipes(self, recipes: Sequence[MergeRecipe]) -> Features:
        """Return the features of recipes of this space's method."""
        weights = np.array([recipe.weights for recipe in recipes], dtype=np.float64)
        drops = np.array([recipe.drop_ratios for recipe in recipes], dtype=np.float64)
        shape = (len(recipes), *self.space.shape)
        return features_of(weights.reshape(shape), drops.reshape(shape), self.space)

    def features_of_genotypes(self, genotypes: FloatArray) -> Features:
        """Return the features of ``(n, size)`` genotypes."""
        return features_of(*self.space.parameters(genotypes), self.space)

    def predict(self, features: Features) -> Posterior:
        """Posterior of the true scores, in the units of the scores; columns as ``names``."""
        query = _Query(features)
        columns = [_moments(*model.mean_and_variance(query), model.scale) for model in self._models]
        means, deviations = zip(*columns, strict=True)
        return Posterior(np.stack(means, axis=1), np.stack(deviations, axis=1))

    def predict_recipes(self, recipes: Sequence[MergeRecipe]) -> Posterior:
        """Posterior of recipes of this space's method."""
        return self.predict(self.features_of_recipes(recipes))

    def observed_middle(self) -> FloatArray:
        """Return the ``(n, m)`` scores in the middle of the posterior of :attr:`observations`.

        The median, not the mean: without the variance it costs a tenth.
        """
        query = _Query(self._features)
        return np.stack([model.scale.scores(model.mean(query)) for model in self._models], axis=1)

    def path(
        self,
        rng: np.random.Generator,
        pending: Features | None = None,
        *,
        spread: float = 1.0,
    ) -> Callable[[Features], FloatArray]:
        """Draw a function from merges to scores of every objective: one Thompson sample.

        Args:
            rng: Where it comes from.
            pending: Merges under evaluation, which the posterior is narrowed by.
            spread: How far from the posterior's mean: 1 is a Thompson sample, 0 the mean itself.

        Returns:
            Takes the features of n merges, returns ``(n, m)`` scores.
        """
        paths = [model.path(rng, pending, spread) for model in self._models]

        def draw(features: Features) -> FloatArray:
            query = _Query(features)
            return np.stack([path(query) for path in paths], axis=1)

        return draw


def usable_observations(
    space: SearchSpace, observations: Sequence[Observation]
) -> list[Observation]:
    """Return what a surrogate learns from: scored or screened merges of the space's method."""
    usable = []
    for seen in map(without_nan, observations):
        if seen.scores is None or seen.candidate.recipe.method != space.method:
            continue
        if seen.scores or seen.companions:
            usable.append(seen)
    return usable


def posterior_candidates(
    space: SearchSpace, names: Sequence[str], observations: Sequence[Observation]
) -> tuple[list[Candidate], Posterior]:
    """Return the scored candidates that a surrogate can judge, and their posterior.

    For whoever returns a front by posterior mean: raw scores of a front are biased upwards, since
    it is the lucky ones that are on it. Candidates beyond what the surrogate keeps as samples
    are judged by it too.
    """
    scored = [seen for seen in usable_observations(space, observations) if seen.scores]
    if not scored:
        return [], Posterior(np.zeros((0, len(names))), np.zeros((0, len(names))))
    surrogate = Surrogate(space, names, observations)
    candidates = [seen.candidate for seen in scored]
    return candidates, surrogate.predict_recipes([seen.recipe for seen in candidates])


def _moments(
    mean: FloatArray, variance: FloatArray, scale: _Scale
) -> tuple[FloatArray, FloatArray]:
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


def _last_fit(observations: Sequence[Observation]) -> int:
    """How many of the observations hyper-parameters are fitted to: a growing series.

    Before the first fit, or where none of those has scores, the prior stands.
    """
    count, step = len(observations), _FIRST_FIT
    if count < step or not any(seen.scores for seen in observations[:step]):
        return 0
    while int(step * _GROWTH) <= count:
        step = int(step * _GROWTH)
    return step


def _choice(observations: list[Observation], names: Sequence[str]) -> list[Observation]:
    """Keep the observations nearest to the front, and an even choice of the others."""
    points = np.array(
        [
            [seen.scores[name].value for name in names] if seen.scores else [-np.inf] * len(names)
            for seen in observations
        ]
    )
    scored = np.flatnonzero(np.isfinite(points).all(axis=1))
    depth = np.full(len(observations), np.inf)
    depth[scored] = domination_depth(points[scored])
    order = np.argsort(depth, kind="stable")
    half = _MAX_SAMPLES // 2
    others = np.sort(order[half:])
    even = others[np.linspace(0, len(others) - 1, half).astype(int)]
    return [observations[row] for row in sorted({*order[:half].tolist(), *even.tolist()})]
