"""What can be read of a search; ``optimizer.archive`` adds how it is written.

Rows never change, so proposals and outcomes that were read once are kept, and each question
reads only what is new. A reader sees every outcome recorded before it asked.

A split may be scored at once or block by block. Once its blocks hold all of its items there is an
outcome of the split, as if it had been scored at once; ``evaluations`` lists what was recorded.
"""

import json
import threading
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, Select, Table, func, select

from configs.errors import ArchiveError
from configs.evaluation import SplitName
from evaluators.blocks import WHOLE, remaining, union
from evaluators.scores import Items, ObjectiveScore, Scores, TaskScores, aggregate
from optimizer.archive_records import (
    RecordedOutcome,
    blob_to_texts,
    covered_objectives,
    decode_candidate,
    decode_items,
    decode_outcome,
    json_to_block,
    whole_outcome,
)
from optimizer.archive_schema import (
    blocks,
    choices,
    companion_scores,
    item_scores,
    objective_scores,
    outcomes,
    proposals,
    runs,
    texts,
)
from optimizer.archived_search import ArchivedSearch
from optimizer.candidate import Candidate, Observation
from workers.outcome import EvaluationKey


class ArchiveReader(ArchivedSearch):
    """The record of one search, read only; safe to use from several threads."""

    def __init__(self, path: Path, engine: Engine) -> None:
        super().__init__(path, engine)
        self._refreshing = threading.RLock()
        self._candidates: list[Candidate] = []
        self._recorded: list[RecordedOutcome] = []
        # Of whole splits: recorded so, or completed by a block.
        self._outcomes: list[RecordedOutcome] = []
        # Completed blocks of splits that are not whole yet.
        self._parts: dict[tuple[int, SplitName], list[RecordedOutcome]] = {}
        self._blocks: dict[tuple[SplitName, str], Items] = {}
        self._by_key: dict[EvaluationKey, RecordedOutcome] = {}

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

    def outcome(
        self, candidate: int, split: SplitName, block: str = WHOLE
    ) -> RecordedOutcome | None:
        """Return what came of one evaluation; None when it has not finished."""
        self._refresh()
        return self._by_key.get(EvaluationKey(candidate, split, block))

    def outcomes(self, split: SplitName) -> list[RecordedOutcome]:
        """Return the outcomes of a whole split in finishing order, failures included.

        One that was scored block by block finished with its last block.
        """
        self._refresh()
        return [outcome for outcome in self._outcomes if outcome.key.split == split]

    def evaluations(self, split: SplitName) -> list[RecordedOutcome]:
        """Return what was recorded of a split in finishing order, each block by itself."""
        self._refresh()
        return [outcome for outcome in self._recorded if outcome.key.split == split]

    def block(self, split: SplitName, name: str) -> Items:
        """Return the items of a block, in the order of their split.

        Raises:
            ArchiveError: There is no block of that name.
        """
        if name == WHOLE:
            return self.manifest.items(split)
        with self._transaction() as connection:
            return self._block(connection, split, name)

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
        return self.scored_items(candidate, split)

    def scored_items(self, candidate: int, split: SplitName) -> dict[str, TaskScores]:
        """Return all per-item scores of a candidate on a split, from however many blocks.

        Tasks come in the order of the job, items in that of their split; what was not scored
        (yet) is left out.
        """
        return self._per_item(item_scores, candidate, split)

    def companions(self, candidate: int, split: SplitName) -> dict[str, TaskScores]:
        """Return what tasks say beside their scores, for the same items; see ``companion``."""
        return self._per_item(companion_scores, candidate, split)

    def remaining(
        self, candidate: int, split: SplitName, items: Items | None = None
    ) -> dict[str, tuple[str, ...]]:
        """Return which items a candidate was not scored on yet.

        Args:
            candidate: Index of the candidate.
            split: Where.
            items: What is wanted; None is the whole split.
        """
        found = self.scored_items(candidate, split)
        wanted = self.manifest.items(split) if items is None else items
        return remaining(wanted, {task: scores.item_ids for task, scores in found.items()})

    def scores_so_far(self, split: SplitName) -> dict[int, Scores]:
        """Return candidate -> scores over the items that it was scored on, be it all or a few.

        An objective is there once every task of it has an item; ``count`` says how many.
        """
        seen = {o.key.candidate for o in self.evaluations(split) if o.scores is not None}
        found: dict[int, Scores] = self.scores(split)
        for candidate in sorted(seen - found.keys()):
            scores = self.scored_items(candidate, split)
            found[candidate] = aggregate(covered_objectives(self.job, scores), scores)
        return dict(sorted(found.items()))

    def texts(self, candidate: int, split: SplitName) -> dict[str, tuple[str, ...]]:
        """Return the generated texts of a completed evaluation, aligned with its item scores.

        Only tasks that generate have texts, and only those evaluations whose texts were kept
        (see ``Archive.record_outcome``).

        Raises:
            ArchiveError: That candidate has no scores on that split.
        """
        self._completed(candidate, split)
        with self._transaction() as connection:
            rows = connection.execute(self._of_outcome(texts, candidate, split)).all()
            parts = self._read_parts(connection, item_scores, candidate, split)
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            ids = parts[row.block][row.task].item_ids
            kept = zip(ids, blob_to_texts(row.texts_zlib), strict=True)
            found.setdefault(row.task, {}).update(kept)
        scored = self._together(parts, split)
        return {
            task: tuple(kept[item] for item in scored[task].item_ids)
            for task, kept in found.items()
            if kept.keys() >= set(scored[task].item_ids)
        }

    def weights_digest(self, candidate: int) -> str:
        """Return the digest of a candidate's merged tensors as the first worker computed it.

        Raises:
            ArchiveError: The candidate was never scored.
        """
        self.candidate(candidate)
        for outcome in self._recorded:
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
                self._recorded.append(outcome)
                self._by_key[outcome.key] = outcome
                if outcome.key.block == WHOLE:
                    self._outcomes.append(outcome)
                elif (whole := self._completed_by(connection, outcome)) is not None:
                    self._outcomes.append(whole)
                    self._by_key[whole.key] = whole

    def _completed_by(
        self, connection: Connection, last: RecordedOutcome
    ) -> RecordedOutcome | None:
        """Return the outcome of a whole split whose last items came with a block, else None."""
        candidate, split = last.key.candidate, last.key.split
        if last.scores is None or EvaluationKey(candidate, split) in self._by_key:
            return None
        parts = self._parts.setdefault((candidate, split), [])
        parts.append(last)
        done: dict[str, list[str]] = {}
        for part in parts:
            for task, ids in self._block(connection, split, part.key.block).items():
                done.setdefault(task, []).extend(ids)
        if remaining(self.manifest.items(split), done):
            return None
        found = self._together(self._read_parts(connection, item_scores, candidate, split), split)
        return whole_outcome(parts, aggregate(self.job.objectives, found))

    def _block(self, connection: Connection, split: SplitName, name: str) -> Items:
        if (split, name) not in self._blocks:
            query = select(blocks.c["items"]).where(blocks.c.split == split, blocks.c.block == name)
            found = connection.execute(self._of_search(blocks, query)).scalar_one_or_none()
            if found is None:
                raise ArchiveError(
                    f"archive {self._path} knows no block `{name}` of split `{split}`; record "
                    "a block before it is sent to a worker"
                )
            self._blocks[split, name] = json_to_block(found)
        return self._blocks[split, name]

    def _per_item(self, table: Table, candidate: int, split: SplitName) -> dict[str, TaskScores]:
        self.candidate(candidate)
        with self._transaction() as connection:
            return self._together(self._read_parts(connection, table, candidate, split), split)

    def _read_parts(
        self, connection: Connection, table: Table, candidate: int, split: SplitName
    ) -> dict[str, dict[str, TaskScores]]:
        """Read the per-item scores of a candidate: block -> task -> scores, in their order."""
        parts: dict[str, dict[str, TaskScores]] = {}
        query = self._of_search(outcomes, select(table, outcomes.c.sequence).join(outcomes))
        query = query.where(table.c.candidate == candidate, table.c.split == split)
        for row in connection.execute(query.order_by(outcomes.c.sequence)):
            usual = self.manifest.items(split)
            if row.block != WHOLE:
                usual = self._block(connection, split, row.block)
            parts.setdefault(row.block, {})[row.task] = decode_items(row._asdict(), usual)
        return parts

    def _together(
        self, parts: dict[str, dict[str, TaskScores]], split: SplitName
    ) -> dict[str, TaskScores]:
        """Put the scores of blocks together, tasks in the order of the job."""
        if WHOLE in parts:  # it alone counts, also where blocks were scored before
            found = parts[WHOLE]
        else:
            found = union(parts.values(), self.manifest.items(split))
        in_order = [spec.task for part in self.job.objectives.values() for spec in part.tasks]
        return {task: found[task] for task in in_order if task in found}

    def _new_outcomes(self, connection: Connection) -> list[RecordedOutcome]:
        is_new = outcomes.c.sequence >= len(self._recorded)
        scores: dict[EvaluationKey, Scores] = {}
        query = select(objective_scores).join(outcomes)
        for row in connection.execute(self._of_search(outcomes, query).where(is_new)):
            of_key = scores.setdefault(EvaluationKey(row.candidate, row.split, row.block), {})
            # Not row.count: a row is a tuple, and that is a method of it.
            of_key[row.objective] = ObjectiveScore(row.value, row.stderr, row._mapping["count"])
        query = self._of_search(outcomes).where(is_new).order_by(outcomes.c.sequence)
        return [
            decode_outcome(
                row._asdict(),
                scores.get(EvaluationKey(row.candidate, row.split, row.block), {}),
                self.job,
            )
            for row in connection.execute(query)
        ]
