"""An archive in an SQLite file: how it is made, opened, locked and compacted."""

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine

from configs.errors import ArchiveExistsError
from configs.place import FilePlace
from optimizer.archive.lock import ArchiveLock, owner_of_file
from optimizer.archive.migrations import create_tables, migrate
from optimizer.archive.owner import Owner
from optimizer.archive.sqlite import (
    SIDE_FILES,
    check_file,
    compact_file,
    file_engine,
    new_file_engine,
    publish_file,
    resolved,
    storage_errors,
)
from optimizer.archive.store import Backend, Fill, Store

SEARCH_ID = 1
"""A file holds one search."""


class SqliteStore(Store):
    """An open file; a writable one holds the lock of it."""

    def __init__(self, path: Path, engine: Engine, lock: ArchiveLock | None) -> None:
        super().__init__(FilePlace(path), engine, SEARCH_ID)
        self._path = path
        self._lock = lock

    @property
    def writable(self) -> bool:
        """Whether this process holds the lock."""
        return self._lock is not None

    def errors(self) -> AbstractContextManager[None]:
        """Explain what SQLite refuses."""
        return storage_errors(self._path)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Lend a transaction; a commit is on the disk when it returns."""
        if self._lock is None:
            raise self.not_writable()
        self._lock.check()
        with self.reading() as connection:
            yield connection

    def damage(self) -> list[str]:
        """Let SQLite read every page of the file."""
        with self.reading() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        return [] if found == ["ok"] else [str(text) for text in found]

    def close(self) -> None:
        """Close the file and let the next writer in."""
        self._engine.dispose()
        if self._lock is not None:
            self._lock.release()


class SqliteBackend(Backend):
    """A file that is, or will be, an archive."""

    def __init__(self, place: FilePlace) -> None:
        with storage_errors(place.path):
            self._path = resolved(place.path)
        self.place: FilePlace = FilePlace(self._path)

    def exists(self) -> bool:
        """Whether there is something of that name."""
        with storage_errors(self._path):
            return self._path.exists()

    def refuse_existing(self) -> None:
        """Refuse to make an archive where there is one."""
        if self.exists():
            raise ArchiveExistsError(
                f"archive {self._path} exists already; go on with `mergefront resume "
                f"{shlex.quote(str(self._path))}`, or name another file in the key `archive` of "
                "the job",
                path=str(self._path),
            )

    def begin(self, fill: Fill) -> Store:
        """Make the file; missing directories are made too."""
        with storage_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.refuse_existing()
            with ExitStack() as on_error:
                lock = on_error.enter_context(ArchiveLock(self._path))
                self.refuse_existing()
                self._write_new(fill)
                engine = file_engine(self._path, writable=True)
                on_error.pop_all()
                return SqliteStore(self._path, engine, lock)

    def open(self, *, writable: bool) -> Store:
        """Open the file; two more appear beside it (``-wal``, ``-shm``), and ``.lock`` stays."""
        with storage_errors(self._path), ExitStack() as on_error:
            check_file(self._path, writable=writable)
            if not writable:
                return SqliteStore(self._path, file_engine(self._path, writable=False), None)
            lock = on_error.enter_context(ArchiveLock(self._path))
            engine = file_engine(self._path, writable=True)
            on_error.callback(engine.dispose)
            with engine.begin() as connection:
                migrated = migrate(connection)
            on_error.pop_all()  # nothing went wrong: the store owns the lock and the engine
            store = SqliteStore(self._path, engine, lock)
            store.migrated = tuple(migrated)
            return store

    def owner(self) -> Owner | None:
        """Return who holds the lock."""
        return owner_of_file(self._path)

    def compact(self) -> tuple[int, int]:
        """Write the file anew without its gaps; needs room for a second one meanwhile."""
        with closing(self.open(writable=True)), storage_errors(self._path):
            before = self._path.stat().st_size
            compact_file(self._path)
            return before, self._path.stat().st_size

    def _write_new(self, fill: Fill) -> None:
        """Write the file under another name; the caller holds the lock, and there is none yet."""
        new = self._path.with_name(f".{self._path.name}.new")
        # Left by a process that was killed here, or by removing an archive but not the files
        # beside it: SQLite would take an old log for one of the new file.
        beside = (f.with_name(f.name + s) for f in (new, self._path) for s in SIDE_FILES)
        for left in (new, *beside):
            left.unlink(missing_ok=True)
        engine = new_file_engine(new)
        try:
            with engine.begin() as connection:
                create_tables(connection)
                fill(connection, {"search_id": SEARCH_ID, "name": None})
        except BaseException:
            engine.dispose()
            new.unlink(missing_ok=True)
            raise
        engine.dispose()
        publish_file(new, self._path)
