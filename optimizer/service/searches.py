"""The searches of a directory: which there are, and their archives, open for reading.

A search is an archive file, or what is kept beside it (``NAME.service``: the job as it was sent,
the record of its process, its log, its exports), or both. Nothing else is state: what was found
and how far it is, is read from there whenever it is asked for.
"""

import os
import re
import secrets
import shutil
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from optimizer.archive import Archive
from optimizer.archive_sqlite import SIDE_FILES
from optimizer.service.errors import ConflictError, NotFoundError
from optimizer.service.job_policy import TELEMETRY_DIRECTORY

Value = TypeVar("Value")

ARCHIVE_NAME = "archive.sqlite"
_SUFFIX, _STATE_SUFFIX = ".sqlite", ".service"
_DEPTH = 3
_MAX_SEARCHES = 10_000
_MAX_OPEN = 16
_LOCK_S = 10.0


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
        """Says under which id it was launched on a cluster."""
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
        """
        lock = FileLock(self.state / ".lock")
        try:
            self.state.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=_LOCK_S)
        except Timeout as error:
            raise ConflictError(f"search `{self.key}` is just being changed; try again") from error
        except OSError as error:
            text = f"nothing can be written beside search `{self.key}`: {error.strerror}"
            raise ConflictError(text) from error
        try:
            yield
        finally:
            lock.release()


class OpenArchive:
    """An archive that is open for reading, with answers that hold until something is recorded."""

    def __init__(self, archive: Archive, identity: tuple[int, int]) -> None:
        self.archive = archive
        self.identity = identity
        self._users = 0
        self._counting = threading.Lock()
        self._kept: dict[str, tuple[object, Any]] = {}
        self._making: dict[str, threading.Lock] = {}

    @property
    def is_idle(self) -> bool:
        """Whether nobody reads it."""
        return not self._users

    def hold(self) -> None:
        """Keep it open until it is released as often."""
        with self._counting:
            self._users += 1

    def release(self) -> None:
        """Let it be closed."""
        with self._counting:
            self._users -= 1

    @property
    def revision(self) -> str:
        """A text that changes whenever something is recorded."""
        return "-".join(map(str, self.archive.counters()))

    def kept(
        self, name: str, make: Callable[[Archive], Value], *, depends_on: object = None
    ) -> Value:
        """Return what ``make`` gives, as long as nothing new is recorded the same as before.

        Args:
            name: Of the answer; one of each name is kept.
            make: Makes it; is not called by two threads at a time.
            depends_on: What else makes it another one.
        """
        with self._counting:
            making = self._making.setdefault(name, threading.Lock())
        with making:
            now = (self.archive.counters(), depends_on)
            found = self._kept.get(name)
            if found is None or found[0] != now:
                found = self._kept[name] = (now, make(self.archive))
        value: Value = found[1]
        return value


class Searches:
    """The searches of a directory; safe to use from several threads."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, OpenArchive] = OrderedDict()

    def all(self) -> dict[str, SearchFiles]:
        """Return id -> search."""
        found: dict[str, SearchFiles] = {}
        for archive in sorted(_archives_in(self.directory, _DEPTH)):
            files = self._files(archive)
            found.setdefault(files.key, files)
            if len(found) >= _MAX_SEARCHES:
                break
        return found

    def find(self, key: str) -> SearchFiles:
        """Return a search; ids are looked up among what is there, never made into paths.

        Raises:
            NotFoundError: There is none of that id.
        """
        files = self.all().get(key)
        if files is None:
            raise NotFoundError(f"there is no search `{key[:100]}`")
        return files

    def begin(self, name: str) -> SearchFiles:
        """Make the directory of a new search."""
        plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:40] or "search"
        while True:
            home = self.directory / f"{plain}-{secrets.token_hex(3)}"
            try:
                home.mkdir(parents=True)
            except FileExistsError:
                continue
            files = self._files(home / ARCHIVE_NAME)
            files.state.mkdir()
            return files

    @contextmanager
    def reading(self, files: SearchFiles) -> Iterator[OpenArchive]:
        """Lend the open archive of a search.

        Raises:
            ArchiveNotFoundError: There is none (yet).
            ArchiveError: It cannot be read.
        """
        opened = self._borrow(files)
        try:
            yield opened
        finally:
            opened.release()
            with self._lock:
                gone = self._evicted()
                # Deleted, or replaced by another file, while it was read.
                if opened.is_idle and self._open.get(files.archive) is not opened:
                    gone.append(opened.archive)
            for archive in gone:
                archive.close()

    def remove(self, files: SearchFiles) -> None:
        """Delete a search: archive, exports, and all that is kept beside it."""
        with self._lock:
            opened = self._open.pop(files.archive, None)
        if opened is not None and opened.is_idle:
            opened.archive.close()
        for suffix in ("", *SIDE_FILES, ".lock"):
            files.archive.with_name(files.archive.name + suffix).unlink(missing_ok=True)
        shutil.rmtree(files.state, ignore_errors=True)
        home = files.archive.parent
        if home != self.directory and not any(home.iterdir()):
            home.rmdir()

    def close(self) -> None:
        """Close all archives."""
        with self._lock:
            opened, self._open = list(self._open.values()), OrderedDict()
        for archive in opened:
            archive.archive.close()

    def _files(self, archive: Path) -> SearchFiles:
        relative = archive.relative_to(self.directory)
        named = relative.parent if archive.name == ARCHIVE_NAME and relative.parts[1:] else relative
        key = "~".join(named.parts)
        return SearchFiles(key, archive, archive.with_name(archive.name + _STATE_SUFFIX))

    def _borrow(self, files: SearchFiles) -> OpenArchive:
        with self._lock:
            opened = self._open.get(files.archive)
            if opened is not None and opened.identity == _identity(files.archive):
                self._open.move_to_end(files.archive)
                opened.hold()
                return opened
            archive = Archive.open(files.archive)
            fresh = OpenArchive(archive, _identity(files.archive))
            fresh.hold()
            self._open[files.archive] = fresh
        if opened is not None and opened.is_idle:
            opened.archive.close()
        return fresh

    def _evicted(self) -> list[Archive]:
        """Take archives that nobody reads out of the ones that are kept open, the oldest first."""
        gone = []
        for path in list(self._open):
            if len(self._open) <= _MAX_OPEN:
                break
            if self._open[path].is_idle:
                gone.append(self._open.pop(path).archive)
        return gone


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _archives_in(directory: Path, depth: int) -> Iterator[Path]:
    """Find archives, and those that are to come; links are not followed."""
    try:
        with os.scandir(directory) as found:
            entries = list(found)
    except OSError:
        return
    for entry in entries:
        path = directory / entry.name
        if entry.name.startswith(".") or "~" in entry.name:
            continue
        if entry.is_file(follow_symlinks=False):
            if path.suffix == _SUFFIX:
                yield path
        elif not entry.is_dir(follow_symlinks=False):
            continue
        elif entry.name.endswith(_SUFFIX + _STATE_SUFFIX):
            yield path.with_suffix("")
        elif depth > 1 and entry.name != TELEMETRY_DIRECTORY:
            yield from _archives_in(path, depth - 1)
