"""Copying an archive to another place: complete, and compared row for row before it is there."""

import itertools
import struct
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Table

from configs.errors import ArchiveError
from configs.place import Place
from optimizer.archive.schema import METADATA, meta, migrations, owners, searches
from optimizer.archive.store import AnyPlace, Store, backend_of

OF_THE_DATABASE = (meta, migrations, owners)
"""Tables that say something of the database, not of a search in it; they are not copied."""

_BATCH_ROWS = 500


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: from where, to where, and how many rows of every table."""

    source: Place
    target: Place
    rows: dict[str, int]


def copied_tables() -> list[Table]:
    """Return the tables of a search, those that others refer to first."""
    return [table for table in METADATA.sorted_tables if table not in OF_THE_DATABASE]


def copy_archive(source: AnyPlace, target: AnyPlace) -> Copied:
    """Copy an archive as it is at this moment; it may be written meanwhile.

    What was written is read back and compared with what was read, float by float; only then is the
    copy there under its name.

    Args:
        source: An archive.
        target: Where there is none yet.

    Raises:
        ArchiveExistsError: There is one at ``target``.
        ArchiveError: One of them cannot be read or written, or the copy differs.
    """
    with closing(backend_of(source).open(writable=False)) as store, store.reading() as old:
        backend, counts = backend_of(target), dict[str, int]()

        def fill(new: Connection, search: dict[str, object]) -> None:
            for table in copied_tables():
                counts[table.name] = _copy_table(_rows(store, old, table), new, table, search)
            for table in copied_tables():
                there = _all_rows(new, table, int(str(search["search_id"])))
                _compare(table, _rows(store, old, table), there)

        backend.begin(fill).close()
    return Copied(store.place, backend.place, counts)


def _copy_table(
    rows: Iterator[Row[Any]], new: Connection, table: Table, search: dict[str, object]
) -> int:
    """Write rows as those of another search; returns how many there were."""
    replaced = search if table is searches else {"search_id": search["search_id"]}
    count = 0
    while batch := list(itertools.islice(rows, _BATCH_ROWS)):
        new.execute(table.insert(), [{**row._mapping, **replaced} for row in batch])
        count += len(batch)
    return count


def _compare(table: Table, old: Iterator[Row[Any]], new: Iterator[Row[Any]]) -> None:
    kept = [
        index
        for index, column in enumerate(table.columns)
        if column.name != "search_id" and column is not searches.c.name
    ]
    for number, (before, after) in enumerate(itertools.zip_longest(old, new)):
        if before is None or after is None or _bits(before, kept) != _bits(after, kept):
            raise ArchiveError(
                f"the copy of table `{table.name}` differs from the original in row {number}; "
                "nothing was kept of it"
            )


def _bits(row: Row[Any], kept: Sequence[int]) -> list[object]:
    """Return a row so that equal floats are equal bit for bit."""
    values = (row[index] for index in kept)
    return [struct.pack("<d", value) if isinstance(value, float) else value for value in values]


def _rows(store: Store, connection: Connection, table: Table) -> Iterator[Row[Any]]:
    """Read the rows of a table; what the source refuses is not blamed on the target."""
    with store.errors():
        yield from _all_rows(connection, table, store.search_id)


def _all_rows(connection: Connection, table: Table, search_id: int) -> Iterator[Row[Any]]:
    query = table.select().where(table.c.search_id == search_id).order_by(*table.primary_key)
    yield from connection.execute(query.execution_options(yield_per=_BATCH_ROWS))
