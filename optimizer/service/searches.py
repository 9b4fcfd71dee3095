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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from optimizer.archive.archive import Archive
from optimizer.archive.reader import ArchiveCounters
from optimizer.archive.sqlite import SIDE_FILES
from optimizer.service.errors import NotFoundError
from optimizer.service.job_policy import TELEMETRY_DIRECTORY
from optimizer.service.search_files import SearchFiles
from optimizer.service.settings import is_text

Value = TypeVar("Value")


def revision_of(counters: ArchiveCounters) -> str:
    """Return a text that changes whenever something is recorded."""
    return "-".join(map(str, counters))


ARCHIVE_NAME = "archive.sqlite"
_SUFFIX, _STATE_SUFFIX = ".sqlite", ".service"
_DEPTH = 3
_MAX_SEARCHES = 10_000
_MAX_OPEN = 16


class OpenArchive:
    """An archive that is open for reading, with answers that hold until something is recorded."""

    def __init__(self, archive: Archive, identity: tuple[int, int]) -> None:
        self.archive = archive
        self.identity = identity
        self._users = 0
        self._is_retired = False
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
        """Let it be closed, when it is retired."""
        with self._counting:
            self._users -= 1
            is_over = self._is_retired and not self._users
        if is_over:
            self.archive.close()

    def retire(self) -> None:
        """Close it as soon as nobody reads it; nobody begins to any more."""
        with self._counting:
            is_over = not self._is_retired and not self._users
            self._is_retired = True
        if is_over:
            self.archive.close()

    def kept(
        self,
        name: str,
        make: Callable[[Archive], Value],
        *,
        depends_on: object = None,
        at: ArchiveCounters | None = None,
    ) -> Value:
        """Return what ``make`` gives, as long as nothing new is recorded the same as before.

        Args:
            name: Of the answer; one of each name is kept.
            make: Makes it; is not called by two threads at a time.
            depends_on: What else makes it another one.
            at: What the archive counted a moment ago, for who has that already. What is kept may
                then be of a little more, so let nothing that must have all of it go by the same.
        """
        with self._counting:
            making = self._making.setdefault(name, threading.Lock())
        with making:
            now = (self.archive.counters() if at is None else at, depends_on)
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
        self._opening: dict[Path, threading.Lock] = {}

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
            self._retire_oldest()

    @contextmanager
    def glancing(self, files: SearchFiles) -> Iterator[OpenArchive]:
        """Lend the archive as ``reading`` does, without keeping it open for the next one.

        For who looks at many: those that are read would be closed for them.
        """
        with self._lock:
            opened = self._held(files.archive)
        if opened is None:
            opened = _opened(files.archive)
            opened.hold()
            opened.retire()
        try:
            yield opened
        finally:
            opened.release()

    def remove(self, files: SearchFiles) -> None:
        """Delete a search: archive, exports, and all that is kept beside it."""
        with self._lock:
            opened = self._open.pop(files.archive, None)
        if opened is not None:
            opened.retire()
        shutil.rmtree(files.exports, ignore_errors=True)
        for suffix in ("", *SIDE_FILES, ".lock"):
            files.archive.with_name(files.archive.name + suffix).unlink(missing_ok=True)
        # In one step, so that who waits to change it finds that it is gone.
        going = files.state.with_name(f".{files.state.name}.{secrets.token_hex(4)}")
        with suppress(FileNotFoundError):
            files.state.rename(going)
        shutil.rmtree(going, ignore_errors=True)
        home = files.archive.parent
        if home != self.directory:
            with suppress(OSError):  # it holds more, or is gone as well
                home.rmdir()

    def close(self) -> None:
        """Close all archives, those that are read as soon as they are not."""
        with self._lock:
            opened, self._open = list(self._open.values()), OrderedDict()
        for archive in opened:
            archive.retire()

    def _files(self, archive: Path) -> SearchFiles:
        relative = archive.relative_to(self.directory)
        named = relative.parent if archive.name == ARCHIVE_NAME and relative.parts[1:] else relative
        key = "~".join(named.parts)
        return SearchFiles(key, archive, archive.with_name(archive.name + _STATE_SUFFIX))

    def _borrow(self, files: SearchFiles) -> OpenArchive:
        path = files.archive
        with self._lock:
            if (opened := self._held(path)) is not None:
                return opened
            opening = self._opening.setdefault(path, threading.Lock())
        # Opening may take long: only who wants the same one waits.
        with opening:
            with self._lock:
                if (opened := self._held(path)) is not None:
                    return opened
            fresh = _opened(path)
            fresh.hold()
            with self._lock:
                replaced = self._open.pop(path, None)
                self._open[path] = fresh
        if replaced is not None:
            replaced.retire()
        return fresh

    def _held(self, path: Path) -> OpenArchive | None:
        """Hold what is open, if it still is what is there; the lock is taken."""
        opened = self._open.get(path)
        if opened is None or opened.identity != _identity(path):
            return None
        self._open.move_to_end(path)
        opened.hold()
        return opened

    def _retire_oldest(self) -> None:
        """Close what nobody reads while more is open than may be, what was read last the last."""
        with self._lock:
            excess = len(self._open) - _MAX_OPEN
            idle = [path for path, opened in self._open.items() if opened.is_idle]
            oldest = [self._open.pop(path) for path in idle[: max(0, excess)]]
        for opened in oldest:
            opened.retire()


def _opened(path: Path) -> OpenArchive:
    identity = _identity(path)  # before: it may be replaced meanwhile
    return OpenArchive(Archive.open(path), identity)


def _identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_dev, found.st_ino


def _archives_in(directory: Path, depth: int) -> Iterator[Path]:
    """Find archives, and those that are to come; links are not followed.

    Names that are no ids are left out: hidden ones, with ``~``, and not in UTF-8, as JSON is.
    """
    try:
        with os.scandir(directory) as found:
            entries = list(found)
    except OSError:
        return
    for entry in entries:
        path = directory / entry.name
        if entry.name.startswith(".") or "~" in entry.name or not is_text(entry.name):
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
