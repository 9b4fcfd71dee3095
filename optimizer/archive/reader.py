"""What can be read of a search; ``optimizer.archive.archive`` adds how it is written.

Proposals, outcomes and their order are in ``optimizer.archive.outcomes``; here is what is asked of
a candidate: its scores, items, texts and tensors. A reader sees every outcome recorded before it
asked.
"""

import json
from typing import Any, NamedTuple

from sqlalchemy import Select, Table, func, select

from configs.errors import ArchiveError
from configs.evaluation import SplitName
from evaluators.blocks import remaining
from evaluators.scores import Items, Scores, TaskScores, aggregate
from optimizer.archive.losses import decode_loss
from optimizer.archive.outcomes import OutcomeReader
from optimizer.archive.records import RecordedOutcome, blob_to_texts, covered_objectives
from optimizer.archive.run import RecordedRun
from optimizer.archive.schema import (
    choices,
    companion_scores,
    item_scores,
    losses,
    outcomes,
    proposals,
    runs,
    stops,
    texts,
)
from optimizer.candidate import SAMPLED
from workers.outcome import Signal
from workers.toll import Loss


class ArchiveCounters(NamedTuple):
    """How many rows an archive has of what is only ever added: equal counts, equal record."""

    proposals: int
    outcomes: int
    stops: int
    choices: int


class ArchiveReader(OutcomeReader):
    """The record of one search, read only; safe to use from several threads."""

    def counters(self) -> ArchiveCounters:
        """Count what is recorded, by indexes: does an answer that was kept still hold?"""
        numbers = (
            proposals.c.candidate, outcomes.c.sequence, stops.c.stop, choices.c.choice
        )  # fmt: skip
        last = [
            select(func.coalesce(func.max(number), -1))
            .where(number.table.c.search_id == self._search_id)
            .scalar_subquery()
            for number in numbers
        ]
        with self._transaction() as connection:
            found = connection.execute(select(*last)).one()
        return ArchiveCounters(*(int(number) + 1 for number in found))

    @property
    def elapsed_s(self) -> float:
        """Wall seconds that the search took, summed over its runs up to their last heartbeat."""
        total = select(func.coalesce(func.sum(runs.c.elapsed_s), 0.0))
        with self._transaction() as connection:
            return float(connection.execute(self._of_search(runs, total)).scalar_one())

    def runs(self) -> list[RecordedRun]:
        """Return the runs of the search in their order: its start, then one per resume."""
        columns = (runs.c.started_at, runs.c.elapsed_s, runs.c.mergefront_version)
        query = self._of_search(runs, select(*columns)).order_by(runs.c.run)
        with self._transaction() as connection:
            return [RecordedRun(*row) for row in connection.execute(query)]

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

    def scores(self, split: SplitName) -> dict[int, Scores]:
        """Return the scores of every completed candidate of a split, by candidate index.

        Of those that were scored on a sample of the search items, they are what the sample says of
        all of them.
        """
        found = self._completed_scores(split)
        if split == "search":
            for candidate, recorded in self.stops().items():
                if recorded.stop.reason == SAMPLED and recorded.stop.scores is not None:
                    found[candidate] = recorded.stop.scores
        return dict(sorted(found.items()))

    def _completed_scores(self, split: SplitName) -> dict[int, Scores]:
        return {
            outcome.key.candidate: outcome.scores
            for outcome in self.outcomes(split)
            if outcome.scores is not None
        }

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
        self,
        candidate: int,
        split: SplitName,
        items: Items | None = None,
        signal: Signal = "scores",
    ) -> dict[str, tuple[str, ...]]:
        """Return which items a candidate was not scored on yet.

        Args:
            candidate: Index of the candidate.
            split: Where.
            items: What is wanted; None is the whole split.
            signal: ``companions``: of which items the companions are not known yet.
        """
        table = item_scores if signal == "scores" else companion_scores
        found = self._per_item(table, candidate, split)
        wanted = self.manifest.items(split) if items is None else items
        return remaining(wanted, {task: scores.item_ids for task, scores in found.items()})

    def scores_so_far(self, split: SplitName) -> dict[int, Scores]:
        """Return candidate -> scores over the items that it was scored on, be it all or a few.

        An objective is there once every task of it has an item; ``count`` says how many.
        """
        seen = {
            outcome.key.candidate
            for outcome in self.evaluations(split)
            if outcome.scores is not None and outcome.key.signal == "scores"
        }
        found = self._completed_scores(split)
        for candidate in sorted(seen - found.keys()):
            scores = self.scored_items(candidate, split)
            found[candidate] = aggregate(covered_objectives(self.job.objectives, scores), scores)
        return dict(sorted(found.items()))

    def texts(self, candidate: int, split: SplitName) -> dict[str, tuple[str, ...]]:
        """Return the generated texts of a completed evaluation, aligned with its item scores.

        Only tasks that generate have texts, and only those evaluations whose texts were kept
        (see ``Archive.record_outcome``).

        Raises:
            ArchiveError: That candidate has no scores on that split.
        """
        self._completed(candidate, split)
        return self.texts_so_far(candidate, split)

    def texts_so_far(self, candidate: int, split: SplitName) -> dict[str, tuple[str, ...]]:
        """Return the texts of all items that a candidate was scored on, be it all or a few.

        A task is left out where the texts of one of its items were not kept.
        """
        return self.scores_and_texts(candidate, split)[1]

    def scores_and_texts(
        self, candidate: int, split: SplitName
    ) -> tuple[dict[str, TaskScores], dict[str, tuple[str, ...]]]:
        """Return what ``scored_items`` and ``texts_so_far`` do, both of one moment."""
        self.candidate(candidate)
        with self._transaction() as connection:
            rows = connection.execute(self._of_outcome(texts, candidate, split)).all()
            parts = self._read_parts(connection, item_scores, candidate, split)
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            ids = parts[row.block, row.signal][row.task].item_ids
            kept = zip(ids, blob_to_texts(row.texts_zlib), strict=True)
            found.setdefault(row.task, {}).update(kept)
        scored = self._together(parts, split)
        return scored, {
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
            f"candidate {candidate} of archive {self.place} was never scored, so there is no "
            "digest of its tensors",
            candidate=candidate,
        )

    def losses(self) -> list[Loss]:
        """Return the workers that evaluations took, over all runs, in their order."""
        query = self._of_search(losses).order_by(losses.c.loss)
        with self._transaction() as connection:
            return [decode_loss(row._mapping) for row in connection.execute(query)]

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
                f"candidate {candidate} of archive {self.place} has no scores on split "
                f"`{split}`: {found}",
                candidate=candidate,
                split=split,
            )
        return outcome
