"""What the driver tells whoever watches: the live view, the log, the service."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from evaluators.scores import Scores
from optimizer.candidate import Candidate, Observation
from workers.outcome import Outcome
from workers.pool import WorkerState

Phase = Literal["search", "select", "report", "done"]


@dataclass(frozen=True, slots=True)
class SearchStarted:
    """The search begins or goes on; ``num_recorded`` of ``budget`` evaluations are recorded."""

    num_recorded: int
    budget: int


@dataclass(frozen=True, slots=True)
class Proposed:
    """A candidate was recorded; it goes to the next free worker."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class BlockFinished:
    """A block of items was recorded, and its candidate goes on with the next."""

    candidate: Candidate
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Finished:
    """A candidate is finished, with the last recorded outcome; ``scores`` is None of a failure.

    ``num_outcomes`` counts the candidates that are finished in the current phase. ``stopped``
    says why not all items were scored, and is empty where they were.
    """

    candidate: Candidate
    outcome: Outcome
    scores: Scores | None
    num_outcomes: int
    stopped: str = ""

    @property
    def is_scored(self) -> bool:
        """Whether it has scores that may stand on a front."""
        return Observation(self.candidate, self.scores, stopped=self.stopped).is_scored


@dataclass(frozen=True, slots=True)
class Progressed:
    """How far the search has come: what was found, over what it took.

    ``items`` counts what was scored (``optimizer.spending``), ``model_s`` the seconds in which a
    model ran, and ``volume`` is the hypervolume of the scores (``optimizer.progress``).
    ``expected_gain`` is the hypervolume that the next candidate scored is expected to add to the
    front of what is believed (``optimizer.strategies.surrogate_gain``); None where nobody can say.
    """

    evaluations: int
    items: float
    model_s: float
    volume: float
    expected_gain: float | None = None


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The search moves on; ``total`` evaluations are still to be done in this phase."""

    phase: Phase
    total: int


@dataclass(frozen=True, slots=True)
class WorkersSeen:
    """What every worker does now."""

    states: Mapping[str, WorkerState]


Event = (
    SearchStarted | Proposed | BlockFinished | Finished | Progressed | PhaseChanged | WorkersSeen
)
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Watch nothing."""
