"""A search as JSON lines: the driver's events, and every log record of its process.

Each line is one object with ``time`` (UTC, ISO-8601), ``level``, ``event`` and ``search``
(``Archive.uid``); what it is about is in ``candidate``, ``split`` and ``worker``.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Self

from typing_extensions import override

from optimizer.events import (
    Event,
    Finished,
    PhaseChanged,
    Progressed,
    Proposed,
    SearchStarted,
    WorkersSeen,
)
from optimizer.seen_outcomes import SeenOutcomes, count_items
from workers.json_log import FIELDS, JsonFormatter
from workers.outcome import Failed, Outcome
from workers.pool import WorkerState

Fields = Mapping[str, object]

# Workers come and go between these with every evaluation, which has lines of its own.
_USUAL_STATES = frozenset({"busy", "idle"})


class _LogFile(logging.FileHandler):
    """A file of log records; what cannot be written is said once, and ends it."""

    def __init__(self, path: Path, on_error: Callable[[], None]) -> None:
        super().__init__(path, encoding="utf-8")
        self._on_error = on_error
        self._is_broken = False

    def emit(self, record: logging.LogRecord) -> None:
        if not self._is_broken:
            super().emit(record)

    def close(self) -> None:
        """Close the file, and forget what a full disk has not taken."""
        try:
            super().close()
        except OSError:
            if not self._is_broken:
                self._is_broken = True
                self._on_error()

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        self._is_broken = True
        self._on_error()


class EventLog:
    """A watcher of a search that writes JSON lines; a context manager.

    Args:
        path: The file, appended to; missing directories are made.
        search: Id of the search.
        on_error: Called once, while the exception is being handled, when a line cannot be written.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, search: str, *, on_error: Callable[[], None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = _LogFile(path, on_error)
        self._file.setFormatter(JsonFormatter(search))
        self._outcomes = SeenOutcomes()
        self._states: Mapping[str, WorkerState] = {}

    def on_event(self, event: Event) -> None:
        """Write the lines of an event, if it has some."""
        if (outcome := self._outcomes.new_in(event)) is not None:
            self._write(_outcome_fields(outcome), is_bad=isinstance(outcome, Failed))
        if isinstance(event, WorkersSeen):
            for change in self._changes(event.states):
                self._write(change, is_bad=change["state"] == "lost")
        elif (fields := _event_fields(event)) is not None:
            self._write(fields)

    def _write(self, fields: Fields, *, is_bad: bool = False) -> None:
        level = logging.WARNING if is_bad else logging.INFO
        record = logging.LogRecord(__name__, level, __file__, 0, "", None, None)
        setattr(record, FIELDS, fields)
        # Not through a logger: its records would appear on the console, too.
        self._file.handle(record)

    def _changes(self, states: Mapping[str, WorkerState]) -> Iterator[Fields]:
        """Say what is unusual about workers, and when it is over."""
        for worker, state in states.items():
            before = self._states.get(worker)
            if before != state and not {before, state} <= _USUAL_STATES:
                yield {"event": "worker", "worker": worker, "state": state}
        for worker in self._states.keys() - states.keys():
            yield {"event": "worker", "worker": worker, "state": "gone"}
        self._states = dict(states)

    def __enter__(self) -> Self:
        logging.getLogger().addHandler(self._file)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._write({"event": "run_ended", "by": None if kind is None else kind.__name__})
        logging.getLogger().removeHandler(self._file)
        self._file.close()


def _event_fields(event: Event) -> dict[str, object] | None:
    match event:
        case SearchStarted():
            return {
                "event": "search_started",
                "recorded": event.num_recorded,
                "budget": event.budget,
            }
        case Proposed():
            candidate = event.candidate
            return {
                "event": "proposed",
                "candidate": candidate.index,
                "origin": candidate.origin,
                "recipe": candidate.recipe.recipe_id,
            }
        case Finished():
            scores = event.scores
            return {
                "event": "finished",
                "candidate": event.candidate.index,
                "split": event.outcome.key.split,
                "stopped": event.stopped or None,
                "scores": None if scores is None else {n: s.value for n, s in scores.items()},
                "count": event.num_outcomes,
            }
        case Progressed():
            return {
                "event": "progressed",
                "evaluations": event.evaluations,
                "items": event.items,
                "model_s": event.model_s,
                "hypervolume": event.volume,
                "expected_gain": event.expected_gain,
            }
        case PhaseChanged():
            return {"event": "phase", "phase": event.phase, "todo": event.total}
        case _:
            return None


def _outcome_fields(outcome: Outcome) -> dict[str, object]:
    key = outcome.key
    fields = {
        "event": "evaluated",
        "candidate": key.candidate,
        "split": key.split,
        "block": key.block or None,
        "signal": key.signal,
        "worker": outcome.worker,
        "attempt": outcome.attempt,
        "items": count_items(outcome),
        "seconds": outcome.seconds,
    }
    if isinstance(outcome, Failed):
        fields |= {
            "event": "failed",
            "stage": outcome.stage,
            "error_class": outcome.error_class,
            "message": outcome.message,
        }
    return fields
