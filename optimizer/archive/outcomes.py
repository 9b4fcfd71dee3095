"""What was recorded of candidates, in the order in which it happened.

Rows never change, so proposals, outcomes and stops that were read once are kept, and each
question reads only what is new. ``optimizer.archive.reader`` asks more of the same record.

A split may be scored at once or block by block. Once its blocks hold all of its items there is an
outcome of the split, as if it had been scored at once; ``evaluations`` lists what was recorded.
A candidate's search is *finished* by its last block, by a failure, or by a stop, once.
"""

import threading
from collections.abc import Callable
from functools import cached_property

from sqlalchemy import Connection, Table, select

from configs.errors import ArchiveError
from configs.evaluation import Objective, SplitName, TaskSpec
from evaluators.blocks import WHOLE, remaining, union
from evaluators.scores import Items, ObjectiveScore, Scores, TaskScores, aggregate
from optimizer.archive.archived_search import ArchivedSearch
from optimizer.archive.recorded_candidate import decode_candidate
from optimizer.archive.records import (
    RecordedOutcome,
    covered_objectives,
    decode_items,
    decode_outcome,
    json_to_block,
    whole_outcome,
)
from optimizer.archive.schema import (
    blocks,
    companion_scores,
    item_scores,
    objective_scores,
    outcomes,
    proposals,
    stops,
)
from optimizer.archive.seeds import WarmStart, read_warm_start
from optimizer.archive.stops import RecordedStop, decode_stop
from optimizer.archive.store import Store
from optimizer.candidate import Candidate, Observation
from workers.outcome import EvaluationKey, Signal

Part = tuple[str, Signal]
"""A block, and what was asked of it."""

Reading = Callable[[], Connection]
"""Lends a transaction to who needs one: most outcomes are taken in without."""


class OutcomeReader(ArchivedSearch):
    """Proposals, outcomes and stops of one search; safe to use from several threads."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self._refreshing = threading.RLock()
        self._candidates: list[Candidate] = []
        self._recipe_ids: list[str] = []
        self._recorded: list[RecordedOutcome] = []
        # Of whole splits: recorded so, completed by a block, or failed on a block.
        self._outcomes: list[RecordedOutcome] = []
        # Completed blocks of splits that are not whole yet.
        self._parts: dict[tuple[int, SplitName], list[RecordedOutcome]] = {}
        self._blocks: dict[tuple[SplitName, str], Items] = {}
        self._by_key: dict[EvaluationKey, RecordedOutcome] = {}
        self._stops: dict[int, RecordedStop] = {}
        self._observations: list[Observation] = []
        self._finished: set[int] = set()
        # Proposed by the search and not finished, by index.
        self._unfinished: dict[int, None] = {}
        self._warm_start: WarmStart | None = None
        self._began_cold = False
        self._finish_sequences: list[int] = []

    def candidates(self) -> list[Candidate]:
        """Return every proposal, by index."""
        self._refresh()
        return list(self._candidates)

    def recipe_ids(self) -> list[str]:
        """Return the id of every proposal's recipe, by index; to compute them again takes long."""
        self._refresh()
        return list(self._recipe_ids)

    def candidate(self, index: int) -> Candidate:
        """Return one proposal.

        Raises:
            ArchiveError: There is no candidate of that index.
        """
        self._refresh()
        if not 0 <= index < len(self._candidates):
            raise ArchiveError(
                f"archive {self.place} has no candidate {index}; it holds "
                f"{len(self._candidates)}, counted from 0",
                candidate=index,
            )
        return self._candidates[index]

    def outcome(
        self, candidate: int, split: SplitName, block: str = WHOLE, signal: Signal = "scores"
    ) -> RecordedOutcome | None:
        """Return what came of one evaluation; None when it has not finished."""
        self._refresh()
        return self._by_key.get(EvaluationKey(candidate, split, block, signal))

    def outcomes(self, split: SplitName) -> list[RecordedOutcome]:
        """Return the outcomes of a whole split in finishing order, failures included.

        One that was scored block by block finished with its last block, or with the first that
        failed; candidates that were stopped have none.
        """
        self._refresh()
        return [outcome for outcome in self._outcomes if outcome.key.split == split]

    def evaluations(self, split: SplitName | None = None) -> list[RecordedOutcome]:
        """Return what was recorded of a split in finishing order, each block by itself.

        Args:
            split: Which; None takes all of them.
        """
        self._refresh()
        return [outcome for outcome in self._recorded if split in (None, outcome.key.split)]

    def stops(self) -> dict[int, RecordedStop]:
        """Return why candidates were stopped before all search items, by candidate."""
        self._refresh()
        return dict(self._stops)

    def observations(self) -> list[Observation]:
        """Return what a strategy has learnt: one observation per finished candidate, in order."""
        self._refresh()
        return list(self._observations)

    def seeds(self) -> list[Observation]:
        """Return what was known before the first proposal, in the order of telling."""
        found = self.warm_start()
        return [] if found is None else [seed.observation for seed in found.seeds]

    def warm_start(self) -> WarmStart | None:
        """Return what the search was started from; None where it began from nothing."""
        if self._warm_start is None and not self._began_cold:
            # Once there is a proposal, none can come.
            began = bool(self.candidates())
            with self._transaction() as connection:
                self._warm_start = read_warm_start(connection, self._search_id)
            self._began_cold = began and self._warm_start is None
        return self._warm_start

    def finish_sequences(self) -> list[int]:
        """Return, for each observation, the number of the last outcome before it was one."""
        self._refresh()
        return list(self._finish_sequences)

    def preview(self, candidate: int) -> Observation:
        """Return what is known of a candidate from its companions alone."""
        found = self.candidate(candidate)
        with self._transaction() as connection:
            return Observation(found, {}, self._companion_means(lambda: connection, candidate))

    def is_finished(self, candidate: int) -> bool:
        """Whether a candidate's search is over: complete, failed or stopped."""
        self._refresh()
        return candidate in self._finished

    def block(self, split: SplitName, name: str) -> Items:
        """Return the items of a block, in the order of their split.

        Raises:
            ArchiveError: There is no block of that name.
        """
        if name == WHOLE:
            return self.manifest.items(split)
        with self._transaction() as connection:
            return self._block(connection, split, name)

    def _pending_after(self, seen: int) -> list[int]:
        """Return which candidates were proposed, but not among the first ``seen`` told."""
        told = max(0, seen - len(self.seeds()))
        untold = [observation.candidate for observation in self._observations[told:]]
        return sorted({*self._unfinished, *(c.index for c in untold if not c.is_attribution)})

    def _refresh(self) -> None:
        """Read what was recorded since the last time."""
        with self._refreshing, self._transaction() as connection:
            first = len(self._candidates)
            query = self._of_search(proposals).where(proposals.c.candidate >= first)
            for row in connection.execute(query.order_by(proposals.c.candidate)).all():
                # Who goes on with a search goes by all of it.
                candidate = decode_candidate(row._mapping, checked=self._store.writable)
                self._propose(candidate, row.recipe_id)
            waiting = self._new_stops(connection)
            for outcome in self._new_outcomes(connection):
                while waiting and waiting[0].sequence < outcome.sequence:
                    self._stop(lambda: connection, waiting.pop(0))
                self._add(lambda: connection, outcome)
            for stop in waiting:
                self._stop(lambda: connection, stop)

    def _propose(self, candidate: Candidate, recipe_id: str) -> None:
        """Take a proposal in."""
        self._candidates.append(candidate)
        self._recipe_ids.append(recipe_id)
        if not candidate.is_attribution:
            self._unfinished[candidate.index] = None

    def _add(self, reading: Reading, outcome: RecordedOutcome) -> None:
        """Take an outcome in, and see what it completes."""
        key = outcome.key
        self._recorded.append(outcome)
        self._by_key[key] = outcome
        failed = outcome.scores is None
        whole: RecordedOutcome | None = None
        if key.signal == "scores" and key.block == WHOLE:
            whole = outcome
        elif not failed and key.signal == "scores":
            whole = self._completed_by(reading, outcome)
        elif failed and key.split == "search" and key.candidate not in self._finished:
            whole = outcome
        if whole is None:
            return
        self._outcomes.append(whole)
        self._by_key[whole.key] = whole
        if key.split == "search":
            self._finish(reading, key.candidate, whole.scores)

    def _stop(self, reading: Reading, recorded: RecordedStop) -> None:
        self._stops[recorded.candidate] = recorded
        self._finish(reading, recorded.candidate, recorded.stop.scores, recorded.stop.reason)

    def _finish(
        self, reading: Reading, candidate: int, scores: Scores | None, stopped: str = ""
    ) -> None:
        if candidate in self._finished:
            return
        self._finished.add(candidate)
        self._unfinished.pop(candidate, None)
        self._finish_sequences.append(len(self._recorded) - 1)
        found: Scores = {}
        if scores is not None:
            found = self._companion_means(reading, candidate)
        self._observations.append(Observation(self._candidates[candidate], scores, found, stopped))

    @cached_property
    def _with_companions(self) -> dict[str, Objective]:
        """The objectives whose tasks all have companions."""
        return {
            name: objective
            for name, objective in self.job.objectives.items()
            if all(isinstance(spec, TaskSpec) and spec.companion for spec in objective.tasks)
        }

    def _companion_means(self, reading: Reading, candidate: int) -> Scores:
        """Aggregate the companions of the objectives whose tasks all have one."""
        if not self._with_companions:
            return {}
        parts = self._read_parts(reading(), companion_scores, candidate, "search")
        scores = self._together(parts, "search")
        return aggregate(covered_objectives(self._with_companions, scores), scores)

    def _completed_by(self, reading: Reading, last: RecordedOutcome) -> RecordedOutcome | None:
        """Return the outcome of a whole split whose last items came with a block, else None."""
        candidate, split = last.key.candidate, last.key.split
        if EvaluationKey(candidate, split) in self._by_key:
            return None
        parts = self._parts.setdefault((candidate, split), [])
        parts.append(last)
        done: dict[str, list[str]] = {}
        for part in parts:
            for task, ids in self._block(reading(), split, part.key.block).items():
                done.setdefault(task, []).extend(ids)
        if remaining(self.manifest.items(split), done):
            return None
        found = self._together(self._read_parts(reading(), item_scores, candidate, split), split)
        return whole_outcome(parts, aggregate(self.job.objectives, found))

    def _block(self, connection: Connection, split: SplitName, name: str) -> Items:
        if (split, name) not in self._blocks:
            query = select(blocks.c["items"]).where(blocks.c.split == split, blocks.c.block == name)
            found = connection.execute(self._of_search(blocks, query)).scalar_one_or_none()
            if found is None:
                raise ArchiveError(
                    f"archive {self.place} knows no block `{name}` of split `{split}`; record "
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
    ) -> dict[Part, dict[str, TaskScores]]:
        """Read the per-item scores of a candidate: part -> task -> scores, in their order."""
        parts: dict[Part, dict[str, TaskScores]] = {}
        query = self._of_search(outcomes, select(table, outcomes.c.sequence).join(outcomes))
        query = query.where(table.c.candidate == candidate, table.c.split == split)
        for row in connection.execute(query.order_by(outcomes.c.sequence)):
            usual = self.manifest.items(split)
            if row.block != WHOLE:
                usual = self._block(connection, split, row.block)
            part = parts.setdefault((row.block, row.signal), {})
            part[row.task] = decode_items(row._asdict(), usual)
        return parts

    def _together(
        self, parts: dict[Part, dict[str, TaskScores]], split: SplitName
    ) -> dict[str, TaskScores]:
        """Put the scores of blocks together, tasks in the order of the job.

        What was scored with the whole split counts before what blocks say of the same items.
        """
        by_size = sorted(parts, key=lambda part: part[0] != WHOLE)
        if len(parts) == 1 and by_size[0][0] == WHOLE:
            found = parts[by_size[0]]
        else:
            found = union([parts[part] for part in by_size], self.manifest.items(split))
        in_order = [spec.task for part in self.job.objectives.values() for spec in part.tasks]
        return {task: found[task] for task in in_order if task in found}

    def _new_stops(self, connection: Connection) -> list[RecordedStop]:
        query = self._of_search(stops).where(stops.c.stop >= len(self._stops))
        rows = connection.execute(query.order_by(stops.c.stop))
        return [decode_stop(row._asdict()) for row in rows]

    def _new_outcomes(self, connection: Connection) -> list[RecordedOutcome]:
        is_new = outcomes.c.sequence >= len(self._recorded)
        scores: dict[int, Scores] = {}
        columns = (objective_scores.c[name] for name in ("objective", "value", "stderr", "count"))
        query = select(outcomes.c.sequence, *columns).join_from(outcomes, objective_scores)
        scored = self._of_search(outcomes, query).where(is_new)
        for sequence, objective, value, stderr, count in connection.execute(scored).all():
            found = ObjectiveScore(value, stderr, count)
            scores.setdefault(sequence, {})[objective] = found
        query = self._of_search(outcomes).where(is_new).order_by(outcomes.c.sequence)
        return [
            decode_outcome(row._mapping, scores.get(row.sequence, {}), self.job)
            for row in connection.execute(query).all()
        ]
