"""The search that an archive holds: written once, when the archive is made, and read back.

Also how its file is reached: every read and write goes through one transaction of
``ArchivedSearch``. What was proposed and what came of it is in ``optimizer.archive_reader``.
"""

import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Row, Select, Table

from configs.errors import ArchiveError, ArchiveExistsError
from configs.schema import JobConfig
from optimizer.archive_records import job_to_json, json_to_job, json_to_sources, sources_to_json
from optimizer.archive_schema import create_tables, searches, utc_now
from optimizer.archive_sqlite import SIDE_FILES, new_file_engine, publish_file, storage_errors

if TYPE_CHECKING:
    from evaluators.manifest import Manifest
    from workers.sources import Sources

SEARCH_ID = 1
"""An archive file holds one search."""


class ArchivedSearch:
    """An open archive, and what its search was made from."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self._path = path
        self._engine = engine
        self._search_id = SEARCH_ID
        self._closed = False
        self._search = self._read_search()
        self._job = self._read_job()

    @property
    def path(self) -> Path:
        """Absolute path of the archive's file."""
        return self._path

    @property
    def job(self) -> JobConfig:
        """The job that the archive was made from."""
        return self._job

    @property
    def job_path(self) -> Path | None:
        """Where the job file was; None when the job came from elsewhere."""
        found = self._search.job_path
        return None if found is None else Path(json.loads(found))

    @property
    def working_directory(self) -> Path:
        """Where the search was started: relative paths of its job file are relative to it."""
        return Path(json.loads(self._search.working_directory))

    @property
    def created_at(self) -> str:
        """When the search began: UTC, ISO-8601."""
        return str(self._search.created_at)

    @cached_property
    def sources(self) -> "Sources":
        """The checkpoints as they were resolved when the search began."""
        return json_to_sources(self._search.sources)

    @cached_property
    def manifest(self) -> "Manifest":
        """The items of every split."""
        from evaluators.manifest import Manifest  # noqa: PLC0415 - most readers never need it

        return Manifest.from_json(self._search.manifest)

    def close(self) -> None:
        """Close the file; the archive cannot be used afterwards."""
        self._closed = True
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        if self._closed:
            raise ArchiveError(f"archive {self._path} was closed; open it again")
        with storage_errors(self._path), self._engine.begin() as connection:
            yield connection

    def _read_search(self) -> Row[Any]:
        with self._transaction() as connection:
            found = connection.execute(self._of_search(searches)).one_or_none()
        if found is None:
            raise ArchiveError(
                f"archive {self._path} holds no search: it is damaged, restore it from a copy"
            )
        return found

    def _read_job(self) -> JobConfig:
        try:
            return json_to_job(self._search.job)
        except ValueError as error:
            raise ArchiveError(
                f"the job in archive {self._path} cannot be read by this mergefront: {error}",
                path=str(self._path),
            ) from error

    def _of_search(self, table: Table, query: Select[Any] | None = None) -> Select[Any]:
        chosen = table.select() if query is None else query
        return chosen.where(table.c.search_id == self._search_id)


def refuse_existing(path: Path) -> None:
    """Refuse to make an archive where there is one.

    Raises:
        ArchiveExistsError: There is a file of that name.
    """
    if path.exists():
        raise ArchiveExistsError(
            f"archive {path} exists already; go on with `mergefront resume "
            f"{shlex.quote(str(path))}`, or name another file in the key `archive` of the job",
            path=str(path),
        )


def write_new(
    path: Path, *, job: JobConfig, job_path: Path | None, sources: "Sources", manifest: "Manifest"
) -> None:
    """Write the archive of a new search; its file is there whole or not at all.

    The caller holds the lock of that path, and has seen that there is no such file.
    """
    new = path.with_name(f".{path.name}.new")
    # Left by a process that was killed here, or by removing an archive but not the files beside
    # it: SQLite would take an old log for one of the new file. We hold the lock.
    for left in (new, *(f.with_name(f.name + s) for f in (new, path) for s in SIDE_FILES)):
        left.unlink(missing_ok=True)
    engine = new_file_engine(new)
    try:
        with engine.begin() as connection:
            create_tables(connection)
            connection.execute(
                searches.insert().values(
                    search_id=SEARCH_ID,
                    created_at=utc_now(),
                    job=job_to_json(job),
                    job_digest=job.digest,
                    job_path=None if job_path is None else json.dumps(str(job_path.absolute())),
                    working_directory=json.dumps(str(Path.cwd())),
                    sources=sources_to_json(sources),
                    manifest=manifest.to_json(),
                )
            )
    finally:
        engine.dispose()
    publish_file(new, path)
