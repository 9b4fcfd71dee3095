"""What a search believes of every merge: bowls and a Gaussian process per objective.

Everything here is a function of the observations, in their order, and of what is asked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation, without_nan
from optimizer.pareto import domination_depth
from optimizer.space import SearchSpace
from optimizer.surrogate.blas import with_one_thread
from optimizer.surrogate.kernel import Features, features_of
from optimizer.surrogate.objective import (
    FIRST_FIT,
    Fits,
    Known,
    ObjectiveModel,
    Query,
    fit_objective,
    moments,
)

# Hyper-parameters are fitted again when there are this many times the observations.
_GROWTH = 1.1
# Beyond this many, the best and an even choice of the rest are kept, chosen every so many.
_MAX_SAMPLES, _CHOICE_STEP = 600, 200
# Fits and choices that are remembered: beliefs may lack the last outcomes, or their last fit.
_NUM_REMEMBERED = 3


@dataclass(frozen=True, slots=True)
class Posterior:
    """What is believed of the true scores of merges: ``(n, m)`` means and standard deviations."""

    mean: FloatArray
    stderr: FloatArray


class SurrogateMemory:
    """What surrogates of one growing search need not compute again.

    All of it is a function of the observations, so it saves time and changes nothing. It belongs
    to one search: its observations may only be added to.
    """

    def __init__(self, space: SearchSpace, names: Sequence[str]) -> None:
        self._space = space
        self._names = tuple(names)
        self._usable: list[Observation] = []
        # By the number of observations: how many of them are usable.
        self._num_usable = [0]
        # The last few, oldest first.
        self._choices: dict[int, list[Observation]] = {}
        self._fits: dict[tuple[int, int], list[Fits]] = {}

    def usable(self, observations: Sequence[Observation]) -> list[Observation]:
        """Return those that a surrogate learns from."""
        for seen in observations[len(self._num_usable) - 1 :]:
            self._usable += usable_observations(self._space, [seen])
            self._num_usable.append(len(self._usable))
        return self._usable[: self._num_usable[len(observations)]]

    def kept(self, usable: list[Observation]) -> tuple[list[Observation], tuple[int, int]]:
        """Return which usable observations samples are made of, and what a fit to them is of.

        Returns:
            The observations, and a key: how many of the usable had been chosen from, and to how
            many of those that are returned everything is fitted.
        """
        if len(usable) <= _MAX_SAMPLES:
            return usable, (0, _last_fit(usable))
        settled = len(usable) // _CHOICE_STEP * _CHOICE_STEP
        if settled not in self._choices:
            self._choices[settled] = _choice(usable[:settled], self._names)
            _forget(self._choices)
        chosen = self._choices[settled]
        return [*chosen, *usable[settled:]], (settled, len(chosen))

    def fit(self, key: tuple[int, int], known: Callable[[], "Known"]) -> list[Fits]:
        """Return what was fitted to every objective.

        Args:
            key: From :meth:`kept`.
            known: Gives what it is to be fitted to, where that was not done yet.
        """
        if key not in self._fits:
            first = known()
            self._fits[key] = [fit_objective(name, first) for name in self._names]
            _forget(self._fits)
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
        untold: Observations beyond those, which ``memory`` does not learn of.
        fitted_to: Shapes and hyper-parameters are those of so many observations, where they are
            enough; None: of all but the untold.

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
        untold: Sequence[Observation] = (),
        fitted_to: int | None = None,
    ) -> None:
        self.space = space
        self.names = tuple(names)
        memory = memory or SurrogateMemory(space, names)
        usable = memory.usable(observations)
        if not any(seen.scores for seen in usable):
            raise ValueError("no observation of this space has scores to learn from")
        kept, key = memory.kept(usable)
        self.num_told = len(kept)
        self.observations = [*kept, *usable_observations(space, untold)]
        self._known = known = self._known_of(self.observations)
        if fitted_to is None:
            fits = memory.fit(key, lambda: known.first(key[1]))
        else:
            earlier, key = memory.kept(memory.usable(observations[:fitted_to]))
            if key[1]:
                fits = memory.fit(key, lambda: self._known_of(earlier[: key[1]]))
            else:
                # Without a fit nothing would be made of companions; so few samples take no time.
                first = known.first(_last_fit(self.observations))
                fits = [fit_objective(name, first) for name in self.names]
        self._models = [
            ObjectiveModel(name, known, found) for name, found in zip(self.names, fits, strict=True)
        ]

    def _known_of(self, observations: Sequence[Observation]) -> Known:
        recipes = [seen.candidate.recipe for seen in observations]
        return Known(self.features_of_recipes(recipes), observations)

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
        query = Query(features)
        columns = [moments(*model.means_and_variance(query), model.scale) for model in self._models]
        means, deviations = zip(*columns, strict=True)
        return Posterior(np.stack(means, axis=1), np.stack(deviations, axis=1))

    def predict_recipes(self, recipes: Sequence[MergeRecipe]) -> Posterior:
        """Posterior of recipes of this space's method."""
        return self.predict(self.features_of_recipes(recipes))

    def observed_middle(self) -> FloatArray:
        """Return the ``(n, m)`` scores in the middle of the posterior of :attr:`observations`.

        The median, not the mean: without the variance it costs a tenth.
        """
        unscored = self._known.unscored
        rest = Query(self._known.features.take(unscored)) if unscored else None
        middle = [model.scale.scores(model.known_mean(rest)) for model in self._models]
        return np.stack(middle, axis=1)

    def outlook(self, features: Features) -> Callable[[FloatArray], FloatArray]:
        """Return what may be believed of merges once each has been scored like the others.

        A score moves the mean by less than what is not known of the merge, v, since it has noise n
        of its own: by a normal draw of variance v^2 / (v + n). What merges have in common is left
        out: each is looked at as if it alone were scored.

        Args:
            features: Of k merges.

        Returns:
            Takes ``(d, m)`` standard normal draws, one per objective; returns ``(d, k, m)`` scores
            in the middle of the posterior, as :meth:`observed_middle` has them.
        """
        query = Query(features)
        moves = [model.mean_and_move(query) for model in self._models]

        def draw(normal: FloatArray) -> FloatArray:
            columns = [
                model.scale.scores(mean + column[:, None] * move)
                for model, (mean, move), column in zip(self._models, moves, normal.T, strict=True)
            ]
            return np.stack(columns, axis=2)

        return draw

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
            return np.stack([path(features) for path in paths], axis=1)

        return draw


def usable_observations(
    space: SearchSpace, observations: Sequence[Observation]
) -> list[Observation]:
    """Return what a surrogate learns from: scored or screened merges of the space's method."""
    usable = []
    for seen in map(without_nan, observations):
        if seen.scores is None or not space.is_of_method(seen.candidate.recipe):
            continue
        if seen.scores or seen.companions:
            usable.append(seen)
    return usable


@with_one_thread
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


def _forget(remembered: dict[Any, Any]) -> None:
    """Drop the oldest of what is remembered, as far as it is too much."""
    while len(remembered) > _NUM_REMEMBERED:
        del remembered[next(iter(remembered))]


def _last_fit(observations: Sequence[Observation]) -> int:
    """How many of the observations hyper-parameters are fitted to: a growing series.

    Before the first fit, or where none of those has scores, the prior stands.
    """
    count, step = len(observations), FIRST_FIT
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
