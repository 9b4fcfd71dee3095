"""Closed-form landscapes to compare searches on: merges whose true scores are known.

Near a base, the loss of a merge is close to a quadratic of its weights: what a task vector does is
felt along the directions that a skill depends on. Here it is exactly that. Every checkpoint has a
task vector in a space of 64 directions (shared out among layer groups), made of what its own skill
wants, of what nobody wants, and of something that contradicts another checkpoint; a skill has a
target and a stiffness per direction. DARE adds its variance, w^2 p / (1 - p) per squared element. A
sigmoid turns the loss into the probability of solving an item, so that a base that knows little
lies on a plateau, and scores are binomial over items. From 8 checkpoints on, a quarter of them has
no skill at all.

Where losses are convex, minimizing every weighted sum of them gives the whole front, so the true
hypervolume that could be reached is known (``reference_hypervolume``).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import lsq_linear, minimize

from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import FloatArray, ObjectiveScore, Scores
from optimizer.candidate import Candidate, Observation
from optimizer.pareto import hypervolume
from optimizer.space import SearchSpace
from workers.sources import ResolvedSource, Sources

OBJECTIVES = ("instruct", "code", "math")
NUM_ITEMS = 256
COMPANION_COST = 0.15
_DIRECTIONS = 64
_WEIGHT_HIGH, _DROP_HIGH = 1.5, 0.99
# The probability of solving an item: _BEST * sigmoid(_STEEPNESS * (_MIDDLE - loss)), with the loss
# of the base at 1. The base solves 7 % of the items.
_BEST, _STEEPNESS, _MIDDLE = 0.95, 5.5, 0.55
# Log-normal spread of stiffness: how much skills differ in the directions they depend on.
_STIFFNESS_SPREAD = 2.0
# Merges feel little of the variance of dropped elements: it spreads over far more directions than
# skills depend on.
_DROP_VARIANCE = 0.02
# A companion score is a mean log-likelihood: smooth where items are not solved yet, not quite
# the same function (it minds directions that the answers do not), and nearly free of noise; the
# standard error is that of all items.
_COMPANION_SCALE, _COMPANION_OTHER, _COMPANION_STDERR = 4.0, 0.15, 0.02


@dataclass(frozen=True, slots=True)
class LandscapeShape:
    """What a landscape is made of.

    ``ripple`` is the depth of the waves on it, in loss; ``companions`` says whether every score has
    a smooth companion.
    """

    checkpoints: int
    groups: int = 1
    ripple: float = 0.0
    companions: bool = False


SHAPES = {
    "N4": LandscapeShape(4),
    "N8": LandscapeShape(8),
    "N16": LandscapeShape(16),
    "4x6": LandscapeShape(4, groups=6),
    "R8": LandscapeShape(8, ripple=0.06),
    "N8c": LandscapeShape(8, companions=True),
    "N16c": LandscapeShape(16, companions=True),
    "4x6c": LandscapeShape(4, groups=6, companions=True),
}


class Landscape:
    """One landscape of the family: jobs, noisy observations and true scores of its recipes.

    Args:
        name: One of :data:`SHAPES`.
        seed: Of the draw of its task vectors; the landscape of a name and seed never changes.
    """

    def __init__(self, name: str, seed: int = 0) -> None:
        self.name = name
        self.shape = SHAPES[name]
        # N8c is N8 with companions, and so on.
        rng = np.random.default_rng([seed, *name.removesuffix("c").encode()])
        groups, checkpoints = self.shape.groups, self.shape.checkpoints
        # Axes: group, checkpoint, direction; and objective, group, direction.
        self._vectors, targets = _draw_vectors(rng, checkpoints, groups)
        stiffness = np.exp(_STIFFNESS_SPREAD * rng.normal(size=targets.shape))
        importance = rng.dirichlet(np.full(groups, 3.0), size=len(OBJECTIVES))
        self._targets = targets
        self._stiffness = _normalized(stiffness, targets, importance)
        others = np.exp(_STIFFNESS_SPREAD * rng.normal(size=stiffness.shape))
        self._companion_stiffness = (1 - _COMPANION_OTHER) * self._stiffness + (
            _COMPANION_OTHER * _normalized(others, targets, importance)
        )
        self._phases = rng.uniform(0, 2 * np.pi, size=(len(OBJECTIVES), checkpoints))

    def job(self, strategy: str, *, seed: int = 0, **search: object) -> JobConfig:
        """Return a job that searches this landscape; nothing in it exists on disk."""
        names = [f"m{i}" for i in range(self.shape.checkpoints)]
        groups = {f"g{i}": [{"regex": rf"g{i}\..*"}] for i in range(self.shape.groups)}
        return JobConfig.model_validate(
            {
                "name": self.name,
                "seed": seed,
                "models": {"base": "base", "checkpoints": {name: name for name in names}},
                "merge": {
                    "weight": {"low": 0.0, "high": _WEIGHT_HIGH},
                    "drop_ratio": {"high": _DROP_HIGH},
                    "groups": groups,
                },
                "objectives": {name: name for name in OBJECTIVES},
                "search": {"strategy": strategy, **search},
                "archive": "archive.sqlite",
            }
        )

    @staticmethod
    def space(job: JobConfig) -> SearchSpace:
        """Return the search space of a job of this landscape."""

        def source(name: str) -> ResolvedSource:
            return ResolvedSource(name, Path(name), digest=name)

        checkpoints = tuple(source(name) for name in job.models.checkpoints)
        return SearchSpace(job, Sources(source("base"), checkpoints))

    def truth(self, recipe: MergeRecipe) -> FloatArray:
        """Return the true scores of a recipe, ``(3,)`` probabilities of solving an item."""
        return _solved(self._losses(*_parameters(recipe), self._stiffness, self.shape.ripple))

    def observe(
        self,
        candidate: Candidate,
        rng: np.random.Generator,
        *,
        items: int = NUM_ITEMS,
        companions: bool | None = None,
        previewed: int = NUM_ITEMS,
    ) -> Observation:
        """Score a candidate with binomial noise.

        Args:
            candidate: Its recipe is scored.
            rng: Where the noise comes from.
            items: How many items each objective is scored on; 0 gives companions only.
            companions: Whether every objective has a smooth companion score; None is as the
                landscape has it.
            previewed: How many items companions are read on.
        """
        truth = self.truth(candidate.recipe)
        # Of the same generator's state, whether or not scores are drawn as well.
        reader = rng.spawn(1)[0]
        scores: Scores = {}
        if items:
            for name, share in zip(OBJECTIVES, truth.tolist(), strict=True):
                value = rng.binomial(items, share) / items
                stderr = float(np.sqrt(value * (1 - value) / max(items - 1, 1)))
                scores[name] = ObjectiveScore(value, stderr, items)
        smooth: Scores = {}
        if self.shape.companions if companions is None else companions:
            losses = self._losses(
                *_parameters(candidate.recipe), self._companion_stiffness, self.shape.ripple
            )
            stderr = _COMPANION_STDERR * float(np.sqrt(NUM_ITEMS / previewed))
            noise = reader.normal(0, stderr, losses.size)
            values = (-_COMPANION_SCALE * losses + noise).tolist()
            smooth = {
                name: ObjectiveScore(value, stderr, previewed)
                for name, value in zip(OBJECTIVES, values, strict=True)
            }
        return Observation(candidate, scores, smooth)

    @functools.cached_property
    def reference_point(self) -> FloatArray:
        """Where the hypervolume begins: 0.9 of the base's scores, ``(3,)``."""
        zeros = np.zeros((self.shape.checkpoints, self.shape.groups))
        losses = self._losses(zeros, zeros, self._stiffness, self.shape.ripple)
        return 0.9 * _solved(losses)

    @functools.cached_property
    def reference_hypervolume(self) -> float:
        """What the best front reaches: minima of 400 weighted sums of the losses.

        Complete up to their number where the losses are convex; with ripples each minimum is
        improved from where the waves are left out, so it is what is known to be reachable.
        """
        rng = np.random.default_rng(0)
        shares = np.vstack([np.eye(3), rng.dirichlet(np.full(3, 0.5), size=397)])
        points = [self._minimum(share) for share in shares]
        return hypervolume(np.array(points), self.reference_point)

    def relative_hypervolume(self, points: FloatArray) -> float:
        """Hypervolume of true scores, ``(n, 3)``, as a share of what could be reached."""
        return hypervolume(points, self.reference_point) / self.reference_hypervolume

    def _minimum(self, share: FloatArray) -> FloatArray:
        """True scores at the minimum of a weighted sum of the losses, over the box."""
        root = np.sqrt(share[:, None, None] * self._stiffness)  # objective, group, direction
        columns = root[:, :, None, :] * self._vectors  # objective, group, checkpoint, direction
        weights = np.stack(
            [
                lsq_linear(
                    columns[:, group].transpose(0, 2, 1).reshape(-1, self.shape.checkpoints),
                    (root[:, group] * self._targets[:, group]).ravel(),
                    bounds=(0.0, _WEIGHT_HIGH),
                ).x
                for group in range(self.shape.groups)
            ],
            axis=1,
        )
        if self.shape.ripple:
            weights = self._descend(share, weights)
        return _solved(
            self._losses(weights, np.zeros_like(weights), self._stiffness, self.shape.ripple)
        )

    def _descend(self, share: FloatArray, weights: FloatArray) -> FloatArray:
        zeros = np.zeros_like(weights)

        def total(flat: FloatArray) -> float:
            losses = self._losses(
                flat.reshape(weights.shape), zeros, self._stiffness, self.shape.ripple
            )
            return float(share @ losses)

        bounds = [(0.0, _WEIGHT_HIGH)] * weights.size
        found = minimize(total, weights.ravel(), bounds=bounds).x
        return np.asarray(found.reshape(weights.shape), dtype=np.float64)

    def _losses(
        self, weights: FloatArray, drops: FloatArray, stiffness: FloatArray, ripple: float
    ) -> FloatArray:
        """Losses per objective of (checkpoints, groups) weights and drop ratios; base: 1."""
        merged = np.einsum("cg,gcd->gd", weights, self._vectors)
        losses = np.einsum("ogd,ogd->o", stiffness, (merged[None] - self._targets) ** 2)
        variance = np.einsum("cg,gcd->gd", weights**2 * drops / (1 - drops), self._vectors**2)
        losses += _DROP_VARIANCE * np.einsum("ogd,gd->o", stiffness, variance)
        if ripple:
            waves = np.sin(9.0 * weights.mean(axis=1)[None] + self._phases) - np.sin(self._phases)
            losses += ripple * waves.mean(axis=1) * np.sqrt(self.shape.checkpoints)
        return np.asarray(losses, dtype=np.float64)


def search_items(observation: Observation) -> float:
    """Return how many items an observation took; one of a companion counts 0.15."""
    scores: Mapping[str, ObjectiveScore] = observation.scores or {}
    scored = float(sum(score.count for score in scores.values()))
    read = float(sum(score.count for score in observation.companions.values()))
    return scored + COMPANION_COST * read


def _draw_vectors(
    rng: np.random.Generator, checkpoints: int, groups: int
) -> tuple[FloatArray, FloatArray]:
    """Draw task vectors (group, checkpoint, direction) and targets (objective, group, direction).

    Every checkpoint has part of the way to one skill's target, a step of its own, and a step
    against one that another checkpoint makes.
    """
    directions = _DIRECTIONS // groups
    skills = rng.normal(size=(len(OBJECTIVES), groups, directions))
    common = rng.normal(size=(groups, directions))
    targets = 0.8 * skills + common
    useless = checkpoints // 4 if checkpoints >= 8 else 0
    vectors = np.empty((groups, checkpoints, directions))
    own = rng.normal(size=vectors.shape)
    for i in range(checkpoints):
        if i >= checkpoints - useless:
            vectors[:, i] = own[:, i] - 0.4 * common
            continue
        reach = rng.uniform(0.5, 0.9)
        # It undoes part of what the checkpoint before did on its own: conflicting signs.
        conflict = own[:, i - 1]
        vectors[:, i] = reach * targets[i % len(OBJECTIVES)] + 0.5 * own[:, i] - 0.2 * conflict
    return vectors, targets


def _normalized(stiffness: FloatArray, targets: FloatArray, importance: FloatArray) -> FloatArray:
    """Scale stiffness so that every skill loses 1 without its target, shared among groups."""
    lost = np.einsum("ogd,ogd->og", stiffness, targets**2)
    return np.asarray(stiffness * (importance / lost)[:, :, None], dtype=np.float64)


def _solved(losses: FloatArray) -> FloatArray:
    return np.asarray(_BEST / (1 + np.exp(-_STEEPNESS * (_MIDDLE - losses))), dtype=np.float64)


def _parameters(recipe: MergeRecipe) -> tuple[FloatArray, FloatArray]:
    return np.array(recipe.weights), np.array(recipe.drop_ratios)
