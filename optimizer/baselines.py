"""What every search is measured against: single checkpoints, soups, task arithmetic, TIES (D10).

A job may name others, learned merges above all: ``optimizer.given_baselines``.

A plan is a function of what was proposed and observed, so that a resumed search continues it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation
from optimizer.scalarize import preferred_mean
from optimizer.space import SearchSpace

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

SCALES = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2)
"""Scales of task arithmetic (Ilharco et al., arXiv:2212.04089): one weight for all checkpoints."""

GREEDY_SOUP = "greedy soup"
DELTA_GUIDED = "delta-guided fusion"
# TIES as its paper recommends it without tuning (arXiv:2306.01708, section 4): the 20 % largest
# magnitudes. DARE before TIES: half, in the middle of what is reported to merge best.
_TIES = (("TIES", "ties", 0.8), ("DARE-TIES", "dare_ties", 0.5))
# What a search learns from before its own proposals, besides the sources; see `BaselinePlan.next`.
_EARLY = ("uniform soup", *(f"task arithmetic {scale}" for scale in (0.4, 0.7, 1.0)))
# How many evaluations of its own a search makes for each of the other baselines.
_TURN = 12
_PREFIX = "baseline:"


@dataclass(frozen=True, slots=True)
class Baseline:
    """A merge that needs no search, under the name that reports use.

    Attributes:
        label: The name.
        recipe: What is merged.
        is_given: Whether the job names it (``baselines``).
        genotype: The nearest in the search space; None is that of the recipe's weights.
    """

    label: str
    recipe: MergeRecipe
    is_given: bool = False
    genotype: FloatArray | None = None

    @property
    def origin(self) -> str:
        """The origin of the candidate that stands for it."""
        return _PREFIX + self.label

    @property
    def is_early(self) -> bool:
        """Whether it is scored before a search's own proposals, which learn from it."""
        return self.is_source or self.is_given or self.label in _EARLY

    @property
    def is_source(self) -> bool:
        """Whether it is the base or a checkpoint alone."""
        return self.label == "base" or self.label.startswith("checkpoint ")


def label_of(candidate: Candidate) -> str:
    """Return the report's name of a baseline candidate."""
    return candidate.origin.removeprefix(_PREFIX)


class BaselinePlan:
    """Says which baseline to score next.

    Args:
        space: Where recipes are made; baselines may lie outside its bounds.
        names: Checkpoint names in the order of the space.
        preference: Objective -> weight, for the order and the steps of the greedy soup.
        given: Those that the job names (``optimizer.given_baselines``).
    """

    def __init__(
        self,
        space: SearchSpace,
        names: Sequence[str],
        preference: Mapping[str, float],
        given: Sequence[Baseline] = (),
    ) -> None:
        self._given = given
        self._space = space
        self._names = tuple(names)
        self._preference = preference
        self.fixed = self._fixed()
        # Recipes are hashed once, not for every ask: a plan belongs to one search.
        self._fixed_ids = [baseline.recipe.recipe_id for baseline in self.fixed]
        self._ids: dict[int, str] = {}
        self._soups: dict[tuple[int, ...], tuple[MergeRecipe, str]] = {}

    def next(
        self,
        proposed: Sequence[Candidate],
        observed: Sequence[Observation],
        *,
        left: int | None = None,
        num_own: int = 0,
    ) -> Baseline | None:
        """Return the next baseline that was not proposed yet; None when none is due now.

        What a search learns from comes first: the sources, and a few merges of all of them. The
        others only have to be known at the end, so they take turns with the search's own
        proposals, and the last of the budget is kept for them.

        Args:
            proposed: All candidates, by index.
            observed: What was told.
            left: Evaluations left in the budget, the next one included; None has all baselines
                at once.
            num_own: Evaluations that the search has begun for proposals of its own.
        """
        baselines = [other for other in proposed if other.is_baseline]
        known = {self._id(other) for other in baselines}
        missing = [
            baseline
            for baseline, recipe_id in zip(self.fixed, self._fixed_ids, strict=True)
            if recipe_id not in known
        ]
        for baseline in missing:
            if baseline.is_early:
                return baseline
        trial, _ = self._greedy(observed)
        if trial is not None and trial.recipe.recipe_id not in known:
            missing.append(trial)
        if left is not None and left > len(missing) + len(self._names):
            num_early = sum(one.is_early for one in self.fixed)
            if num_own < _TURN * (len(baselines) - num_early + 1):
                return None
        return missing[0] if missing else None

    def greedy_soup(self, observed: Sequence[Observation]) -> MergeRecipe | None:
        """Return the finished greedy soup; None while a step of it is not scored yet.

        Wortsman et al., "Model soups" (arXiv:2203.05482), recipe 1. With score S, and the
        checkpoints in the order of their own, S(theta_1) >= S(theta_2) >= ...:

            soup = {}
            for i = 1 .. N:
                if S(average of soup + {theta_i}) >= S(average of soup): soup = soup + {theta_i}

        The empty soup has the score minus infinity, so theta_1 is always in. The average of k
        checkpoints has weights 1/k. S is the preferred mean of the objectives on search items.
        """
        trial, soup = self._greedy(observed)
        return soup if trial is None else None

    def _fixed(self) -> list[Baseline]:
        """Every baseline that needs no outcome, each recipe once."""
        count = len(self._names)
        wanted: list[tuple[str, list[float]]] = []
        recipes: list[tuple[str, MergeRecipe]] = []
        if self._space.has_base:
            wanted.append(("base", [0.0] * count))
        for index, name in enumerate(self._names):
            wanted.append((f"checkpoint {name}", _one_hot(index, count)))
        if count > 1:
            wanted.append(("uniform soup", [1.0 / count] * count))
            if self._space.has_base:
                wanted += [(f"task arithmetic {scale}", [scale] * count) for scale in SCALES]
            if self._space.has_base:
                recipes = [(label, self._ties(method, drop)) for label, method, drop in _TIES]
                recipes.append((DELTA_GUIDED, self._delta_guided()))
        baselines: dict[str, Baseline] = {}
        for label, recipe in [*((label, self._recipe(w)) for label, w in wanted), *recipes]:
            baselines.setdefault(recipe.recipe_id, Baseline(label, recipe))
        for given in self._given:
            baselines.setdefault(given.recipe.recipe_id, given)
        return list(baselines.values())

    def _greedy(
        self, observed: Sequence[Observation]
    ) -> tuple[Baseline | None, MergeRecipe | None]:
        """Walk the greedy soup as far as outcomes allow; the rule is in :meth:`greedy_soup`.

        Returns:
            The step to score next (None when finished or when the single checkpoints are not
            all scored), and the soup so far.
        """
        scores = {
            self._id(seen.candidate): seen.scores for seen in observed if seen.candidate.is_baseline
        }
        singles = []
        for index in range(len(self._names)):
            _, recipe_id = self._soup([index])
            if recipe_id not in scores:
                return None, None
            if (found := scores[recipe_id]) is not None:
                singles.append((-preferred_mean(found, self._preference), index))
        members: list[int] = []
        best = float("-inf")
        for _, index in sorted(singles):
            trial, recipe_id = self._soup([*members, index])
            if recipe_id not in scores:
                label = "soup of " + " + ".join(self._names[i] for i in [*members, index])
                return Baseline(label, trial), None
            found = scores[recipe_id]
            if found is not None and preferred_mean(found, self._preference) >= best:
                best = preferred_mean(found, self._preference)
                members.append(index)
        return None, self._soup(members)[0] if members else None

    def _soup(self, members: Sequence[int]) -> tuple[MergeRecipe, str]:
        """Return the average of some checkpoints, and its id."""
        key = tuple(members)
        if key not in self._soups:
            share = 1.0 / len(key)
            recipe = self._recipe([share if i in key else 0.0 for i in range(len(self._names))])
            self._soups[key] = recipe, recipe.recipe_id
        return self._soups[key]

    def _id(self, candidate: Candidate) -> str:
        if candidate.index not in self._ids:
            self._ids[candidate.index] = candidate.recipe.recipe_id
        return self._ids[candidate.index]

    def _recipe(self, weights: Sequence[float]) -> MergeRecipe:
        """One weight per checkpoint, the same in every group, nothing dropped."""
        groups = self._space.shape[1]
        return self._space.recipe(
            [[weight] * groups for weight in weights], method=self._space.plain_method
        )

    def _ties(self, method: str, drop_ratio: float) -> MergeRecipe:
        """All checkpoints alike; the mean of what agrees in sign."""
        ones = np.ones(self._space.shape)
        return self._space.recipe(
            ones.tolist(),
            (drop_ratio * ones).tolist(),
            method=method,
            options={"normalize": 1.0, "scale": 1.0},
        )

    def _delta_guided(self) -> MergeRecipe:
        """All checkpoints alike: who moved an element most decides most of it."""
        ones = np.ones(self._space.shape).tolist()
        options = {"power": 1.0, "scale": 1.0}
        return self._space.recipe(ones, method="delta_guided", options=options)


def baseline_plan(
    archive: "Archive", space: SearchSpace, given: Sequence[Baseline] = ()
) -> BaselinePlan:
    """Return the plan of baselines of an archive's job, with those that a job names besides."""
    names = tuple(archive.job.models.checkpoints)
    return BaselinePlan(space, names, archive.job.preference, given)


def baseline_labels(archive: "Archive", space: SearchSpace) -> dict[str, int]:
    """Map every scored baseline's name to its candidate, the greedy soup included."""
    observations = archive.observations()
    labels = {
        label_of(seen.candidate): seen.candidate.index
        for seen in observations
        if seen.candidate.is_baseline and seen.scores is not None
    }
    greedy = baseline_plan(archive, space).greedy_soup(observations)
    for seen in observations:
        if greedy is not None and seen.candidate.recipe.recipe_id == greedy.recipe_id:
            labels.setdefault("greedy soup", seen.candidate.index)
    return labels


def _one_hot(index: int, count: int) -> list[float]:
    return [1.0 if i == index else 0.0 for i in range(count)]
