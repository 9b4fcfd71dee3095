"""Each outcome once, out of events that may show it several times.

An outcome that finishes the last of several candidates that were screened together comes with the
event of each of them.
"""

from optimizer.events import BlockFinished, Event, Finished
from workers.outcome import Completed, Outcome


class SeenOutcomes:
    """Remembers the last outcome: events of one come in a row."""

    def __init__(self) -> None:
        self._last: Outcome | None = None

    def new_in(self, event: Event) -> Outcome | None:
        """Return the outcome that an event shows for the first time, if it does."""
        if not isinstance(event, BlockFinished | Finished) or event.outcome is self._last:
            return None
        self._last = event.outcome
        return event.outcome


def count_items(outcome: Outcome) -> int:
    """Count the items that an outcome has scores of, or companions where only they were asked."""
    if not isinstance(outcome, Completed):
        return 0
    scored = outcome.task_scores if outcome.key.signal == "scores" else outcome.companions
    return sum(len(scores.item_ids) for scores in scored.values())
