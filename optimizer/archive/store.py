"""Where an archive is kept: what SQLite and PostgreSQL have to offer, each in its way.

A ``Backend`` knows a place (``configs.place``) and opens it; a ``Store`` is the open archive, one
search in it. ``optimizer.archive.sqlite_store`` and ``optimizer.archive.postgres_store`` have the
two of each.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, Engine

from configs.errors import ArchiveError
from configs.place import DatabasePlace, Place, read_place
from optimizer.archive.owner import Owner

AnyPlace = str | os.PathLike[str] | Place
"""What may name an archive: a path, a URL, or either as it was read."""

Fill = Callable[[Connection, dict[str, object]], None]
"""Writes the rows of a new search into empty tables, or beside others: it is given the columns
``search_id`` and ``name`` of ``searches``."""


class Store(ABC):
    """One search in a file or a database, open for reading or writing.

    Attributes:
        place: Where.
        search_id: Number of the search there.
        migrated: Changes of the tables that were applied when it was opened.
    """

    migrated: tuple[str, ...] = ()

    def __init__(self, place: Place, engine: Engine, search_id: int) -> None:
        self.place = place
        self.search_id = search_id
        self._engine = engine

    @property
    @abstractmethod
    def writable(self) -> bool:
        """Whether this process is the one that may write."""

    @abstractmethod
    def errors(self) -> AbstractContextManager[None]:
        """Turn what the database refuses into an ArchiveError that a person can act on."""

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Lend a transaction that sees the archive as it is now, whatever is written meanwhile."""
        with self.errors(), self._engine.begin() as connection:
            yield connection

    def not_writable(self) -> ArchiveError:
        """Return the error that refuses to write what this process only reads."""
        return ArchiveError(f"archive {self.place} is open for reading; open it for writing")

    @abstractmethod
    def writing(self) -> AbstractContextManager[Connection]:
        """Lend a transaction that is on the disk when it is over.

        Raises:
            ArchiveError: It is not writable, or the database refuses; then nothing is written.
        """

    def damage(self) -> list[str]:
        """Return what the database finds wrong with its own files, one text for each."""
        return []

    @abstractmethod
    def close(self) -> None:
        """Let the next writer in; a second call does nothing."""


class Backend(ABC):
    """A place where an archive can be."""

    place: Place

    @abstractmethod
    def exists(self) -> bool:
        """Whether there is something of that name.

        Raises:
            ArchiveError: That cannot be found out.
        """

    @abstractmethod
    def begin(self, fill: Fill) -> Store:
        """Make a new archive and open it for writing; no other process can before it is closed.

        It is there whole, as ``fill`` wrote it, or not at all.

        Raises:
            ArchiveExistsError: There is one.
            ArchiveLockedError: Another process is just making it.
            ArchiveError: It cannot be written.
        """

    @abstractmethod
    def open(self, *, writable: bool) -> Store:
        """Open an archive, in the tables of this version where it is writable.

        Raises:
            ArchiveNotFoundError: There is none.
            SchemaVersionError: It was written by another version of mergefront.
            ArchiveLockedError: ``writable``, and another process writes it.
            ArchiveError: It is no archive, or damaged, or cannot be reached.
        """

    @abstractmethod
    def refuse_existing(self) -> None:
        """Refuse to make an archive where there is one.

        Raises:
            ArchiveExistsError: There is something of that name.
        """

    @abstractmethod
    def owner(self) -> Owner | None:
        """Return who writes it; None when nobody does."""

    @abstractmethod
    def compact(self) -> tuple[int, int]:
        """Give back space that holds no rows; returns the size in bytes before and after."""


def backend_of(place: AnyPlace) -> Backend:
    """Return what keeps archives at a place.

    Raises:
        ArchiveError: The place is none.
    """
    try:
        found = read_place(place)
    except ValueError as error:
        raise ArchiveError(f"there can be no archive: {error}") from None
    if isinstance(found, DatabasePlace):
        from optimizer.archive.postgres_store import PostgresBackend

        return PostgresBackend(found)
    from optimizer.archive.sqlite_store import SqliteBackend

    return SqliteBackend(found)
