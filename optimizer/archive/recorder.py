"""What is written into an archive, and what is refused.

Each method is one transaction, which is on the disk when it returns; ``optimizer.archive.archive``
says who may call them.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from sqlalchemy import Connection, Table, func, select

from configs.errors import ArchiveError
from configs.evaluation import SplitName
from evaluators.blocks import WHOLE, block_name, remaining
from evaluators.scores import Items
from optimizer.archive.checks import checked_block, checked_scores
from optimizer.archive.losses import loss_row
from optimizer.archive.outcomes import Reading
from optimizer.archive.reader import ArchiveReader
from optimizer.archive.records import (
    Row,
    Rows,
    blob_to_floats,
    block_to_json,
    decode_outcome,
    floats_to_blob,
    item_rows,
    objective_rows,
    outcome_row,
    proposal_row,
    text_rows,
)
from optimizer.archive.schema import (
    blocks,
    choices,
    companion_scores,
    item_scores,
    losses,
    objective_scores,
    outcomes,
    proposals,
    seeds,
    stops,
    texts,
    utc_now,
    warm_starts,
)
from optimizer.archive.seeds import WarmStart, seed_rows, warm_start_row
from optimizer.archive.stops import Stop, decode_stop, stop_row
from optimizer.archive.store import Store
from optimizer.archive.texts import KeptTexts
from optimizer.candidate import Candidate
from workers.outcome import Completed, Outcome
from workers.toll import Loss


class ArchiveRecorder(ArchiveReader):
    """The record of one search, open for writing or not; one thread records."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._stale = True
        self._texts = KeptTexts(self.job.search.gates.repetition)

    @property
    def writable(self) -> bool:
        """Whether this process may record."""
        return self._store.writable

    def record_proposal(self, candidate: Candidate) -> None:
        """Record a candidate before it is sent to a worker; it is on the disk on return.

        Raises:
            ArchiveError: It is not the next candidate, or has seen more than is recorded.
        """
        self._refresh()
        known, told = len(self._candidates), len(self.seeds()) + len(self._observations)
        if candidate.index != known:
            raise ArchiveError(
                f"archive {self.place} expects candidate {known} next, got "
                f"{candidate.index}: proposals are recorded once each, in the order of their index",
                candidate=candidate.index,
            )
        if not 0 <= candidate.seen <= told:
            raise ArchiveError(
                f"candidate {candidate.index} claims to have seen {candidate.seen} finished "
                f"candidates, but archive {self.place} holds {told}: record outcomes before "
                "telling them",
                candidate=candidate.index,
            )
        row = proposal_row(candidate, self._pending_after(candidate.seen), utc_now())
        with self._writing() as connection:
            self._insert(connection, proposals, [row])
        with self._learning():
            genotype = blob_to_floats(floats_to_blob(candidate.genotype))
            self._propose(replace(candidate, genotype=genotype), str(row["recipe_id"]))

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
        if (split, name) in self._blocks:
            return name
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
                if self._texts.keeps(outcome, candidate, scores, self._recorded):
                    self._insert(connection, texts, text_rows(outcome))
            self._beat(connection)
        with self._learning() as reading:
            self._add(reading, decode_outcome(row, scores, self.job))
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
                    f"candidate {index} of archive {self.place} is finished, so it cannot be "
                    f"stopped ({stop.reason}); a candidate is told once",
                    candidate=index,
                )
            rows.append(stop_row(index, number, len(self._recorded) - 1, stop, utc_now()))
        with self._writing() as connection:
            self._insert(connection, stops, rows)
        with self._learning() as reading:
            for row in rows:
                self._stop(reading, decode_stop(row))

    def record_loss(self, loss: Loss) -> None:
        """Record that an evaluation took a worker, or was forgiven one; on the disk on return.

        Raises:
            ArchiveError: There is no such candidate.
        """
        self.candidate(loss.key.candidate)
        with self._writing() as connection:
            query = self._of_search(losses, select(func.count()).select_from(losses))
            number = int(connection.execute(query).scalar_one())
            self._insert(connection, losses, [loss_row(loss, number, utc_now())])

    def record_warm_start(self, start: WarmStart) -> None:
        """Record what a search knows before its first proposal; it is on the disk on return.

        Raises:
            ArchiveError: Something was proposed already, or it was started from an archive.
        """
        if self.candidates() or self.warm_start() is not None:
            raise ArchiveError(
                f"archive {self.place} has begun already; a search is started from another "
                "archive before its first proposal, once"
            )
        with self._writing() as connection:
            self._insert(connection, warm_starts, [warm_start_row(start, utc_now())])
            self._insert(connection, seeds, seed_rows(start))

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

    def _refresh(self) -> None:
        self._refuse_closed()
        # Nobody else writes what this process may write, so it reads it once.
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
        self._refuse_closed()
        try:
            with self._store.writing() as connection:
                yield connection
        except BaseException:
            self._stale = True  # it may have been written all the same
            raise

    @contextmanager
    def _learning(self) -> Iterator[Reading]:
        """Take in what was just written, as reading it would; other threads see it from now on."""
        with self._refreshing, ExitStack() as stack:
            opened: list[Connection] = []

            def reading() -> Connection:
                if not opened:
                    opened.append(stack.enter_context(self._transaction()))
                return opened[0]

            try:
                yield reading
            except BaseException:
                self._stale = True
                raise

    def _beat(self, connection: Connection) -> None:
        """Say, in a transaction that writes something else, that the search goes on."""

    def _insert(self, connection: Connection, table: Table, rows: Rows) -> None:
        if rows:
            connection.execute(table.insert(), [{"search_id": self._search_id, **r} for r in rows])
