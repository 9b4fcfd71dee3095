"""Who writes an archive, and the sign of life that he gives."""

import os
import socket
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass

from configs.errors import ArchiveLockedError
from configs.place import Place
from optimizer.archive.schema import utc_now

BEAT_S = 10.0
"""How often an owner says that he lives."""

SILENT_S = 60.0
"""Who said nothing for so long may be gone, where the kernel does not know."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The process that writes an archive.

    ``started_at`` is when it took the archive (UTC, ISO-8601), ``silent_s`` how many seconds ago
    it last gave a sign of life, None where that is not known.
    """

    pid: int
    host: str
    started_at: str
    silent_s: float | None = None

    def __str__(self) -> str:
        text = f"process {self.pid} on {self.host} since {self.started_at}"
        if self.silent_s is None:
            return text
        return f"{text} (last sign of life {max(0.0, self.silent_s):.0f} s ago)"

    @property
    def named(self) -> tuple[int, str, str]:
        """What tells it from all others, whenever it gave a sign of life."""
        return self.pid, self.host, self.started_at

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this machine."""
        return self.host == socket.gethostname()


def this_process() -> Owner:
    """Return the owner that this process is from now on."""
    return Owner(os.getpid(), socket.gethostname(), utc_now())


def locked(place: Place, owner: Owner | None, *, advice: str = "") -> ArchiveLockedError:
    """Return the error that refuses a second writer."""
    who = "another process" if owner is None else str(owner)
    return ArchiveLockedError(
        f"archive {place} is being written by {who}; "
        f"{advice or 'wait until that search ends, or stop it'}",
        path=str(place),
        owner={} if owner is None else asdict(owner),
    )


def taken_over(place: Place, owner: Owner | None) -> ArchiveLockedError:
    """Return the error that stops a writer whose archive another has taken over."""
    advice = (
        "this process was silent for so long, or cut off, that it counted as gone. What it "
        "recorded is safe; stop it"
    )
    return locked(place, owner, advice=advice)


class Heartbeat:
    """Gives a sign of life every few seconds, from a thread of its own, until stopped.

    Not from the loop of the search: that may be busy for minutes before it records anything.
    """

    def __init__(self, beat: Callable[[], None], every_s: float = BEAT_S) -> None:
        """Start.

        Args:
            beat: Gives the sign; handles what can go wrong.
            every_s: Seconds between two.
        """
        self._beat = beat
        self._every_s = every_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="archive heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop; a second call does nothing."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._every_s):
            self._beat()
