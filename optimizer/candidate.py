"""A proposal of the search, and what is known of it."""

import math
from dataclasses import dataclass, field, replace

import numpy as np

from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, ObjectiveScore, Scores

ATTRIBUTION = "attribution:"
"""Origins that begin so are variants of the chosen merge, not proposals of the search."""

SAMPLED = "sampled"
"""Why a candidate is stopped that is scored on a sample of the items only."""

SEED = "seed:"
"""Origins that begin so are outcomes of another archive, told before the first proposal."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One proposed merge.

    ``index`` counts all proposals of a search from 0; seeds count from -1 downwards. ``genotype``
    is an ``(n,)`` float64 array in [0, 1]^n that ``recipe`` was decoded from. ``origin`` says who
    proposed it (``strategy:cma``, ``baseline:soup``, ...). ``seen`` is the number of observations
    that had been told when it was proposed, seeds included: with their recorded order it fixes
    everything that the proposal could depend on.
    """

    index: int
    genotype: FloatArray
    recipe: MergeRecipe
    origin: str
    seen: int

    def __post_init__(self) -> None:
        self.genotype.setflags(write=False)

    @property
    def is_baseline(self) -> bool:
        """Whether it was proposed as a baseline, not by the strategy."""
        return self.origin.startswith("baseline:")

    @property
    def is_attribution(self) -> bool:
        """Whether it only asks what matters in the chosen merge: neither told nor counted."""
        return self.origin.startswith(ATTRIBUTION)

    def same_proposal(self, other: "Candidate") -> bool:
        """Whether both propose the same merge at the same point of the search, bit for bit."""
        return (
            (self.index, self.origin, self.seen) == (other.index, other.origin, other.seen)
            and self.recipe.recipe_id == other.recipe.recipe_id
            and np.array_equal(self.genotype, other.genotype)
        )


@dataclass(frozen=True, slots=True)
class Observation:
    """What a strategy learns of a candidate.

    Attributes:
        candidate: What was proposed.
        scores: Its search scores, or None when it failed. ``count`` says over how many items:
            fewer than the split has when the candidate was stopped early. Empty when only
            companions were asked for.
        companions: Objective -> mean of the smooth signal beside the scores (``companion`` in the
            job), for the objectives that have one; higher is better, in units of its own.
        stopped: Why not all of its items were scored, as the archive calls it (``racing``,
            ``sampled``, ``screened``, ``broken``); empty when they were, or could not be.
    """

    candidate: Candidate
    scores: Scores | None
    companions: Scores = field(default_factory=dict)
    stopped: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether it was scored on all items of the search split."""
        return self.scores is not None and not self.stopped

    @property
    def is_scored(self) -> bool:
        """Whether it may stand on a front: scored on all items, or on its sample of them."""
        return self.scores is not None and self.stopped in ("", SAMPLED)


def without_nan(observation: Observation) -> Observation:
    """Return what a model may learn from: one with a score that is not finite counts as failed.

    Companion scores that are not finite are left out. The driver records such candidates as failed
    already; this is the last door before arithmetic that NaN would spoil silently.
    """
    scores = observation.scores
    if scores is not None and not all(map(_is_finite, scores.values())):
        scores = None
    smooth = {name: score for name, score in observation.companions.items() if _is_finite(score)}
    return replace(observation, scores=scores, companions=smooth)


def _is_finite(score: ObjectiveScore) -> bool:
    return math.isfinite(score.value) and math.isfinite(score.stderr)
