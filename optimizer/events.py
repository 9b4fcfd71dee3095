"""What the driver tells whoever watches: the live view, the log, the service."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from evaluators.scores import Scores
from optimizer.candidate import Candidate
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
class Finished:
    """An outcome was recorded; ``scores`` is None when it is a failure.

    ``num_outcomes`` counts the recorded outcomes of the current phase.
    """

    candidate: Candidate
    outcome: Outcome
    scores: Scores | None
    num_outcomes: int


@dataclass(frozen=True, slots=True)
class PhaseChanged:
    """The search moves on; ``total`` evaluations are still to be done in this phase."""

    phase: Phase
    total: int


@dataclass(frozen=True, slots=True)
class WorkersSeen:
    """What every worker does now."""

    states: Mapping[str, WorkerState]


Event = SearchStarted | Proposed | Finished | PhaseChanged | WorkersSeen
OnEvent = Callable[[Event], None]


def ignore_event(event: Event) -> None:
    """Watch nothing."""
