"""SQLite as the place of an archive: connections, durability, and what its errors mean.

Everything that is true of SQLite only stands here, in ``optimizer.archive.sqlite_store`` and in the
triggers of ``optimizer.archive.schema``.

Never open an archive's file with anything but SQLite, not even to look at its first bytes: when
a process closes any descriptor of a file, the kernel drops all locks that the process holds on
it. The next reader that leaves would then take the log away from under a writer that lives on.
"""

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, QueuePool, create_engine, event
from sqlalchemy.exc import DBAPIError

from configs.errors import ArchiveError, ArchiveNotFoundError
from configs.place import FilePlace
from optimizer.archive.migrations import check_version, found_version

APPLICATION_ID = 0x6D67_6672
"""``mgfr`` in the header of the file, so that ``file`` and we know whose database it is."""

SIDE_FILES = ("-journal", "-wal", "-shm")
"""What SQLite appends to the name of a database for the files beside it."""

_MAGIC = b"SQLite format 3\0"
_BUSY_TIMEOUT_S = 30.0
_ALMOST_FULL_BYTES = 64 * 1024


def is_sqlite(path: Path) -> bool:
    """Say whether a file is a database of SQLite.

    Only for processes that have no archive open: see above.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def new_file_engine(path: Path) -> Engine:
    """Return an engine that creates a file, to be published when all is in it.

    It has a rollback journal: what is committed is in the file itself, not in a log beside it
    that would stay behind when the file is renamed.
    """
    return _engine(path, "mode=rwc", (f"application_id = {APPLICATION_ID}",))


def file_engine(path: Path, *, writable: bool) -> Engine:
    """Return an engine on an existing file.

    A commit is on the disk when it returns (write-ahead log, full synchronization). Readers
    neither wait for the writer nor hold it up.
    """
    if writable:
        return _engine(
            path, "mode=rw", ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON")
        )
    if _nobody_can_write(path):
        return _engine(path, "mode=ro&immutable=1")
    # Not mode=ro: such a reader cannot take the log away again when it leaves as the last one.
    return _engine(path, "mode=rw", ("query_only = ON",))


def _nobody_can_write(path: Path) -> bool:
    # SQLite wants to create the index of the write-ahead log even to read. Where it cannot (a
    # read-only file system) and there is neither index nor log, the file is all there is.
    index = path.with_name(path.name + "-shm")
    return not (os.access(path.parent, os.W_OK) or _log_size(path) or index.exists())


def _log_size(path: Path) -> int:
    """Bytes in the write-ahead log: commits that are not in the file yet."""
    try:
        return path.with_name(path.name + "-wal").stat().st_size
    except FileNotFoundError:
        return 0


def _engine(path: Path, options: str, pragmas: tuple[str, ...] = ()) -> Engine:
    uri = f"{path.absolute().as_uri()}?{options}"

    def connect() -> sqlite3.Connection:
        connection = sqlite3.connect(
            uri,
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,  # transactions begin below, not where the driver guesses
            check_same_thread=False,  # the pool lends a connection to one thread at a time
        )
        for pragma in pragmas:
            connection.execute(f"PRAGMA {pragma}")
        return connection

    engine = create_engine(
        "sqlite://", creator=connect, poolclass=QueuePool, pool_size=1, max_overflow=3
    )

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine


def resolved(path: Path) -> Path:
    """Return the one name of a file: links and relative names must lead to the same lock.

    Raises:
        OSError: The name cannot be one of a file.
    """
    try:
        return path.resolve()
    except (ValueError, RuntimeError) as error:  # a NUL in the name; links that go in a circle
        raise OSError(errno.EINVAL, str(error), str(path)) from error


def check_file(path: Path, *, writable: bool = False) -> None:
    """Check that ``path`` is an archive, whole, and of a version that this mergefront can use.

    Args:
        path: Resolved.
        writable: Whether an older version will be brought up to date.

    Raises:
        ArchiveNotFoundError: There is nothing.
        SchemaVersionError: It was written by another version.
        ArchiveError: It is something else, or damaged.
    """
    if not path.exists():
        raise ArchiveNotFoundError(
            f"there is no archive at {path}; start a search with `mergefront run JOB.yaml`",
            path=str(path),
        )
    if not path.is_file():
        raise _not_an_archive(path, "not a file")
    log_bytes, file_bytes = _log_size(path), path.stat().st_size
    if not file_bytes:
        raise _not_an_archive(path, "an empty file")
    engine = file_engine(path, writable=False)
    try:
        with storage_errors(path), engine.begin() as connection:
            application, page_bytes = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("application_id", "page_size")
            )
            found = found_version(connection) if application == APPLICATION_ID else None
    finally:
        engine.dispose()
    # SQLite itself notices when whole pages are missing, but reads half a page as zeros.
    if not log_bytes and file_bytes % page_bytes:
        raise ArchiveError(
            f"archive {path} is damaged: {file_bytes} bytes are not a whole number of pages of "
            f"{page_bytes}. Restore it from a copy",
            path=str(path),
        )
    if found is None:
        raise _not_an_archive(path, "an SQLite database of something else")
    check_version(FilePlace(path), *found, writable=writable)


def _not_an_archive(path: Path, found: str) -> ArchiveError:
    return ArchiveError(
        f"{path} is not an archive of mergefront but {found}; name the file of the key `archive` "
        "of the job",
        path=str(path),
    )


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the database refuses into an ArchiveError that a person can act on."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as error:
        cause = error.orig if isinstance(error, DBAPIError) else error
        raise ArchiveError(_explain(path, cause), path=str(path)) from error
    except OSError as error:
        raise ArchiveError(
            f"archive {path} cannot be used: {error.strerror} ({error.filename or path})",
            path=str(path),
        ) from error


_MEANINGS = {
    sqlite3.SQLITE_FULL: "cannot be written: the disk is full ({error}). Everything recorded "
    "before is safe; free some space there and resume",
    sqlite3.SQLITE_CORRUPT: "is damaged: {error}. Restore it from a copy",
    sqlite3.SQLITE_NOTADB: "is none, or its beginning is damaged: {error}. Name the file of the "
    "key `archive` of the job, or restore it from a copy",
    sqlite3.SQLITE_READONLY: "cannot be written: {error}. Check its permissions",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened: {error}. Check its directory's permissions",
    sqlite3.SQLITE_BUSY: f"was locked for {_BUSY_TIMEOUT_S:.0f} s by another program: {{error}}. "
    "Close what has it open for writing",
    sqlite3.SQLITE_CONSTRAINT: "refuses the change: {error}",
}


def _explain(path: Path, error: BaseException | None) -> str:
    # The low byte is the kind of error, the rest is detail.
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_IOERR and _disk_is_full(path):
        code = sqlite3.SQLITE_FULL
    meaning = _MEANINGS.get(code, "cannot be used: {error}")
    return f"archive {path} {meaning.format(error=error)}"


def _disk_is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _ALMOST_FULL_BYTES
    except OSError:
        return False


def publish_file(new: Path, path: Path) -> None:
    """Give a finished new archive its name, for good: it appears whole or not at all."""
    # Here, since with readers about this change would have to wait for all of them to leave.
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    new.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def compact_file(path: Path) -> None:
    """Write a file anew without gaps; its caller holds the lock, and has it open for writing."""
    with closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as file:
        file.execute("PRAGMA synchronous = FULL")
        file.execute("VACUUM")
        # What was written is in the log until then; a reader that stays keeps it there.
        file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
