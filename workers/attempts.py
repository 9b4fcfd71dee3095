"""Which evaluations are tried again, on another worker, and which have failed for good.

A worker that dies or hangs may have been killed by the recipe, so a recipe gets only so many of
them; a node that is lost takes its workers with it, whatever they did. What a runner reports is the
candidate's own failure, but for errors that come from the machine around it.
"""

import statistics
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from configs.evaluation import SplitName
from workers.outcome import EvaluationRequest, Failed, Signal, Stage

# A recipe may be unlucky with nodes that are taken away, but not for ever.
MOST_ATTEMPTS = 12

_ATTEMPTS_SETTING = "workers.max_attempts"

# After these the accelerator context of the process is broken for every later candidate.
POISONING_ERRORS = frozenset({"AcceleratorError"})
# What file systems and networks do now and then, before anything of the candidate was computed.
_PASSING_ERRORS = frozenset(
    {"BlockingIOError", "ConnectionError", "ConnectionResetError", "OSError", "TimeoutError"}
)

# Fewer durations say nothing about a median, older ones less and less.
_MIN_DURATIONS = 5
_KEPT_DURATIONS = 64
# A new process reads, compiles and fills caches first.
_FIRST_FACTOR = 3.0


@dataclass(slots=True, eq=False)
class Assignment:
    """A request on its way to an outcome.

    ``attempt`` counts the workers that took it; ``died_on`` holds the node of every one that died
    or hung in it, ``num_before`` counts those of earlier runs of the search; ``num_passing`` counts
    the errors of the machine that were tried again.
    """

    request: EvaluationRequest
    attempt: int = 0
    died_on: list[str] = field(default_factory=list)
    num_passing: int = 0
    num_before: int = 0

    @property
    def recipe_id(self) -> str:
        """Id of the recipe that is evaluated."""
        return self.request.recipe.recipe_id

    @property
    def ids(self) -> dict[str, object]:
        """What log records about it carry."""
        key = self.request.key
        return {"candidate": key.candidate, "split": key.split, "attempt": self.attempt}

    def num_kills(self, is_lost: Callable[[str], bool]) -> int:
        """Count the workers that died in this request, but not with their nodes.

        Args:
            is_lost: Whether a node is gone by now: what looked like a crash may have been the
                first sign of it.
        """
        return self.num_before + sum(not is_lost(node) for node in self.died_on)

    def may_pass(self, failure: Failed) -> bool:
        """Say whether a failure is tried once more: it may be that of the machine."""
        is_passing = failure.error_class in POISONING_ERRORS or (
            failure.stage == Stage.MATERIALIZE and failure.error_class in _PASSING_ERRORS
        )
        return is_passing and self.num_passing == 0


def given_up(attempt: int, kills: int, reason: str) -> str:
    """Return the message of a request that is not tried again: how many workers it has taken."""
    cause = f"{kills} workers ({_ATTEMPTS_SETTING})" if kills else "no worker, but lost nodes"
    return f"given up after attempt {attempt}, which took {cause}: {reason}"


def is_deadly(error_class: str | None, message: str | None) -> bool:
    """Say whether a failure, recorded by whatever version, is that of a recipe that took workers.

    The archive has no column for it; failures of their own, and lost nodes, have other messages.
    """
    is_of_worker = error_class in {"WorkerLostError", "WorkerTimeoutError"}
    start, _, cause = (message or "").partition(", which took ")
    return (
        is_of_worker
        and start.startswith("given up after attempt ")
        and cause.partition(": ")[0].endswith(f"workers ({_ATTEMPTS_SETTING})")
    )


class Patience:
    """How long an evaluation may take before its worker counts as hanging.

    Evaluations of one kind (split, signal, number of items) take about the same time, so the limit
    is a multiple of the median of the last ones of its kind. Before there are enough of them, it is
    that of the slowest other kind of the same signal, and longer where that has fewer items; before
    there is any, there is no limit.

    Args:
        factor: How many medians; None is no limit at all.
        floor_s: Limits are never shorter, in seconds.
        split_sizes: How many items a whole split has; one that is not named counts as one item.
    """

    def __init__(
        self,
        factor: float | None,
        floor_s: float,
        split_sizes: Mapping[SplitName, int] | None = None,
    ) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._split_sizes = split_sizes or {}
        self._durations: dict[_Kind, deque[float]] = defaultdict(
            lambda: deque(maxlen=_KEPT_DURATIONS)
        )

    def note(self, request: EvaluationRequest, seconds: float) -> None:
        """Learn how long an evaluation took that came to its end."""
        self._durations[self._kind(request)].append(seconds)

    def limit_s(self, request: EvaluationRequest, *, is_first: bool) -> float | None:
        """Return the seconds that an evaluation may take; None is no limit.

        Args:
            request: What is to be evaluated.
            is_first: Whether it is the first of its worker's process, which takes longer.
        """
        if self._factor is None or (usual_s := self._usual_s(self._kind(request))) is None:
            return None
        limit_s = max(self._floor_s, self._factor * usual_s)
        return limit_s * _FIRST_FACTOR if is_first else limit_s

    def _usual_s(self, kind: "_Kind") -> float | None:
        """Return what an evaluation of a kind takes; None where nobody can know."""
        if len(self._durations.get(kind, ())) >= _MIN_DURATIONS:
            return statistics.median(self._durations[kind])
        # Some of the time goes with the items, some is the same for all: the longer of both.
        return max(
            (
                statistics.median(durations) * max(1.0, kind.num_items / other.num_items)
                for other, durations in self._durations.items()
                if other.signal == kind.signal and len(durations) >= _MIN_DURATIONS
            ),
            default=None,
        )

    def _kind(self, request: EvaluationRequest) -> "_Kind":
        key, items = request.key, request.items
        if items is None:
            return _Kind(key.split, key.signal, max(1, self._split_sizes.get(key.split, 1)))
        return _Kind(key.split, key.signal, max(1, sum(len(ids) for ids in items.values())))


class _Kind(NamedTuple):
    """Evaluations that take about the same time."""

    split: SplitName
    signal: Signal
    num_items: int
