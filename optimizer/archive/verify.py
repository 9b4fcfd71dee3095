"""Checking an archive: does everything in it fit together?

Nothing is changed, and nothing is trusted: rows are decoded and computed again. What the database
itself guarantees (a file that is whole, rows that refer to rows) is asked of it first.
"""

import json
import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from sqlalchemy import Connection, ForeignKeyConstraint, Select, Table, and_, func, select

from configs.errors import ArchiveError, Problem
from configs.evaluation import SplitName
from configs.place import Place
from evaluators.blocks import WHOLE, block_name, ordered
from evaluators.scores import Items, ObjectiveScore, Scores, TaskScores, aggregate
from optimizer.archive.archived_search import ArchivedSearch
from optimizer.archive.copy import copied_tables
from optimizer.archive.recorded_candidate import decode_candidate
from optimizer.archive.records import (
    blob_to_texts,
    covered_objectives,
    decode_items,
    json_to_block,
)
from optimizer.archive.schema import (
    blocks,
    companion_scores,
    item_scores,
    objective_scores,
    outcomes,
    proposals,
    seeds,
    stops,
    texts,
)
from optimizer.archive.seeds import read_warm_start
from optimizer.archive.stops import decode_stop
from optimizer.archive.store import AnyPlace, backend_of

_DECODING = (ArchiveError, ValueError, KeyError, TypeError, zlib.error)
"""What rows raise that cannot be read."""

# Sums of the same numbers differ in their last bits between machines.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12

_KEY = ("candidate", "split", "block", "signal")
Key = tuple[int, str, str, str]


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found in an archive: rows by table, and every problem."""

    place: Place
    rows: dict[str, int]
    problems: list[Problem] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether there is no problem."""
        return not self.problems


def verify_archive(place: AnyPlace) -> Verified:
    """Check an archive.

    Raises:
        ArchiveError: It cannot be opened, so that nothing in it can be checked.
    """
    search = _Verifier(backend_of(place).open(writable=False))
    try:
        return search.verify()
    finally:
        search.close()


class _Verifier(ArchivedSearch):
    """Reads all rows of a search, in one transaction."""

    def verify(self) -> Verified:
        """Return what was found."""
        problems = [Problem("file", text) for text in self._store.damage()]
        with self._transaction() as connection:
            rows = {table.name: self._count(connection, table) for table in copied_tables()}
            self._items: dict[tuple[str, str], Items] = {}
            for check in (
                self._references,
                self._proposals,
                self._seeds,
                self._blocks,
                self._outcomes,
                self._scores,
                self._companions,
                self._texts,
                self._stops,
            ):
                problems += check(connection)
        return Verified(self.place, rows, problems)

    def _count(self, connection: Connection, table: Table) -> int:
        query = self._of_search(table, select(func.count()).select_from(table))
        return int(connection.execute(query).scalar_one())

    def _references(self, connection: Connection) -> Iterator[Problem]:
        """Rows that refer to rows that are not there."""
        for table in copied_tables():
            for constraint in table.foreign_key_constraints:
                orphans = _orphans(constraint)
                count = connection.execute(self._of_search(table, orphans)).scalar_one()
                if count:
                    name = constraint.referred_table.name
                    yield Problem(table.name, f"{count} rows refer to no row of `{name}`")

    def _proposals(self, connection: Connection) -> Iterator[Problem]:
        """Recipes that are not those of their ids, and gaps in the numbers."""
        query = self._of_search(proposals).order_by(proposals.c.candidate)
        for number, row in enumerate(connection.execute(query)):
            where = f"candidate {row.candidate}"
            if row.candidate != number:
                yield Problem(where, f"comes where candidate {number} should; some are missing")
                return
            try:
                candidate = decode_candidate(row._asdict(), checked=True)
            except _DECODING as error:
                yield Problem(where, _told(error))
                continue
            if not np.isfinite(candidate.genotype).all():
                yield Problem(where, "its genotype holds what is no number")

    def _seeds(self, connection: Connection) -> Iterator[Problem]:
        try:
            found = read_warm_start(connection, self._search_id)
        except _DECODING as error:
            yield Problem(seeds.name, _told(error))
            return
        count = self._count(connection, seeds)
        if count != (0 if found is None else len(found.seeds)):
            yield Problem(seeds.name, f"there are {count} seeds, and no warm start of so many")

    def _blocks(self, connection: Connection) -> Iterator[Problem]:
        """Blocks that are not named by what is in them, or hold items of no split."""
        for row in connection.execute(self._of_search(blocks)):
            where = f"block {row.block} of {row.split}"
            try:
                items = json_to_block(row._mapping["items"])
                if block_name(items) != row.block:
                    yield Problem(where, f"its items are those of block {block_name(items)}")
                ordered(items, self.manifest.items(row.split))
            except _DECODING as error:
                yield Problem(where, _told(error))
                continue
            self._items[row.split, row.block] = items

    def _outcomes(self, connection: Connection) -> Iterator[Problem]:
        """Two outcomes of one evaluation, a gap in their order, or none of the parts of one."""
        seen: set[Key] = set()
        scored = self._keys(connection, objective_scores), self._keys(connection, item_scores)
        companions = self._keys(connection, companion_scores)
        query = self._of_search(outcomes).order_by(outcomes.c.sequence)
        for number, row in enumerate(connection.execute(query)):
            key = _key(row._mapping)
            where = _where(key)
            if key in seen:
                yield Problem(where, "has two outcomes")
            seen.add(key)
            if row.sequence != number:
                yield Problem(where, f"is outcome {row.sequence} where {number} should come")
                return
            parts = (companions,) if row.signal == "companions" else scored
            if row.status == "failed" and (row.message is None or any(key in p for p in parts)):
                yield Problem(where, "failed, but has scores, or does not say why")
            if row.status == "completed" and not all(key in part for part in parts):
                yield Problem(where, "is completed, but has no scores")

    def _scores(self, connection: Connection) -> Iterator[Problem]:
        """Item scores that cannot be read, or do not add up to what was recorded."""
        recorded: dict[Key, Scores] = {}
        for row in connection.execute(self._of_search(objective_scores)):
            score = ObjectiveScore(row.value, row.stderr, row._mapping["count"])
            recorded.setdefault(_key(row._mapping), {})[row.objective] = score
        by_key: dict[Key, dict[str, TaskScores]] = {}
        for key, part in self._per_item(connection, item_scores):
            if isinstance(part, Problem):
                yield part
            else:
                by_key.setdefault(key, {})[part.task] = part
        for key, parts in by_key.items():
            found = aggregate(covered_objectives(self.job.objectives, parts), parts)
            if difference := _difference(recorded.get(key, {}), found):
                yield Problem(_where(key), difference)

    def _companions(self, connection: Connection) -> Iterator[Problem]:
        found = self._per_item(connection, companion_scores)
        yield from (part for _, part in found if isinstance(part, Problem))

    def _texts(self, connection: Connection) -> Iterator[Problem]:
        """Texts that cannot be read."""
        for row in connection.execute(self._of_search(texts)):
            try:
                blob_to_texts(row.texts_zlib)
            except _DECODING as error:
                yield Problem(_where(_key(row._mapping)), f"texts of `{row.task}`: {_told(error)}")

    def _stops(self, connection: Connection) -> Iterator[Problem]:
        last = self._count(connection, outcomes) - 1
        query = self._of_search(stops).order_by(stops.c.stop)
        for number, row in enumerate(connection.execute(query)):
            where = f"stop of candidate {row.candidate}"
            if row.stop != number or not -1 <= row.sequence <= last:
                yield Problem(
                    where, f"is stop {row.stop} after outcome {row.sequence}, not in order"
                )
            try:
                decode_stop(row._asdict())
            except _DECODING as error:
                yield Problem(where, _told(error))

    def _per_item(
        self, connection: Connection, table: Table
    ) -> Iterator[tuple[Key, TaskScores | Problem]]:
        """Read per-item scores; what cannot be read, or is of foreign items, is a problem."""
        for row in connection.execute(self._of_search(table)):
            key = _key(row._mapping)
            where = f"{_where(key)}, {table.name} of `{row.task}`"
            try:
                usual = self._usual(row.split, row.block)
                part = decode_items(row._asdict(), usual)
                if foreign := set(part.item_ids).difference(usual[row.task]):
                    raise ValueError(f"`{min(foreign)}` is no item of it")
                if not np.isfinite(part.values).all():
                    raise ValueError("a score is no number")
            except _DECODING as error:
                yield key, Problem(where, _told(error))
            else:
                yield key, part

    def _usual(self, split: str, block: str) -> Items:
        if block == WHOLE:
            # Where the row is damaged it is none, which the manifest says.
            return self.manifest.items(cast("SplitName", split))
        if (split, block) not in self._items:
            raise ValueError(f"there is no block `{block}` of `{split}`")
        return self._items[split, block]

    def _keys(self, connection: Connection, table: Table) -> set[Key]:
        query = select(*(table.c[name] for name in _KEY)).distinct()
        return {_key(row._mapping) for row in connection.execute(self._of_search(table, query))}


def _orphans(constraint: ForeignKeyConstraint) -> Select[Any]:
    table, referred = constraint.table, constraint.referred_table.alias()
    pairs = [(pair.parent, referred.c[pair.column.name]) for pair in constraint.elements]
    joined = table.outerjoin(referred, and_(*(mine == theirs for mine, theirs in pairs)))
    query = select(func.count()).select_from(joined)
    return query.where(pairs[0][1].is_(None), *(mine.is_not(None) for mine, _ in pairs))


def _difference(recorded: Scores, found: Scores) -> str:
    """Say in what recorded scores differ from those of the items; empty where in nothing."""
    if recorded.keys() != found.keys():
        return f"has scores of {_names(recorded)}, and items of {_names(found)}"
    for name, score in found.items():
        was = recorded[name]
        same = all(
            math.isclose(mine, theirs, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)
            for mine, theirs in ((was.value, score.value), (was.stderr, score.stderr))
        )
        if not same or was.count != score.count:
            return (
                f"`{name}` is recorded as {was.value:.9g} ± {was.stderr:.3g} of {was.count} items, "
                f"and its items give {score.value:.9g} ± {score.stderr:.3g} of {score.count}"
            )
    return ""


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names)) or "no objective"


def _key(row: Mapping[Any, Any]) -> Key:
    return row["candidate"], row["split"], row["block"], row["signal"]


def _where(key: Key) -> str:
    candidate, split, block, signal = key
    text = f"candidate {candidate} on {split}"
    text += f", block {block}" if block != WHOLE else ""
    return text + (" (companions)" if signal == "companions" else "")


def _told(error: Exception) -> str:
    if isinstance(error, ArchiveError):
        return error.message
    kind = "is no JSON" if isinstance(error, json.JSONDecodeError) else type(error).__name__
    return f"cannot be read: {kind}: {error}"
