"""SIGTERM, as schedulers and spot instances send it: finish what is under way, then end.

Nothing new is given to workers. Outcomes that come within the grace period are recorded and told as
ever; what does not come is handed back: it stays recorded as proposed, and is evaluated when the
search is resumed.
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from optimizer.events import Event, OnEvent


class Terminated(KeyboardInterrupt):
    """The search was asked to end, and has; caught where Ctrl-C is."""


class DrainablePool(Protocol):
    """A pool that can be told to take nothing further."""

    @property
    def num_pending(self) -> int:
        """Requests submitted whose outcome was not taken yet."""
        ...

    def drain(self) -> None:
        """Take no further request."""
        ...


@contextmanager
def finishing_on_sigterm(
    pool: DrainablePool, on_event: OnEvent, grace_s: float
) -> Iterator[OnEvent]:
    """Watch for SIGTERM while a driver runs.

    The driver's thread is ended from within ``on_event``, which it calls when nothing is half done:
    after every outcome, and about once a second while it waits. A second SIGTERM ends it at once.
    Does nothing in other threads than the main one, which get no signals.

    Args:
        pool: Where evaluations run.
        on_event: Who is told of events.
        grace_s: Seconds from the signal to the end, at most.

    Yields:
        What the driver is to call instead of ``on_event``; raises :class:`Terminated`.
    """
    asked_at: list[float] = []

    def ask(_signal: int, _frame: FrameType | None) -> None:
        if asked_at:
            raise Terminated
        asked_at.append(time.monotonic())
        pool.drain()

    def watched(event: Event) -> None:
        on_event(event)
        if asked_at and (not pool.num_pending or time.monotonic() - asked_at[0] >= grace_s):
            raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield on_event
        return
    before = signal.signal(signal.SIGTERM, ask)
    try:
        yield watched
    finally:
        signal.signal(signal.SIGTERM, before)
