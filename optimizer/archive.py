"""The archive: the one record of a search, from which it resumes, is read and is exported.

Append-only (D4): a proposal is recorded before it is sent, an outcome is on the disk before
``record_outcome`` returns, and what is recorded never changes. Killing the writer at any instant
loses at most what was not acknowledged. Start at ``Archive``; reading is in
``optimizer.archive_reader``, what a search was made from in ``optimizer.archived_search``, the
tables are in ``optimizer.archive_schema``.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sqlalchemy import Connection, Engine, Table, func, select

from configs.errors import ArchiveError
from configs.evaluation import SplitName
from configs.schema import JobConfig
from evaluators.blocks import WHOLE, block_name, remaining
from evaluators.scores import Items
from optimizer.archive_checks import checked_block, checked_scores, keeps_texts
from optimizer.archive_lock import ArchiveLock
from optimizer.archive_reader import ArchiveReader
from optimizer.archive_records import (
    RecordedOutcome,
    Row,
    Rows,
    block_to_json,
    item_rows,
    objective_rows,
    outcome_row,
    proposal_row,
    text_rows,
)
from optimizer.archive_run import Run, run_row
from optimizer.archive_schema import (
    blocks,
    choices,
    companion_scores,
    item_scores,
    objective_scores,
    outcomes,
    proposals,
    runs,
    stops,
    texts,
    utc_now,
)
from optimizer.archive_sqlite import (
    check_file,
    file_engine,
    resolved,
    storage_errors,
)
from optimizer.archive_stops import Stop, stop_row
from optimizer.archived_search import refuse_existing, write_new
from optimizer.candidate import Candidate
from workers.outcome import Completed, Outcome

if TYPE_CHECKING:
    from evaluators.manifest import Manifest
    from workers.sources import Sources

__all__ = ["Archive", "RecordedOutcome"]


class Archive(ArchiveReader):
    """One search on disk. Made by ``create`` or ``open``; a context manager that closes.

    A writable archive holds the lock of its file; there is one per file at any time. Any number
    of readers may watch it: they neither wait nor hold it up. One thread records.
    """

    def __init__(self, path: Path, engine: Engine, lock: ArchiveLock | None = None) -> None:
        super().__init__(path, engine)
        self._lock = lock
        self._run: Run | None = None
        self._stale = True

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        job: JobConfig,
        job_path: Path | None,
        sources: "Sources",
        manifest: "Manifest",
    ) -> Self:
        """Start the archive of a new search, open for writing.

        Args:
            path: File to make; missing directories are made too. Two more files appear beside
                it while it is open (``-wal``, ``-shm``), and ``.lock``, which stays.
            job: What is searched.
            job_path: The job's file, to be named in messages and compared on resume.
            sources: The resolved checkpoints.
            manifest: The items of every split.

        Raises:
            ArchiveExistsError: There is a file of that name.
            ArchiveLockedError: Another process is just making it.
            ArchiveError: It cannot be written.
        """
        with storage_errors(path):
            path = resolved(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            refuse_existing(path)
            with ExitStack() as on_error:
                lock = on_error.enter_context(ArchiveLock(path))
                refuse_existing(path)
                write_new(path, job=job, job_path=job_path, sources=sources, manifest=manifest)
                return cls._opened(path, lock, on_error)

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Self:
        """Open the archive of an earlier search.

        Raises:
            ArchiveNotFoundError: There is none.
            SchemaVersionError: It was written by another version of mergefront.
            ArchiveLockedError: ``writable``, and another driver writes it.
            ArchiveError: The file is no archive, or damaged, or cannot be opened.
        """
        with storage_errors(path), ExitStack() as on_error:
            path = resolved(path)
            check_file(path)
            lock = on_error.enter_context(ArchiveLock(path)) if writable else None
            return cls._opened(path, lock, on_error)

    @classmethod
    def _opened(cls, path: Path, lock: ArchiveLock | None, on_error: ExitStack) -> Self:
        engine = file_engine(path, writable=lock is not None)
        on_error.callback(engine.dispose)
        archive = cls(path, engine, lock)
        on_error.pop_all()  # nothing went wrong: the archive owns the lock and the engine
        return archive

    @property
    def writable(self) -> bool:
        """Whether this process holds the lock and may record."""
        return self._lock is not None

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
        self._run = Run(number, earlier_s, time.monotonic())

    def heartbeat(self) -> None:
        """Record how long this run has lasted; recording an outcome does so too.

        Raises:
            ValueError: ``begin_run`` was not called.
        """
        if self._run is None:
            raise ValueError("there is no run to keep alive; call begin_run first")
        with self._writing() as connection:
            self._beat(connection, self._run)

    def record_proposal(self, candidate: Candidate) -> None:
        """Record a candidate before it is sent to a worker; it is on the disk on return.

        Raises:
            ArchiveError: It is not the next candidate, or has seen more than is recorded.
        """
        told = self.observations()
        if candidate.index != len(self._candidates):
            raise ArchiveError(
                f"archive {self._path} expects candidate {len(self._candidates)} next, got "
                f"{candidate.index}: proposals are recorded once each, in the order of their index",
                candidate=candidate.index,
            )
        if not 0 <= candidate.seen <= len(told):
            raise ArchiveError(
                f"candidate {candidate.index} claims to have seen {candidate.seen} finished "
                f"candidates, but archive {self._path} holds {len(told)}: record outcomes before "
                "telling them",
                candidate=candidate.index,
            )
        finished = {seen.candidate.index for seen in told[: candidate.seen]}
        pending = [index for index in range(candidate.index) if index not in finished]
        with self._writing() as connection:
            self._insert(connection, proposals, [proposal_row(candidate, pending, utc_now())])

    def record_block(self, split: SplitName, items: Items) -> str:
        """Record which items a block holds, before it is sent; it is on the disk on return.

        Returns:
            The block's name for ``EvaluationKey``: ``WHOLE`` where it holds all of the split. A
            block that is known already is not recorded again.

        Raises:
            ArchiveError: The block is empty, an item of it is not in the split, or it divides the
                items of a scorer whose scores depend on each other.
        """
        content = checked_block(items, self.manifest.items(split), self.job, split)
        if not remaining(self.manifest.items(split), content):
            return WHOLE
        name = block_name(content)
        row: Row = {"split": split, "block": name, "items": block_to_json(content)}
        with self._writing() as connection:
            query = select(blocks.c.block).where(blocks.c.split == split, blocks.c.block == name)
            if connection.execute(self._of_search(blocks, query)).first() is None:
                self._insert(connection, blocks, [row])
        return name

    def record_outcome(self, outcome: Outcome) -> bool:
        """Record what came of an evaluation; it is on the disk on return.

        Item scores are kept always. Texts are kept of held-out evaluations and of baselines, and
        of a candidate that none dominates of those scored on the same items before it.

        Returns:
            False when that candidate already has an outcome on that split or block (a stale
            attempt), has been scored on the whole split block by block, or was stopped: nothing
            is written.

        Raises:
            ArchiveError: The candidate was never proposed or the block never recorded, its
                scores are not finite or not of the job's tasks and items, or the disk refuses
                (full, gone). Nothing is written.
        """
        candidate = self.candidate(outcome.key.candidate)
        if outcome.key in self._by_key:
            return False
        if outcome.key.split == "search" and candidate.index in self._stops:
            return False
        usual = self.block(outcome.key.split, outcome.key.block)
        scores = checked_scores(outcome, self.job, usual) if isinstance(outcome, Completed) else {}
        row = outcome_row(outcome, sequence=len(self._recorded), finished_at=utc_now())
        with self._writing() as connection:
            self._insert(connection, outcomes, [row])
            if isinstance(outcome, Completed):
                key, told = outcome.key, outcome.task_scores
                self._insert(connection, objective_scores, objective_rows(key, scores))
                self._insert(connection, item_scores, item_rows(key, told, usual))
                companions = item_rows(key, outcome.companions, usual)
                self._insert(connection, companion_scores, companions)
                limit = self.job.search.gates.repetition
                if keeps_texts(outcome, candidate, scores, self._recorded, limit):
                    self._insert(connection, texts, text_rows(outcome))
            if self._run is not None:
                self._beat(connection, self._run)
        return True

    def record_stops(self, stopped: Mapping[int, Stop]) -> None:
        """Record that candidates are not scored any further, all at once.

        Args:
            stopped: Candidate -> why; they are told in this order.

        Raises:
            ArchiveError: There is no such candidate, or it is finished: complete, failed or
                stopped. Nothing is written.
        """
        rows = []
        for number, (index, stop) in enumerate(stopped.items(), start=len(self.stops())):
            self.candidate(index)
            if index in self._finished:
                raise ArchiveError(
                    f"candidate {index} of archive {self._path} is finished, so it cannot be "
                    f"stopped ({stop.reason}); a candidate is told once",
                    candidate=index,
                )
            rows.append(stop_row(index, number, len(self._recorded) - 1, stop, utc_now()))
        with self._writing() as connection:
            self._insert(connection, stops, rows)

    def record_choice(self, candidate_index: int, rule: str) -> None:
        """Record which merge was chosen, and by which rule; the latest choice holds.

        Raises:
            ArchiveError: There is no such candidate.
        """
        self.candidate(candidate_index)
        with self._writing() as connection:
            query = self._of_search(choices, select(func.count()).select_from(choices))
            row = {
                "choice": connection.execute(query).scalar_one(),
                "candidate": candidate_index,
                "rule": rule,
                "chosen_at": utc_now(),
            }
            self._insert(connection, choices, [row])

    def close(self) -> None:
        """Close the file and let the next writer in; a second call does nothing."""
        if self._run is not None and not self._closed:
            with suppress(ArchiveError):  # the outcomes are safe; only seconds may be lost
                self.heartbeat()
        super().close()
        if self._lock is not None:
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _refresh(self) -> None:
        # Nobody else writes what this process holds the lock of: it reads only after it wrote.
        with self._refreshing:
            if self.writable and not self._stale:
                return
            self._stale = False
            try:
                super()._refresh()
            except BaseException:
                self._stale = True
                raise

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        if not self.writable:
            raise ArchiveError(f"archive {self._path} is open for reading; open it for writing")
        try:
            with self._transaction() as connection:
                yield connection
        finally:
            self._stale = True  # after the commit: a thread that reads before it sees the old

    def _beat(self, connection: Connection, run: Run) -> None:
        connection.execute(
            runs.update()
            .where(runs.c.search_id == self._search_id, runs.c.run == run.number)
            .values(heartbeat_at=utc_now(), elapsed_s=run.lasted_s)
        )

    def _insert(self, connection: Connection, table: Table, rows: Rows) -> None:
        if rows:
            connection.execute(table.insert(), [{"search_id": self._search_id, **r} for r in rows])
