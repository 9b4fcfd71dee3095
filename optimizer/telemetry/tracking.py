"""Trackers beside a search: each in a thread of its own, so that none slows or ends it.

A server may answer late or not at all. What a tracker is told waits in a queue; the first error
ends that tracker, with one warning, and nothing else.
"""

import logging
import queue
import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from evaluators.scores import Scores
from optimizer.events import Event, Finished, Progressed, SearchStarted
from optimizer.scalarize import preferred_mean
from optimizer.seen_outcomes import SeenOutcomes
from optimizer.telemetry.tracker import RunEnd, TrackedRun, Tracker
from workers.outcome import Failed

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

logger = logging.getLogger(__name__)

# More than a search of thousands of evaluations tells in the minutes that a server may be away.
_QUEUE_SIZE = 10_000
# How long the end of a command waits for what is still to be written or sent.
_LAST_S: Mapping[RunEnd, float] = {"finished": 60.0, "failed": 60.0, "interrupted": 10.0}

Call = Callable[[], None]


class TrackerThread:
    """Calls one tracker from a thread, in the order in which it was asked to.

    Args:
        name: Of the tracker's section in the job.
        tracker: Not started.
    """

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name = name
        self._tracker = tracker
        self._calls: queue.Queue[Call | None] = queue.Queue(_QUEUE_SIZE)
        self._has_failed = False
        # A tracker that waits for its server must not keep the process alive.
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)

    def start(self, run: TrackedRun) -> None:
        """Begin the run; returns at once, as everything here does but ``close``."""
        self._thread.start()
        self._ask(lambda: self._tracker.start(run))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep numbers (``Tracker.log``)."""
        self._ask(lambda: self._tracker.log(step, metrics))

    def note(self, name: str, text: str) -> None:
        """Keep a text (``Tracker.note``)."""
        self._ask(lambda: self._tracker.note(name, text))

    def close(self, end: RunEnd) -> None:
        """End the run; waits for what is under way, for a while."""
        if not self._thread.is_alive():
            return
        self._ask(lambda: self._tracker.close(end))
        self._ask(None)
        self._thread.join(_LAST_S[end])
        if self._thread.is_alive() and not self._has_failed:
            self._fail(f"had not taken everything {_LAST_S[end]:.0f} s after the end")

    def _ask(self, call: Call | None) -> None:
        if self._has_failed or not self._thread.is_alive():
            return
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            self._fail(f"is {_QUEUE_SIZE} calls behind")

    def _work(self) -> None:
        while not self._has_failed and (call := self._calls.get()) is not None:
            try:
                call()
            except Exception as error:
                # A tracker's library raises what it likes, and that ends no search.
                logger.debug("telemetry.%s failed", self._name, exc_info=True)
                first = (str(error).strip().splitlines() or [""])[0]
                self._fail(f"failed: {type(error).__name__}: {first}")

    def _fail(self, what: str) -> None:
        self._has_failed = True
        logger.warning(
            "telemetry.%s %s. The search goes on without it; mend the cause and `mergefront "
            "resume`, which goes on with its charts, or set telemetry.%s to null",
            self._name,
            what,
            self._name,
        )


class Tracking:
    """A watcher of a search that tells all trackers of it.

    Args:
        trackers: By the names of their sections in the job.
        archive: Of the search; the run's name and parameters are its.
    """

    def __init__(self, trackers: Mapping[str, Tracker], archive: "Archive") -> None:
        self._threads = [TrackerThread(name, tracker) for name, tracker in trackers.items()]
        self._archive = archive
        self._preference = archive.job.preference
        self._outcomes = SeenOutcomes()
        self._num_failed = 0

    def on_event(self, event: Event) -> None:
        """Tell trackers what an event says."""
        outcome = self._outcomes.new_in(event)
        self._num_failed += isinstance(outcome, Failed)
        match event:
            case SearchStarted():
                run = tracked_run(self._archive, event.num_recorded)
                for thread in self._threads:
                    thread.start(run)
            case Finished(scores=scores) if scores and event.is_scored:
                self._log(event.num_outcomes, self._finished(event, scores))
            case Progressed():
                metrics = {
                    "search/hypervolume": event.volume,
                    "search/items": event.items,
                    "search/model_seconds": event.model_s,
                    "search/failed": float(self._num_failed),
                }
                if event.expected_gain is not None:
                    metrics["search/expected_gain"] = event.expected_gain
                self._log(event.evaluations, metrics)
            case _:
                pass

    def note(self, name: str, text: str) -> None:
        """Keep a text with all trackers."""
        for thread in self._threads:
            thread.note(name, text)

    def close(self, end: RunEnd) -> None:
        """End the runs of all trackers."""
        for thread in self._threads:
            thread.close(end)

    def _finished(self, event: Finished, scores: Scores) -> dict[str, float]:
        split = event.outcome.key.split
        metrics = {f"{split}/{name}": score.value for name, score in scores.items()}
        metrics[f"{split}/preferred_mean"] = preferred_mean(scores, self._preference)
        metrics[f"{split}/candidate"] = float(event.candidate.index)
        for stage, seconds in event.outcome.seconds.items():
            metrics[f"{split}/seconds_{stage}"] = seconds
        return metrics

    def _log(self, step: int, metrics: Mapping[str, float]) -> None:
        for thread in self._threads:
            thread.log(step, metrics)


def tracked_run(archive: "Archive", num_recorded: int) -> TrackedRun:
    """Describe the search of an archive to trackers."""
    params = {"archive": str(archive.place), "job_digest": archive.job.digest}
    return TrackedRun(
        uid=archive.uid,
        name=archive.job.name,
        params=params | dict(_flat("", archive.job.searched)),
        first_step=num_recorded + 1,
    )


def _flat(path: str, value: object) -> list[tuple[str, object]]:
    """List the leaves of a section by their dotted keys; lists are leaves."""
    if not isinstance(value, dict) or not value:
        return [(path, value)]
    inner = [(f"{path}.{key}" if path else key, part) for key, part in value.items()]
    return [leaf for key, part in inner for leaf in _flat(key, part)]
