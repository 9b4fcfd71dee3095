"""How the tables of an archive changed, and how an older archive follows.

Each change is a function that never changes again, in SQL of its own time. A database keeps the
names of those that are in it; opening it for writing applies the others, in one transaction, so
that it has the old tables or the new ones. ``optimizer.archive.schema`` describes the tables after
all of them.

Schema 3 is the oldest that can follow. Schema 1 had no blocks and no companions, and item scores
without compression; schema 2 had no stops, and companions only beside scores.
"""

from collections.abc import Callable

from sqlalchemy import Connection, Table, inspect

from configs.errors import SchemaVersionError
from configs.place import Place
from optimizer.archive.schema import (
    APPEND_ONLY,
    METADATA,
    make_append_only,
    mergefront_version,
    meta,
    migrations,
    utc_now,
)

OLDEST_VERSION = 3
"""The schema before the first migration."""

Migration = Callable[[Connection], None]

MIGRATIONS: list[Migration] = []
"""In the order in which they are applied."""


def migration(function: Migration) -> Migration:
    """Add a change after all others."""
    MIGRATIONS.append(function)
    return function


@migration
def m004_searches_have_names(connection: Connection) -> None:
    """A database holds several searches, which are told apart by their names."""
    for statement in (
        "CREATE TABLE migrations (name VARCHAR NOT NULL, applied_at VARCHAR NOT NULL, "
        "mergefront_version VARCHAR NOT NULL, PRIMARY KEY (name))",
        "ALTER TABLE searches ADD COLUMN name VARCHAR",
        "CREATE UNIQUE INDEX searches_name ON searches (name)",
    ):
        connection.exec_driver_sql(statement)


@migration
def m005_losses_are_kept(connection: Connection) -> None:
    """Workers that an evaluation took are counted over the lives of its drivers."""
    connection.exec_driver_sql(
        "CREATE TABLE losses (search_id INTEGER NOT NULL, loss INTEGER NOT NULL, "
        "candidate INTEGER NOT NULL, split VARCHAR NOT NULL, block VARCHAR NOT NULL, "
        "signal VARCHAR NOT NULL, attempt INTEGER NOT NULL, node VARCHAR NOT NULL, "
        "error_class VARCHAR NOT NULL, message TEXT NOT NULL, is_forgiven INTEGER NOT NULL, "
        "lost_at VARCHAR NOT NULL, PRIMARY KEY (search_id, loss), "
        "FOREIGN KEY(search_id, candidate) REFERENCES proposals (search_id, candidate))"
    )
    is_postgres = connection.dialect.name == "postgresql"
    for change in ("UPDATE", "DELETE", *(["TRUNCATE"] if is_postgres else [])):
        each = "STATEMENT" if change == "TRUNCATE" else "ROW"
        body = (
            f"FOR EACH {each} EXECUTE FUNCTION refuse_change()"
            if is_postgres
            else f"BEGIN SELECT RAISE(ABORT, 'losses is append-only: {change} refused'); END"
        )
        connection.exec_driver_sql(
            f"CREATE TRIGGER losses_no_{change.lower()} BEFORE {change} ON losses {body}"
        )


def schema_version() -> int:
    """Return the version that this mergefront reads and writes."""
    return OLDEST_VERSION + len(MIGRATIONS)


def create_tables(connection: Connection) -> None:
    """Create every table in an empty database, and say of which version they are."""
    METADATA.create_all(connection, tables=_tables_of(connection), checkfirst=False)
    make_append_only(connection, APPEND_ONLY)
    connection.execute(
        meta.insert(),
        [
            {"key": "schema_version", "value": str(schema_version())},
            {"key": "created_at", "value": utc_now()},
            {"key": "mergefront_version", "value": mergefront_version()},
        ],
    )
    _note(connection, MIGRATIONS)


def migrate(connection: Connection) -> list[str]:
    """Apply what is missing, in the caller's transaction; returns the names of it."""
    missing = _missing(connection)
    for change in missing:
        change(connection)
    if missing:
        _note(connection, missing)
        _set(connection, "schema_version", str(schema_version()))
        _set(connection, "mergefront_version", mergefront_version())
    return [change.__name__ for change in missing]


def found_version(connection: Connection) -> tuple[int, str] | None:
    """Return the schema version of a database and the mergefront that made it.

    None when the database is not an archive.
    """
    if not inspect(connection).has_table(meta.name):
        return None
    columns = {column["name"] for column in inspect(connection).get_columns(meta.name)}
    if not columns >= {"key", "value"}:
        return None
    found = {row.key: row.value for row in connection.execute(meta.select())}
    if not str(found.get("schema_version", "")).isdecimal():
        return None
    return int(found["schema_version"]), str(found.get("mergefront_version", "unknown"))


def check_version(place: Place, number: int, made_by: str, *, writable: bool) -> None:
    """Refuse an archive that this mergefront cannot use.

    Args:
        place: For messages.
        number: Its schema.
        made_by: The mergefront that made it.
        writable: Whether what is missing will be applied.

    Raises:
        SchemaVersionError: The schema is newer than this mergefront, or too old for it.
    """
    current = schema_version()
    if number == current or (writable and OLDEST_VERSION <= number < current):
        return
    advice = f"use the mergefront that made it ({made_by}), or start a new archive"
    if OLDEST_VERSION <= number < current:
        advice = f"bring it up to date with `mergefront archive migrate {place}`"
    raise SchemaVersionError(
        f"archive {place} has schema {number}, this mergefront reads {current}; {advice}",
        path=str(place),
        found=number,
        expected=current,
    )


def _missing(connection: Connection) -> list[Migration]:
    applied: set[str] = set()
    if inspect(connection).has_table(migrations.name):
        applied = {row.name for row in connection.execute(migrations.select())}
    return [change for change in MIGRATIONS if change.__name__ not in applied]


def _note(connection: Connection, changes: list[Migration]) -> None:
    here = {"applied_at": utc_now(), "mergefront_version": mergefront_version()}
    rows = [{"name": change.__name__, **here} for change in changes]
    connection.execute(migrations.insert(), rows)


def _set(connection: Connection, key: str, value: str) -> None:
    connection.execute(meta.update().where(meta.c.key == key).values(value=value))


def _tables_of(connection: Connection) -> list[Table]:
    """Return the tables of this kind of database; some are there for one kind only."""
    kind = connection.dialect.name
    return [table for table in METADATA.sorted_tables if table.info.get("dialect", kind) == kind]
