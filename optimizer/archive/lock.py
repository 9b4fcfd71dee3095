"""One writer per archive file: a lock that dies with its process.

The kernel holds the lock (``flock`` on ``<archive>.lock``), so ``kill -9`` releases it. The file's
text says who holds it, and its time of change when the holder last gave a sign of life; the file
stays behind when the lock is released, since removing it would let two waiters lock two different
files, but its text goes.

Not every file system tells other machines of its locks. So who has the lock looks at the text that
he found: where it was written through another kernel, or another mount, its owner counts as alive
until he was silent for ``SILENT_S``; that is waited for, and a sign of life meanwhile refuses. An
owner who was silent for so long and wakes up finds another's text before he writes again.
"""

import errno
import fcntl
import json
import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self

import psutil
from filelock import FileLock, Timeout

from configs.errors import ArchiveError
from configs.place import FilePlace
from optimizer.archive.owner import SILENT_S, Heartbeat, Owner, locked, taken_over, this_process

logger = logging.getLogger(__name__)

CHECK_EVERY_S = 1.0
"""How often a writer looks whether the archive is still his, at most."""

POLL_S = 0.5
"""How often who waits for a silent owner looks for a sign of life."""

_NO_LOCKS = frozenset({errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK})


@dataclass(frozen=True, slots=True)
class _Text:
    """What a lock file says.

    ``inode`` names the file as its owner's kernel saw it: where it is the same here, the kernel's
    lock is all that counts. ``beaten_at`` is the file's time of change, by the clock of its file
    system.
    """

    owner: Owner
    inode: str | None
    beaten_at: float


class ArchiveLock:
    """The right to write an archive, held until ``release`` or the end of the process."""

    def __init__(self, archive: Path) -> None:
        """Take the lock.

        Waits for nobody who can be seen to live; where an owner on another machine left without a
        word, until he was silent for ``SILENT_S``.

        Args:
            archive: Resolved path of the archive; two names of one file must not be two locks.

        Raises:
            ArchiveLockedError: Another process, or this one, holds it.
            ArchiveError: The lock file cannot be written, or its file system has no locks.
        """
        self.path = lock_path(archive)
        self._place = FilePlace(archive)
        # Not a file that exists as the lock: nobody takes that away when its owner is killed.
        self._lock = FileLock(self.path, fallback_to_soft=False)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise locked(self._place, _named_in(self.path)) from None
        except OSError as error:
            raise self._unusable(error) from error
        try:
            self._owner, self._checked_at = this_process(), -math.inf
            is_late = self._outlive_last()
            self._sign()
            if is_late:
                time.sleep(CHECK_EVERY_S)  # others who waited for the same silence sign, too
                self.check()
        except BaseException:
            self._lock.release()
            raise
        self._heartbeat = Heartbeat(self._beat)

    def check(self) -> None:
        """Make sure that nobody took the archive over; to be called before something is written.

        Raises:
            ArchiveLockedError: Somebody did, since this process gave no sign of life for so long.
        """
        if time.monotonic() - self._checked_at < CHECK_EVERY_S:
            return
        if not self._is_ours(_read(self.path)):
            raise taken_over(self._place, _named_in(self.path))
        self._checked_at = time.monotonic()

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        self._heartbeat.stop()
        if self._lock.is_locked:
            if self._is_ours(_read(self.path)):
                with suppress(OSError):  # from now on there is no holder to name
                    os.truncate(self.path, 0)
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _unusable(self, error: OSError) -> ArchiveError:
        path = self._place.path
        if error.errno in _NO_LOCKS:
            return ArchiveError(
                f"archive {path} cannot be locked: its file system has no file locks "
                f"({error.strerror}), so two searches could write it at once. Put it on another, "
                "or into PostgreSQL",
                path=str(path),
            )
        return ArchiveError(
            f"archive {path} cannot be locked for writing: {error.strerror} "
            f"({self.path}); make its directory writable",
            path=str(path),
        )

    def _outlive_last(self) -> bool:
        """Wait until an owner whose lock this kernel does not see is silent; was there one?

        Raises:
            ArchiveLockedError: He gave a sign of life.
        """
        last = _read(self.path)
        if last is None or last.inode == _inode(self.path):
            return False
        if last.inode is None and last.owner.is_here:  # as older versions wrote it
            return False
        left_s = min(SILENT_S, self._left_s(last))
        if left_s > 0:
            logger.warning(
                "archive %s was last written by %s, and nobody said that it ended; waiting "
                "for at most %.0f s to see whether it lives",
                self._place,
                last.owner,
                left_s,
            )
        # A clock that goes wrong must not keep anybody out for ever.
        deadline = time.monotonic() + SILENT_S
        while left_s > 0 and time.monotonic() < deadline:
            time.sleep(min(POLL_S, left_s))
            if (now := _read(self.path)) is None:
                break
            if (now.owner.named, now.beaten_at) != (last.owner.named, last.beaten_at):
                raise locked(self._place, _named_in(self.path))
            left_s = self._left_s(last)
        return True

    def _left_s(self, last: _Text) -> float:
        """Return for how long an owner who says nothing more counts as alive."""
        return SILENT_S - (_file_clock(self.path.parent) - last.beaten_at)

    def _sign(self) -> None:
        """Say who holds the lock.

        On a full disk the lock holds all the same, only its holder has no name. The text changes in
        place: another file would be another lock.
        """
        content = {key: getattr(self._owner, key) for key in ("pid", "host", "started_at")}
        with suppress(OSError), self.path.open("r+", encoding="utf-8") as file:
            file.truncate()
            file.write(json.dumps({**content, "inode": _inode(self.path)}))

    def _is_ours(self, found: _Text | None) -> bool:
        """Say whether a text names nobody else."""
        return found is None or found.owner.named == self._owner.named

    def _beat(self) -> None:
        if self._is_ours(_read(self.path)):
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
    found = _read(lock)
    return None if found is None else replace(found.owner, silent_s=time.time() - found.beaten_at)


def _read(lock: Path) -> _Text | None:
    """Read a lock file's text; None where there is none, be it that somebody just writes it."""
    try:
        # The time of the open file: a path's may be one that a network file system remembers.
        with lock.open(encoding="utf-8") as file:
            found, beaten_at = json.load(file), os.fstat(file.fileno()).st_mtime
        if not isinstance(found, Mapping):
            return None
        owner = Owner(int(found["pid"]), str(found["host"]), str(found["started_at"]))
        return _Text(owner, found.get("inode"), beaten_at)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _inode(lock: Path) -> str:
    """Name a file among all that all machines see, since they were booted."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:  # no Linux
        boot = socket.gethostname()
    stat = lock.stat()
    return f"{boot} {stat.st_dev} {stat.st_ino}"


def _file_clock(directory: Path) -> float:
    """Return what time it is by the clock that a directory's file system dates its files with."""
    try:
        with tempfile.TemporaryFile(dir=directory) as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError:  # a full disk
        return time.time()
