"""What evaluations took of workers, over all runs of a search, and what follows from it."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from configs.errors import WorkerError
from workers.attempts import MOST_ATTEMPTS, Assignment, given_up
from workers.outcome import EvaluationKey, EvaluationRequest

# A node that is gone is found out within half a minute or so; to ask takes a call to the head.
_FORGIVABLE_S = 300.0
_LOOK_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that died or hung in an evaluation, as it is remembered between runs of a search.

    ``node`` is where, as Ray names it; ``error_class`` and ``message`` say how. ``is_forgiven``
    takes an earlier loss back, which is equal otherwise: its node is gone.
    """

    key: EvaluationKey
    attempt: int
    node: str
    error_class: str
    message: str
    is_forgiven: bool = False


def _keep_nothing(_loss: Loss) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Past:
    """What evaluations did to workers in earlier runs of a search, and where more of it is kept.

    Attributes:
        deadly: Recipes that are given to no worker any more, by their id, and the message of why.
        losses: Of evaluations that may be asked for again, in their order.
        keep: Makes a loss durable; called before the evaluation is tried again.
    """

    deadly: Mapping[str, str] = field(default_factory=dict)
    losses: Sequence[Loss] = ()
    keep: Callable[[Loss], None] = _keep_nothing


class Toll:
    """Which evaluations are given to a worker again, by how many they have taken so far.

    A driver may die with the worker or soon after, be it of the same lack of memory, and would
    begin to count again: so losses are kept before anything is tried again. Evaluations that were
    merely under way when a driver died are charged nothing: drivers on spot instances die often.

    Args:
        past: Of earlier runs.
        is_lost: Whether a node is gone by now.
        max_attempts: How many workers an evaluation may take.
    """

    def __init__(self, past: Past, is_lost: Callable[[str], bool], max_attempts: int) -> None:
        self._keep = past.keep
        self._is_lost = is_lost
        self._max_attempts = max_attempts
        # Recipe id -> why it is not given to a worker any more.
        self._deadly = dict(past.deadly)
        self._before: defaultdict[EvaluationKey, list[Loss]] = defaultdict(list)
        for loss in past.losses:
            known = self._before[loss.key]
            if not loss.is_forgiven:
                known.append(loss)
            elif (forgiven := replace(loss, is_forgiven=False)) in known:
                known.remove(forgiven)
        self._recent: list[tuple[float, Loss]] = []
        self._looked_at = 0.0

    def assignment(self, request: EvaluationRequest) -> Assignment:
        """Begin to count for a request, from what its evaluation took in earlier runs."""
        before = self._before.get(request.key, [])
        if len(before) >= self._max_attempts:
            message = given_up(len(before), len(before), before[-1].message)
            self._deadly.setdefault(request.recipe.recipe_id, message)
        return Assignment(request, num_before=len(before))

    def refusal(self, assignment: Assignment) -> str | None:
        """Return why a recipe is given to no worker; None where it is."""
        return self._deadly.get(assignment.recipe_id)

    def charge(self, assignment: Assignment, node: str, error: Exception, *, keep: bool) -> None:
        """Note that an evaluation took a worker; with ``keep`` for good."""
        assignment.died_on.append(node)
        if keep:
            key, kind = assignment.request.key, type(error).__name__
            loss = Loss(key, assignment.attempt, node, kind, str(error))
            self._keep(loss)
            self._recent.append((time.monotonic(), loss))

    def verdict(self, assignment: Assignment, error: WorkerError) -> str | None:
        """Return with which message an evaluation has failed; None where it is tried again."""
        kills = assignment.num_kills(self._is_lost)
        if kills < self._max_attempts and assignment.attempt < MOST_ATTEMPTS:
            return None
        message = given_up(assignment.num_before + assignment.attempt, kills, error.message)
        if kills:
            self._deadly[assignment.recipe_id] = message
        return message

    def forgive(self) -> None:
        """Take back what was charged for nodes that turn out to be gone; to be called often."""
        now = time.monotonic()
        if not self._recent or now - self._looked_at < _LOOK_EVERY_S:
            return
        self._looked_at = now
        recent, self._recent = self._recent, []
        for noted_at, loss in recent:
            if self._is_lost(loss.node):
                self._keep(replace(loss, is_forgiven=True))
            elif now - noted_at < _FORGIVABLE_S:
                self._recent.append((noted_at, loss))
