"""The search that an archive holds: written once, when the archive is made, and read back.

Also how it is reached: every read and write goes through one transaction of its store
(``optimizer.archive.store``). What was proposed and what came of it is in
``optimizer.archive.outcomes``.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Row, Select, Table

from configs.errors import ArchiveError
from configs.place import Place
from configs.schema import JobConfig
from optimizer.archive.records import Row as NewRow
from optimizer.archive.records import job_to_json, json_to_job, json_to_sources, sources_to_json
from optimizer.archive.schema import searches, utc_now
from optimizer.archive.store import Store

if TYPE_CHECKING:
    from evaluators.manifest import Manifest
    from workers.sources import Sources


class ArchivedSearch:
    """An open archive, and what its search was made from."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._search_id = store.search_id
        self._closed = False
        self._search = self._read_search()
        self._job = self._read_job()

    @property
    def place(self) -> Place:
        """Where the archive is; as text, what a command takes to open it."""
        return self._store.place

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
    def uid(self) -> str:
        """Name of the search for machines: 16 hex digits, the same in every copy of the archive."""
        text = f"{self._search.created_at} {self._search.job_digest}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @cached_property
    def sources(self) -> "Sources":
        """The checkpoints as they were resolved when the search began."""
        return json_to_sources(self._search.sources)

    @cached_property
    def manifest(self) -> "Manifest":
        """The items of every split."""
        from evaluators.manifest import Manifest

        return Manifest.from_json(self._search.manifest)

    def close(self) -> None:
        """Close the archive; it cannot be used afterwards, and another may write it."""
        self._closed = True
        self._store.close()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        self._refuse_closed()
        with self._store.reading() as connection:
            yield connection

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ArchiveError(f"archive {self.place} was closed; open it again")

    def _read_search(self) -> Row[Any]:
        with self._transaction() as connection:
            found = connection.execute(self._of_search(searches)).one_or_none()
        if found is None:
            raise ArchiveError(
                f"archive {self.place} holds no search: it is damaged, restore it from a copy"
            )
        return found

    def _read_job(self) -> JobConfig:
        try:
            return json_to_job(self._search.job)
        except ValueError as error:
            raise ArchiveError(
                f"the job in archive {self.place} cannot be read by this mergefront: {error}",
                path=str(self.place),
            ) from error

    def _of_search(self, table: Table, query: Select[Any] | None = None) -> Select[Any]:
        chosen = table.select() if query is None else query
        return chosen.where(table.c.search_id == self._search_id)


def search_row(
    *, job: JobConfig, job_path: Path | None, sources: "Sources", manifest: "Manifest"
) -> NewRow:
    """Return the row of a search that begins now, in this directory."""
    return {
        "created_at": utc_now(),
        "job": job_to_json(job),
        "job_digest": job.digest,
        "job_path": None if job_path is None else json.dumps(str(job_path.absolute())),
        "working_directory": json.dumps(str(Path.cwd())),
        "sources": sources_to_json(sources),
        "manifest": manifest.to_json(),
    }
