"""Where the files of a search are, and whose turn it is to change them."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from optimizer.service.errors import ConflictError, NotFoundError

_LOCK_S, _POLL_S = 10.0, 0.05


@dataclass(frozen=True, slots=True)
class SearchFiles:
    """Where a search is.

    Attributes:
        key: Its id: the directory of ``archive.sqlite``, else the file, with ``~`` for ``/``.
        archive: The archive; may not be there (yet).
        state: Directory of what the service keeps beside it; may not be there.
    """

    key: str
    archive: Path
    state: Path

    @property
    def is_there(self) -> bool:
        """Whether it has not been deleted."""
        return self.archive.is_file() or self.state.is_dir()

    @property
    def job(self) -> Path:
        """The job as it runs: paths absolute, with the last changes."""
        return self.state / "job.yaml"

    @property
    def submitted(self) -> Path:
        """The text of the job as it was sent."""
        return self.state / "submitted.yaml"

    @property
    def start(self) -> Path:
        """Says which archive it begins with (warm start)."""
        return self.state / "start.json"

    @property
    def stopping(self) -> Path:
        """Is there from when it was asked to end until it is started again."""
        return self.state / "stopping.json"

    @property
    def launched(self) -> Path:
        """Says under which id it was launched on which cluster, where it ran there last."""
        return self.state / "cluster.json"

    @property
    def exports(self) -> Path:
        """Directory of exports."""
        return self.state / "exports"

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Keep others from starting, stopping or deleting it, another service included.

        Raises:
            ConflictError: Somebody is at it.
            NotFoundError: It was deleted meanwhile; nothing of it is made anew.
        """
        # Not a FileLock: that makes the directory of what was deleted again.
        lock = self.state / ".lock"
        try:
            is_new = _make(self.state)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError as error:
            raise self._gone() from error
        except OSError as error:
            text = f"nothing can be written beside search `{self.key}`: {error.strerror}"
            raise ConflictError(text) from error
        try:
            if not _is_locked_in_time(descriptor):
                raise ConflictError(f"search `{self.key}` is just being changed; try again")
            if not _is_file(descriptor, lock):
                raise self._gone()
            if is_new and not self.archive.exists():
                self._unmake(lock)
                raise self._gone()
            yield
        finally:
            os.close(descriptor)

    def _gone(self) -> NotFoundError:
        return NotFoundError(f"there is no search `{self.key}`")

    def _unmake(self, lock: Path) -> None:
        with suppress(OSError):
            lock.unlink()
            self.state.rmdir()


def _make(directory: Path) -> bool:
    """Make a directory, but none above it; returns whether there was none."""
    try:
        directory.mkdir()
    except FileExistsError:
        return False
    return True


def _is_locked_in_time(descriptor: int) -> bool:
    end = time.monotonic() + _LOCK_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(_POLL_S)
        else:
            return True


def _is_file(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
