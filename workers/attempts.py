"""Which evaluations are tried again, on another worker, and which have failed for good.

A worker that dies or hangs may have been killed by the recipe, so a recipe gets only so many of
them; a node that is lost takes its workers with it, whatever they did. What a runner reports is the
candidate's own failure, but for errors that come from the machine around it.
"""

import statistics
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from workers.outcome import EvaluationRequest, Failed, Stage

# A recipe may be unlucky with nodes that are taken away, but not for ever.
MOST_ATTEMPTS = 12

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
    or hung in it; ``num_passing`` counts the errors of the machine that were tried again.
    """

    request: EvaluationRequest
    attempt: int = 0
    died_on: list[str] = field(default_factory=list)
    num_passing: int = 0

    @property
    def recipe_id(self) -> str:
        """Id of the recipe that is evaluated."""
        return self.request.recipe.recipe_id

    def num_kills(self, is_lost: Callable[[str], bool]) -> int:
        """Count the workers that died in this request, but not with their nodes.

        Args:
            is_lost: Whether a node is gone by now: what looked like a crash may have been the
                first sign of it.
        """
        return sum(not is_lost(node) for node in self.died_on)

    def may_pass(self, failure: Failed) -> bool:
        """Say whether a failure is tried once more: it may be that of the machine."""
        is_passing = failure.error_class in POISONING_ERRORS or (
            failure.stage == Stage.MATERIALIZE and failure.error_class in _PASSING_ERRORS
        )
        return is_passing and self.num_passing == 0


class Patience:
    """How long an evaluation may take before its worker counts as hanging.

    Evaluations of one kind (split, signal, number of items) take about the same time, so the limit
    is a multiple of the median of the last ones of its kind. There is none before enough of them.

    Args:
        factor: How many medians; None is no limit at all.
        floor_s: Limits are never shorter, in seconds.
    """

    def __init__(self, factor: float | None, floor_s: float) -> None:
        self._factor = factor
        self._floor_s = floor_s
        self._durations: dict[object, deque[float]] = defaultdict(
            lambda: deque(maxlen=_KEPT_DURATIONS)
        )

    def note(self, request: EvaluationRequest, seconds: float) -> None:
        """Learn how long an evaluation took that came to its end."""
        self._durations[_kind(request)].append(seconds)

    def limit_s(self, request: EvaluationRequest, *, is_first: bool) -> float | None:
        """Return the seconds that an evaluation may take; None is no limit.

        Args:
            request: What is to be evaluated.
            is_first: Whether it is the first of its worker's process, which takes longer.
        """
        durations = self._durations[_kind(request)]
        if self._factor is None or len(durations) < _MIN_DURATIONS:
            return None
        limit_s = max(self._floor_s, self._factor * statistics.median(durations))
        return limit_s * _FIRST_FACTOR if is_first else limit_s


def _kind(request: EvaluationRequest) -> object:
    items = request.items
    size = None if items is None else sum(len(ids) for ids in items.values())
    return request.key.split, request.key.signal, size
