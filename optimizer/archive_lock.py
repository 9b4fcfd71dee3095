"""One writer per archive: a lock that dies with its process.

The kernel holds the lock (``flock`` on ``<archive>.lock``), so ``kill -9`` releases it and there
are no stale locks to break. The file's text says who holds it; it stays behind when the lock is
released, since removing it would let two waiters lock two different files.
"""

import json
import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Self

from filelock import FileLock, Timeout

from configs.errors import ArchiveError, ArchiveLockedError
from optimizer.archive_schema import utc_now


class ArchiveLock:
    """The right to write an archive, held until ``release`` or the end of the process."""

    def __init__(self, archive: Path) -> None:
        """Take the lock, without waiting.

        Args:
            archive: Resolved path of the archive; two names of one file must not be two locks.

        Raises:
            ArchiveLockedError: Another process, or this one, holds it.
            ArchiveError: The lock file cannot be written.
        """
        self.path = archive.with_name(archive.name + ".lock")
        self._lock = FileLock(self.path)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise _locked(archive, self.path) from None
        except OSError as error:
            raise ArchiveError(
                f"archive {archive} cannot be locked for writing: {error.strerror} "
                f"({self.path}); make its directory writable",
                path=str(archive),
            ) from error
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "started_at": utc_now()}
        # On a full disk the lock holds all the same, only its holder has no name. The text changes
        # in place: another file would be another lock.
        with suppress(OSError), self.path.open("r+", encoding="utf-8") as file:
            file.truncate()
            json.dump(owner, file)

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()


def _locked(archive: Path, lock_path: Path) -> ArchiveLockedError:
    owner: dict[str, object] = {}
    try:
        found = json.loads(lock_path.read_text(encoding="utf-8"))
        owner = found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        pass  # the holder is just writing it; the lock itself is what counts
    who = (
        f"process {owner['pid']} on {owner['host']} since {owner['started_at']}"
        if owner.keys() >= {"pid", "host", "started_at"}
        else "another process"
    )
    return ArchiveLockedError(
        f"archive {archive} is being written by {who}; wait until that search ends, or stop it",
        path=str(archive),
        owner=owner,
    )
