"""A run of a search: from its start, or from a resume, to its last sign of life."""

import os
import socket
import time
from dataclasses import dataclass

from optimizer.archive.records import Row
from optimizer.archive.schema import mergefront_version, utc_now


@dataclass(frozen=True, slots=True)
class Run:
    """The present run.

    Attributes:
        number: Of the search's runs, counted from 0.
        earlier_s: Seconds that earlier runs took.
        started: When it began, on the clock of this process (``time.monotonic``).
    """

    number: int
    earlier_s: float
    started: float

    @property
    def lasted_s(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.started


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """A run as the archive holds it; ``started_at`` is UTC, ISO-8601."""

    started_at: str
    elapsed_s: float
    mergefront_version: str


def run_row(number: int) -> Row:
    """Return the row of a run of this process that begins now."""
    now = utc_now()
    return {
        "run": number,
        "started_at": now,
        "heartbeat_at": now,
        "elapsed_s": 0.0,
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "mergefront_version": mergefront_version(),
    }
