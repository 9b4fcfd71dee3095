"""One writer per archive file: a lock that dies with its process.

The kernel holds the lock (``flock`` on ``<archive>.lock``), so ``kill -9`` releases it and there
are no stale locks to break. The file's text says who holds it, and its time of change when the
holder last gave a sign of life; it stays behind when the lock is released, since removing it would
let two waiters lock two different files.
"""

import fcntl
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Self

import psutil
from filelock import FileLock, Timeout

from configs.errors import ArchiveError
from configs.place import FilePlace
from optimizer.archive.owner import SILENT_S, Heartbeat, Owner, locked, this_process


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
        self.path = lock_path(archive)
        self._lock = FileLock(self.path)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise locked(FilePlace(archive), _named_in(self.path)) from None
        except OSError as error:
            raise ArchiveError(
                f"archive {archive} cannot be locked for writing: {error.strerror} "
                f"({self.path}); make its directory writable",
                path=str(archive),
            ) from error
        owner = this_process()
        text = json.dumps({key: getattr(owner, key) for key in ("pid", "host", "started_at")})
        # On a full disk the lock holds all the same, only its holder has no name. The text changes
        # in place: another file would be another lock.
        with suppress(OSError), self.path.open("r+", encoding="utf-8") as file:
            file.truncate()
            file.write(text)
        self._heartbeat = Heartbeat(self._beat)

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        self._heartbeat.stop()
        if self._lock.is_locked:
            with suppress(OSError):  # from now on there is no holder to name
                os.truncate(self.path, 0)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _beat(self) -> None:
        with suppress(OSError):  # it only says what the kernel knows better
            os.utime(self.path)


def lock_path(archive: Path) -> Path:
    """Return the file whose lock is that of an archive."""
    return archive.with_name(archive.name + ".lock")


def owner_of_file(archive: Path) -> Owner | None:
    """Return who writes an archive; None when nobody does.

    The lock is tried, which could keep a driver out that starts in that instant, only when the
    process that it was last given to is alive. Of one on another machine what counts, where its
    lock cannot be seen from here, is that it gave a sign of life.
    """
    lock = lock_path(archive)
    owner = _named_in(lock)
    try:
        if owner is None:
            return None
        if not owner.is_here:
            is_live = owner.silent_s is not None and owner.silent_s < SILENT_S
            return owner if is_live or _is_locked(lock) else None
        # A process that began after the lock was taken only has the same number.
        taken_at = datetime.fromisoformat(owner.started_at).timestamp()
        is_alive = psutil.Process(owner.pid).create_time() <= taken_at
        return owner if is_alive and _is_locked(lock) else None
    except (OSError, ValueError, psutil.Error):
        return None


def _is_locked(lock: Path) -> bool:
    with lock.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _named_in(lock: Path) -> Owner | None:
    """Return whom a lock was last given to; None when its text cannot be read."""
    try:
        found = json.loads(lock.read_text(encoding="utf-8"))
        if not isinstance(found, Mapping):
            return None
        owner = Owner(int(found["pid"]), str(found["host"]), str(found["started_at"]))
        return replace(owner, silent_s=time.time() - lock.stat().st_mtime)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # the holder is just writing it; the lock itself is what counts
