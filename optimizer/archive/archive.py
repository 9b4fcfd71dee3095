"""The archive: the one record of a search, from which it resumes, is read and is exported.

Append-only (D4): a proposal is recorded before it is sent, an outcome is on the disk before
``record_outcome`` returns, and what is recorded never changes. Killing the writer at any instant
loses at most what was not acknowledged. Start at ``Archive``; reading is in
``optimizer.archive.reader``, writing in ``optimizer.archive.recorder``, what a search was made from
in ``optimizer.archive.archived_search``, the tables are in ``optimizer.archive.schema``, and where
they are kept in ``optimizer.archive.store``.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy import Connection, func, select

from configs.errors import ArchiveError
from configs.schema import JobConfig
from optimizer.archive.archived_search import search_row
from optimizer.archive.recorder import ArchiveRecorder
from optimizer.archive.records import RecordedOutcome
from optimizer.archive.run import Run, run_row
from optimizer.archive.schema import runs, searches, utc_now
from optimizer.archive.store import AnyPlace, Store, backend_of

if TYPE_CHECKING:
    from evaluators.manifest import Manifest
    from workers.sources import Sources

__all__ = ["Archive", "RecordedOutcome"]

_BEAT_S = 1.0
"""Outcomes in quick succession count as one sign of life."""


class Archive(ArchiveRecorder):
    """One search on disk. Made by ``create`` or ``open``; a context manager that closes.

    There is one writable archive of a place at any time. Any number of readers may watch it: they
    neither wait nor hold it up. One thread records.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._run: Run | None = None
        self._beaten_s = 0.0

    @classmethod
    def create(
        cls,
        place: AnyPlace,
        *,
        job: JobConfig,
        job_path: Path | None,
        sources: "Sources",
        manifest: "Manifest",
    ) -> Self:
        """Start the archive of a new search, open for writing.

        Args:
            place: File to make, whose missing directories are made too, or
                ``postgresql://USER@HOST/DATABASE?search=NAME``.
            job: What is searched.
            job_path: The job's file, to be named in messages and compared on resume.
            sources: The resolved checkpoints.
            manifest: The items of every split.

        Raises:
            ArchiveExistsError: There is one of that name.
            ArchiveLockedError: Another process is just making it.
            ArchiveError: It cannot be written.
        """
        row = search_row(job=job, job_path=job_path, sources=sources, manifest=manifest)

        def fill(connection: Connection, search: dict[str, object]) -> None:
            connection.execute(searches.insert().values(**search, **row))

        return cls._of(backend_of(place).begin(fill))

    @classmethod
    def open(cls, place: AnyPlace, *, writable: bool = False) -> Self:
        """Open the archive of an earlier search.

        Raises:
            ArchiveNotFoundError: There is none.
            SchemaVersionError: It was written by another version of mergefront; where that is an
                older one, opening for writing brings it up to date.
            ArchiveLockedError: ``writable``, and another driver writes it.
            ArchiveError: It is no archive, or damaged, or cannot be opened.
        """
        return cls._of(backend_of(place).open(writable=writable))

    @classmethod
    def exists(cls, place: AnyPlace) -> bool:
        """Whether there is something of that name.

        Raises:
            ArchiveError: That cannot be found out.
        """
        return backend_of(place).exists()

    @classmethod
    def _of(cls, store: Store) -> Self:
        try:
            return cls(store)
        except BaseException:
            store.close()
            raise

    @property
    def elapsed_s(self) -> float:
        """Wall seconds that the search took, summed over its runs, the present one included.

        Of a run that was killed, and for a reader, what counts is the last heartbeat or outcome.
        """
        if self._run is None:
            return super().elapsed_s
        return self._run.earlier_s + self._run.lasted_s

    def begin_run(self) -> None:
        """Record that the search starts or goes on, and start its clock."""
        earlier_s = super().elapsed_s
        with self._writing() as connection:
            query = self._of_search(runs, select(func.count()).select_from(runs))
            number = int(connection.execute(query).scalar_one())
            self._insert(connection, runs, [run_row(number)])
        self._run, self._beaten_s = Run(number, earlier_s, time.monotonic()), 0.0

    def heartbeat(self, *, every_s: float = 0.0) -> None:
        """Record how long this run has lasted; recording an outcome does so too.

        Args:
            every_s: Where that was recorded within so many seconds, it is left out.

        Raises:
            ValueError: ``begin_run`` was not called.
        """
        if self._run is None:
            raise ValueError("there is no run to keep alive; call begin_run first")
        if not self._is_due(self._run, every_s):
            return
        with self._writing() as connection:
            self._write_beat(connection, self._run)

    def close(self) -> None:
        """Close the archive and let the next writer in; a second call does nothing."""
        if self._run is not None and not self._closed:
            with suppress(ArchiveError):  # the outcomes are safe; only seconds may be lost
                self.heartbeat()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _beat(self, connection: Connection) -> None:
        if self._run is not None and self._is_due(self._run, _BEAT_S):
            self._write_beat(connection, self._run)

    def _is_due(self, run: Run, every_s: float) -> bool:
        return run.lasted_s >= self._beaten_s + every_s

    def _write_beat(self, connection: Connection, run: Run) -> None:
        self._beaten_s = run.lasted_s
        connection.execute(
            runs.update()
            .where(runs.c.search_id == self._search_id, runs.c.run == run.number)
            .values(heartbeat_at=utc_now(), elapsed_s=self._beaten_s)
        )
