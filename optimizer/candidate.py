"""A proposal of the search, and what is known of it."""

from dataclasses import dataclass, field

import numpy as np

from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, Scores


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One proposed merge.

    ``index`` counts all proposals of a search from 0. ``genotype`` is an ``(n,)`` float64 array
    in [0, 1]^n that ``recipe`` was decoded from. ``origin`` says who proposed it
    (``strategy:cma``, ``baseline:soup``, ...). ``seen`` is the number of
    observations that had been told when it was proposed: with their recorded order it fixes
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
            ``screened``, ``broken``); empty when they were, or could not be.
    """

    candidate: Candidate
    scores: Scores | None
    companions: Scores = field(default_factory=dict)
    stopped: str = ""

    @property
    def is_complete(self) -> bool:
        """Whether it was scored on all items of the search split."""
        return self.scores is not None and not self.stopped
