"""The metrics of a search, made from the driver's events: start at :data:`METERS`.

Where they are kept is behind ``workers.meters.Meters``.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import get_args

from optimizer.events import Event, Finished, Progressed, SearchStarted, WorkersSeen
from optimizer.seen_outcomes import SeenOutcomes, count_items
from workers.meters import Meter, Meters
from workers.outcome import Failed, Outcome
from workers.pool import WorkerState

METERS = (
    Meter(
        "mergefront_evaluations_total",
        "counter",
        "Candidates that are finished, by split and how: scored, failed, or why they were stopped.",
        ("split", "outcome"),
    ),
    Meter(
        "mergefront_items_total",
        "counter",
        "Items that were scored, or whose companion alone was asked for, by split.",
        ("split", "signal"),
    ),
    Meter(
        "mergefront_stage_seconds_total",
        "counter",
        "Wall seconds of workers by stage of an evaluation (materialize, forward, score, ...).",
        ("split", "stage"),
    ),
    Meter(
        "mergefront_request_seconds",
        "histogram",
        "Wall seconds of one request to a worker: a split or a block of its items.",
        ("split",),
        (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1_000, 3_000, 10_000),
    ),
    Meter(
        "mergefront_failures_total",
        "counter",
        "Evaluations that failed, by stage and class of the error.",
        ("split", "stage", "error_class"),
    ),
    Meter(
        "mergefront_worker_seconds_total",
        "counter",
        "Seconds that workers spent busy, idle, starting, waiting for room, or lost.",
        ("state",),
    ),
    Meter(
        "mergefront_worker_idle_ratio",
        "gauge",
        "Idle seconds of workers among busy and idle ones, since this driver started.",
    ),
    Meter("mergefront_workers", "gauge", "Workers by what they do now.", ("state",)),
    Meter(
        "mergefront_hypervolume", "gauge", "Hypervolume of the scores, of all items or of samples."
    ),
    Meter("mergefront_budget_evaluations", "gauge", "Evaluations that the search may take."),
)
"""All metrics; each has the label ``search`` too, the ``uid`` of the archive."""


class SearchMeters:
    """A watcher of a search that keeps its metrics.

    Args:
        make_meters: Called at the first event, when there is a pool and so a Ray.
        clock: Seconds from any origin.
    """

    def __init__(
        self, make_meters: Callable[[], Meters], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._make = make_meters
        self._made: Meters | None = None
        self._clock = clock
        self._outcomes = SeenOutcomes()
        self._states: Mapping[str, WorkerState] = {}
        self._looked_at = clock()
        # (name, state or nothing) -> value
        self._gauges: dict[tuple[str, str], float] = {}
        self._worker_s = dict.fromkeys(get_args(WorkerState), 0.0)

    def on_event(self, event: Event) -> None:
        """Keep what an event says."""
        if self._made is None:
            self._made = self._make()
        if (outcome := self._outcomes.new_in(event)) is not None:
            self._note_outcome(outcome, self._made)
        match event:
            case SearchStarted():
                self._set("mergefront_budget_evaluations", event.budget)
            case Finished():
                how = event.stopped or ("failed" if event.scores is None else "scored")
                tags = {"split": event.outcome.key.split, "outcome": how}
                self._made.record("mergefront_evaluations_total", 1, tags)
            case Progressed():
                self._set("mergefront_hypervolume", event.volume)
            case WorkersSeen():
                self._note_workers(event.states, self._made)
                for (name, state), value in self._gauges.items():
                    self._made.record(name, value, {"state": state} if state else None)
            case _:
                pass

    def _set(self, name: str, value: float, state: str = "") -> None:
        """Set a gauge, from the next look at workers on.

        Ray exports one no longer that was not set for twice its report interval, so each is set
        again at every look: about once a second.
        """
        self._gauges[name, state] = value

    def _note_outcome(self, outcome: Outcome, meters: Meters) -> None:
        split: dict[str, str] = {"split": outcome.key.split}
        items = count_items(outcome)
        meters.record("mergefront_items_total", items, split | {"signal": outcome.key.signal})
        for stage, spent_s in outcome.seconds.items():
            meters.record("mergefront_stage_seconds_total", spent_s, split | {"stage": stage})
        meters.record("mergefront_request_seconds", sum(outcome.seconds.values()), split)
        if isinstance(outcome, Failed):
            why = {"stage": str(outcome.stage), "error_class": outcome.error_class}
            meters.record("mergefront_failures_total", 1, split | why)

    def _note_workers(self, states: Mapping[str, WorkerState], meters: Meters) -> None:
        """Count the time since the last look for what workers did at it."""
        now = self._clock()
        elapsed_s, self._looked_at = now - self._looked_at, now
        for state, count in Counter(self._states.values()).items():
            self._worker_s[state] += count * elapsed_s
            meters.record("mergefront_worker_seconds_total", count * elapsed_s, {"state": state})
        able_s = self._worker_s["busy"] + self._worker_s["idle"]
        if able_s > 0:
            self._set("mergefront_worker_idle_ratio", self._worker_s["idle"] / able_s)
        counts = Counter(states.values())
        # A state that nobody is in any more is 0, until the end.
        for state in {*counts, *self._states.values()}:
            self._set("mergefront_workers", counts[state], state)
        self._states = dict(states)
