"""What is believed of the merges of archives, computed beside the requests that show it.

A posterior takes seconds where much was scored, and a search that runs records something every few
of them. So requests get what was computed last, and the next one is computed in one thread, at most
for a fraction of the time: the searches beside it want the cores.
"""

import logging
import threading
import time
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from optimizer.archive.reader import ArchiveCounters
from optimizer.archive.recorded_space import recorded_space
from optimizer.results.belief import believed_candidates
from optimizer.results.front_view import ScoredCandidate, scored_candidates
from optimizer.results.progress_view import expected_gain_of
from optimizer.service.result_models import Belief, BeliefState
from optimizer.service.searches import OpenArchive

LOGGER = logging.getLogger(__name__)

_SHARE = 0.2
"""Of the time, at most, beliefs of one archive are computed."""

_FAILED_S = 10.0
"""What a computation that failed counts as, at least: the next one may fail in no time, too."""


@dataclass(frozen=True, slots=True)
class Believed:
    """What is believed of the scored candidates of an archive.

    Attributes:
        rows: The scored candidates, with their posterior where there is one.
        belief: What that is, as answers say it.
        counters: Of the record that it is of, or of one before: what is kept of it holds for them.
        now: Of the record when it was asked for.
    """

    rows: list[ScoredCandidate]
    belief: Belief
    counters: ArchiveCounters
    now: ArchiveCounters


@dataclass(slots=True)
class _Known:
    counters: ArchiveCounters | None = None
    rows: list[ScoredCandidate] = field(default_factory=list)
    expected_gain: float | None = None
    took_s: float = 0.0
    ended_s: float = 0.0
    is_computing: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Beliefs:
    """Keeps the last belief of every open archive."""

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[OpenArchive, _Known] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="belief")

    def of(self, opened: OpenArchive, *, fresh: bool = False) -> Believed:
        """Return all scored candidates with what is believed of them.

        Args:
            opened: The archive.
            fresh: Wait until it is that of all that is recorded.
        """
        known = self._of(opened)
        now = opened.archive.counters()
        if fresh and known.counters != now:
            self._compute(opened, known)
        elif known.counters != now:
            self._start(opened, known)
        with self._lock:
            counters, rows, gain = known.counters, known.rows, known.expected_gain
        if counters is None or all(row.posterior is None for row in rows):
            raw = self._raw(opened, now)
            # Where too little was scored for a posterior, there is nothing to wait for.
            if raw.rows and counters != now:
                pending = Belief(state="pending", outcomes=now.outcomes)
                return Believed(raw.rows, pending, now, now)
            return raw
        state: BeliefState = "current" if counters == now else "stale"
        belief = Belief(state=state, outcomes=counters.outcomes, expected_gain=gain)
        return Believed(rows, belief, counters, now)

    def raw(self, opened: OpenArchive) -> Believed:
        """Return all scored candidates, going by their raw scores."""
        return self._raw(opened, opened.archive.counters())

    def _raw(self, opened: OpenArchive, now: ArchiveCounters) -> Believed:
        rows = opened.kept("raw rows", lambda archive: scored_candidates(archive, "search"), at=now)
        return Believed(rows, Belief(state="raw", outcomes=now.outcomes), now, now)

    def close(self) -> None:
        """Begin nothing further."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _of(self, opened: OpenArchive) -> _Known:
        with self._lock:
            return self._known.setdefault(opened, _Known())

    def _start(self, opened: OpenArchive, known: _Known) -> None:
        with self._lock:
            pause_s = known.took_s * (1 / _SHARE - 1)
            if known.is_computing or time.monotonic() < known.ended_s + pause_s:
                return
            known.is_computing = True
        # Not closed meanwhile.
        opened.hold()
        try:
            self._thread.submit(self._finish, opened, known).add_done_callback(
                partial(_log_failure, str(opened.archive.place))
            )
        except RuntimeError:  # the service ends
            known.is_computing = False
            opened.release()

    def _finish(self, opened: OpenArchive, known: _Known) -> None:
        try:
            self._compute(opened, known)
        finally:
            known.is_computing = False
            opened.release()

    def _compute(self, opened: OpenArchive, known: _Known) -> None:
        with known.lock:
            counters = opened.archive.counters()
            if known.counters == counters:
                return
            began = time.monotonic()
            shortest_s = _FAILED_S
            try:
                rows = believed_candidates(opened.archive)
                gain = expected_gain_of(opened.archive, recorded_space(opened.archive))
                with self._lock:
                    known.counters, known.rows, known.expected_gain = counters, rows, gain
                shortest_s = 0.0
            finally:
                with self._lock:
                    known.ended_s = time.monotonic()
                    known.took_s = max(shortest_s, known.ended_s - began)


def _log_failure(place: str, finished: "Future[None]") -> None:
    """Log why a posterior was not computed: nobody waits for the thread's result."""
    if not finished.cancelled() and (error := finished.exception()) is not None:
        LOGGER.error("the posterior of %s cannot be computed", place, exc_info=error)
