"""What a search believes of every merge: one Gaussian process per objective.

A score between 0 and 1 is a share of solved items, so its process lives on the logit, with the
variance that the number of items gives it; other scores are standardized. Where an objective has a
smooth companion score, a process of its own models that, and its posterior becomes a feature of
the objective's: screened candidates, which have companions and no scores, teach that one.

Everything here is a function of the observations, in their order, and of what is asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, ObjectiveScore, Scores
from optimizer.candidate import Candidate, Observation
from optimizer.gaussian_process import GaussianProcess, Samples, fit_hyperparameters
from optimizer.pareto import domination_depth
from optimizer.space import SearchSpace
from optimizer.surrogate_kernel import Features, features_of

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


class _ObjectiveModel:
    """The process of one objective, with that of its companion where there is one."""

    def __init__(
        self,
        name: str,
        features: Features,
        observations: Sequence[Observation],
        fitted_on: int,
        reach: int,
    ) -> None:
        self._companion: GaussianProcess | None = None
        seen = [row for row in range(reach) if name in observations[row].companions]
        if len(seen) >= _FIRST_FIT:
            smooth = [observations[row].companions[name] for row in seen]
            scale = _Scale.of(smooth, may_be_shares=False)
            samples = scale.samples(features.take(seen), smooth)
            self._companion = GaussianProcess(samples, _fit(samples, seen, fitted_on))
            features = features.with_companion(self._companion.mean(features))
        rows: list[int] = []
        scores: list[ObjectiveScore] = []
        for row in range(reach):
            found = (observations[row].scores or {}).get(name)
            if found is not None:
                rows.append(row)
                scores.append(found)
        self.scale = _Scale.of(scores, may_be_shares=True)
        samples = self.scale.samples(features.take(rows), scores)
        self._noise = float(np.median(samples.noise))
        self._process = GaussianProcess(samples, _fit(samples, rows, fitted_on))

    def mean_and_variance(self, features: Features) -> tuple[FloatArray, FloatArray]:
        """Of the process's values, ``(n,)`` each."""
        if self._companion is None:
            return self._process.mean_and_variance(features)
        smooth, spread = self._companion.mean_and_variance(features)
        mean, variance = self._process.mean_and_variance(features.with_companion(smooth))
        # What is not known of the companion counts by how much the mean changes with it.
        deviation = np.sqrt(spread)
        above = self._process.mean(features.with_companion(smooth + deviation))
        below = self._process.mean(features.with_companion(smooth - deviation))
        return mean, variance + ((above - below) / 2) ** 2

    def draw(self, features: Features, rng: np.random.Generator, pending: int) -> FloatArray:
        """Draw scores of one function, ``(n - pending,)``."""
        if self._companion is not None:
            smooth = self._companion.draw(features, rng)
            features = features.with_companion(smooth)
        values = self._process.draw(features, rng, pending=pending, noise=self._noise)
        return self.scale.scores(values)


class Surrogate:
    """Posterior of all objectives for any merge of a space, given observations.

    Scores of recipes outside the space (other methods) are left out, as are failures.

    Args:
        space: Of the job; recipes of its method, inside its bounds or not.
        names: The objectives.
        observations: In the order in which they were told; at least one of them must have a score
            of every objective (:meth:`fits`).
    """

    def __init__(
        self, space: SearchSpace, names: Sequence[str], observations: Sequence[Observation]
    ) -> None:
        self.space = space
        self.names = tuple(names)
        usable = usable_observations(space, names, observations)
        if not any(seen.scores for seen in usable):
            raise ValueError("no observation of this space has scores")
        fitted_on = _last_fit(len(usable))
        if len(usable) > _MAX_SAMPLES:
            usable, fitted_on = _choice(usable, self.names)
        self.observations = usable
        features = self.features_of_recipes([seen.candidate.recipe for seen in usable])
        self._features = features
        self._models = [
            _ObjectiveModel(name, features, usable, fitted_on, len(usable)) for name in self.names
        ]

    @classmethod
    def fits(
        cls, space: SearchSpace, names: Sequence[str], observations: Sequence[Observation]
    ) -> bool:
        """Say whether there is anything to learn from."""
        return any(seen.scores for seen in usable_observations(space, names, observations))

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
        columns = [
            _moments(*model.mean_and_variance(features), model.scale) for model in self._models
        ]
        means, deviations = zip(*columns, strict=True)
        return Posterior(np.stack(means, axis=1), np.stack(deviations, axis=1))

    def predict_recipes(self, recipes: Sequence[MergeRecipe]) -> Posterior:
        """Posterior of recipes of this space's method."""
        return self.predict(self.features_of_recipes(recipes))

    def predict_observed(self) -> Posterior:
        """Posterior of :attr:`observations`, in their order."""
        return self.predict(self._features)

    def draw(
        self, features: Features, rng: np.random.Generator, pending: Features | None = None
    ) -> FloatArray:
        """Draw scores from the posterior, ``(n, m)``: one Thompson sample.

        Args:
            features: Of n merges.
            rng: Where the sample comes from.
            pending: Merges under evaluation, which the posterior is narrowed by.
        """
        count = 0 if pending is None else len(pending)
        if pending is not None:
            features = Features(
                np.concatenate([features.weights, pending.weights]),
                np.concatenate([features.spread, pending.spread]),
            )
        return np.stack([model.draw(features, rng, count) for model in self._models], axis=1)


def usable_observations(
    space: SearchSpace, names: Sequence[str], observations: Sequence[Observation]
) -> list[Observation]:
    """Return what a surrogate learns from: merges of the space's method, finite scores or
    companions."""  # noqa: D205, D209 - one sentence
    usable = []
    for seen in observations:
        recipe = seen.candidate.recipe
        if seen.scores is None or recipe.method != space.method:
            continue
        if seen.scores and not all(_is_finite(seen.scores.get(name)) for name in names):
            continue
        smooth = {name: value for name, value in seen.companions.items() if _is_finite(value)}
        if seen.scores or smooth:
            usable.append(Observation(seen.candidate, seen.scores, smooth))
    return usable


def posterior_candidates(
    space: SearchSpace, names: Sequence[str], observations: Sequence[Observation]
) -> tuple[list[Candidate], Posterior]:
    """Return the scored candidates that a surrogate can judge, and their posterior.

    For whoever returns a front by posterior mean: raw scores of a front are biased upwards, since
    it is the lucky ones that are on it. Candidates beyond what the surrogate keeps as samples
    are judged by it too.
    """
    scored = [seen for seen in usable_observations(space, names, observations) if seen.scores]
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


def _fit(samples: Samples, rows: Sequence[int], fitted_on: int) -> FloatArray:
    """Fit hyper-parameters to the samples among the first ``fitted_on`` observations."""
    known = [position for position, row in enumerate(rows) if row < fitted_on]
    if len(known) > _FIT_SAMPLES:
        known = [known[int(i)] for i in np.linspace(0, len(known) - 1, _FIT_SAMPLES)]
    return fit_hyperparameters(samples.take(known))


def _last_fit(count: int) -> int:
    """How many of ``count`` observations hyper-parameters are fitted to: a growing series."""
    step = _FIRST_FIT
    if count < step:
        return 0
    while int(step * _GROWTH) <= count:
        step = int(step * _GROWTH)
    return step


def _choice(observations: list[Observation], names: Sequence[str]) -> tuple[list[Observation], int]:
    """Keep the best observations and an even choice of the others, and all that came lately."""
    settled = len(observations) // _CHOICE_STEP * _CHOICE_STEP
    old = observations[:settled]
    points = np.array(
        [[s.scores[n].value for n in names] if s.scores else [-np.inf] * len(names) for s in old]
    )
    scored = np.flatnonzero(np.isfinite(points).all(axis=1))
    depth = np.full(settled, np.inf)
    depth[scored] = domination_depth(points[scored])
    order = np.argsort(depth, kind="stable")
    best, others = order[: _MAX_SAMPLES // 2], np.sort(order[_MAX_SAMPLES // 2 :])
    even = others[np.linspace(0, len(others) - 1, _MAX_SAMPLES // 2).astype(int)]
    rows = sorted({*best.tolist(), *even.tolist()})
    kept = [old[row] for row in rows]
    return [*kept, *observations[settled:]], len(kept)


def _is_finite(score: ObjectiveScore | None) -> bool:
    return score is not None and bool(np.isfinite(score.value) and np.isfinite(score.stderr))


__all__ = ["Posterior", "Scores", "Surrogate", "posterior_candidates", "usable_observations"]
