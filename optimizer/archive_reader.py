"""What can be read from an archive; ``optimizer.archive`` adds how it is written.

Rows never change, so proposals and outcomes that were read once are kept, and each question
reads only what is new. A reader sees every outcome recorded before it asked.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, Row, Select, Table, func, select

from configs.errors import ArchiveError
from configs.schema import JobConfig, SplitName
from evaluators.scores import ObjectiveScore, Scores, TaskScores
from optimizer.archive_records import (
    RecordedOutcome,
    blob_to_item_scores,
    blob_to_texts,
    decode_candidate,
    decode_outcome,
    json_to_job,
    json_to_sources,
)
from optimizer.archive_schema import (
    choices,
    item_scores,
    objective_scores,
    outcomes,
    proposals,
    runs,
    searches,
    texts,
)
from optimizer.archive_sqlite import storage_errors
from optimizer.candidate import Candidate, Observation
from workers.outcome import EvaluationKey

if TYPE_CHECKING:
    from evaluators.manifest import Manifest
    from workers.sources import Sources

SEARCH_ID = 1
"""An archive file holds one search."""


class ArchiveReader:
    """The record of one search, read only; safe to use from several threads."""

    def __init__(self, path: Path, engine: Engine) -> None:
        self._path = path
        self._engine = engine
        self._search_id = SEARCH_ID
        self._closed = False
        self._refreshing = threading.RLock()
        self._candidates: list[Candidate] = []
        self._outcomes: list[RecordedOutcome] = []
        self._by_key: dict[EvaluationKey, RecordedOutcome] = {}
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

    @property
    def elapsed_s(self) -> float:
        """Wall seconds that the search took, summed over its runs up to their last heartbeat."""
        total = select(func.coalesce(func.sum(runs.c.elapsed_s), 0.0))
        with self._transaction() as connection:
            return float(connection.execute(self._of_search(runs, total)).scalar_one())

    def candidates(self) -> list[Candidate]:
        """Return every proposal, by index."""
        self._refresh()
        return list(self._candidates)

    def candidate(self, index: int) -> Candidate:
        """Return one proposal.

        Raises:
            ArchiveError: There is no candidate of that index.
        """
        self._refresh()
        if not 0 <= index < len(self._candidates):
            raise ArchiveError(
                f"archive {self._path} has no candidate {index}; it holds "
                f"{len(self._candidates)}, counted from 0",
                candidate=index,
            )
        return self._candidates[index]

    def pending(self, index: int) -> tuple[int, ...]:
        """Return which candidates were proposed but not told yet when one was proposed.

        Together with ``Candidate.seen`` this is all that its proposal could depend on.
        """
        self.candidate(index)
        query = select(proposals.c.pending).where(proposals.c.candidate == index)
        with self._transaction() as connection:
            return tuple(
                json.loads(connection.execute(self._of_search(proposals, query)).scalar_one())
            )

    def outcome(self, candidate: int, split: SplitName) -> RecordedOutcome | None:
        """Return what came of one evaluation; None when it has not finished."""
        self._refresh()
        return self._by_key.get(EvaluationKey(candidate, split))

    def outcomes(self, split: SplitName) -> list[RecordedOutcome]:
        """Return the outcomes of a split in finishing order, failures included."""
        self._refresh()
        return [outcome for outcome in self._outcomes if outcome.key.split == split]

    def observations(self) -> list[Observation]:
        """Return what a strategy has learnt: search outcomes in finishing order."""
        return [
            Observation(self._candidates[outcome.key.candidate], outcome.scores)
            for outcome in self.outcomes("search")
        ]

    def scores(self, split: SplitName) -> dict[int, Scores]:
        """Return the scores of every completed candidate of a split, by candidate index."""
        completed = {
            outcome.key.candidate: outcome.scores
            for outcome in self.outcomes(split)
            if outcome.scores is not None
        }
        return dict(sorted(completed.items()))

    def task_scores(self, candidate: int, split: SplitName) -> dict[str, TaskScores]:
        """Return the per-item scores of a completed evaluation, task by task.

        Raises:
            ArchiveError: That candidate has no scores on that split.
        """
        self._completed(candidate, split)
        with self._transaction() as connection:
            rows = connection.execute(self._of_outcome(item_scores, candidate, split)).all()
        found = {
            row.task: blob_to_item_scores(
                row.task,
                self.manifest.items(split)[row.task]
                if row.item_ids is None
                else json.loads(row.item_ids),
                row.values_f64,
            )
            for row in rows
        }
        in_order = [spec.task for part in self.job.objectives.values() for spec in part.tasks]
        return {task: found[task] for task in (*in_order, *sorted(found.keys() - {*in_order}))}

    def texts(self, candidate: int, split: SplitName) -> dict[str, tuple[str, ...]]:
        """Return the generated texts of a completed evaluation, aligned with its item scores.

        Only tasks that generate have texts.

        Raises:
            ArchiveError: That candidate has no scores on that split.
        """
        self._completed(candidate, split)
        with self._transaction() as connection:
            rows = connection.execute(self._of_outcome(texts, candidate, split)).all()
        return {row.task: blob_to_texts(row.texts_zlib) for row in rows}

    def weights_digest(self, candidate: int) -> str:
        """Return the digest of a candidate's merged tensors as the first worker computed it.

        Raises:
            ArchiveError: The candidate was never scored.
        """
        self.candidate(candidate)
        for outcome in self._outcomes:
            if outcome.key.candidate == candidate and outcome.weights_digest is not None:
                return outcome.weights_digest
        raise ArchiveError(
            f"candidate {candidate} of archive {self._path} was never scored, so there is no "
            "digest of its tensors",
            candidate=candidate,
        )

    def choice(self) -> int | None:
        """Return the candidate that was chosen last; None when none was."""
        query = select(choices.c.candidate).order_by(choices.c.choice.desc()).limit(1)
        with self._transaction() as connection:
            return connection.execute(self._of_search(choices, query)).scalar_one_or_none()

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

    def _of_outcome(self, table: Table, candidate: int, split: SplitName) -> Select[Any]:
        return self._of_search(table).where(table.c.candidate == candidate, table.c.split == split)

    def _completed(self, candidate: int, split: SplitName) -> RecordedOutcome:
        outcome = self.outcome(candidate, split)
        if outcome is None or outcome.scores is None:
            found = "it was not evaluated there" if outcome is None else "its evaluation failed"
            raise ArchiveError(
                f"candidate {candidate} of archive {self._path} has no scores on split "
                f"`{split}`: {found}",
                candidate=candidate,
                split=split,
            )
        return outcome

    def _refresh(self) -> None:
        """Read what was recorded since the last time."""
        with self._refreshing, self._transaction() as connection:
            first = len(self._candidates)
            query = self._of_search(proposals).where(proposals.c.candidate >= first)
            self._candidates.extend(
                decode_candidate(row._asdict())
                for row in connection.execute(query.order_by(proposals.c.candidate))
            )
            for outcome in self._new_outcomes(connection):
                self._outcomes.append(outcome)
                self._by_key[outcome.key] = outcome

    def _new_outcomes(self, connection: Connection) -> list[RecordedOutcome]:
        is_new = outcomes.c.sequence >= len(self._outcomes)
        scores: dict[EvaluationKey, Scores] = {}
        query = select(objective_scores).join(outcomes)
        for row in connection.execute(self._of_search(outcomes, query).where(is_new)):
            of_key = scores.setdefault(EvaluationKey(row.candidate, row.split), {})
            # Not row.count: a row is a tuple, and that is a method of it.
            of_key[row.objective] = ObjectiveScore(row.value, row.stderr, row._mapping["count"])
        query = self._of_search(outcomes).where(is_new).order_by(outcomes.c.sequence)
        return [
            decode_outcome(
                row._asdict(), scores.get(EvaluationKey(row.candidate, row.split)), self.job
            )
            for row in connection.execute(query)
        ]
