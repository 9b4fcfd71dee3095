"""The tables of an archive; how they changed is in ``optimizer.archive.migrations``.

Every row belongs to a search (``search_id``), so that one database can hold several of them; an
archive file holds exactly one. What a search proposed and what came of it is append-only: triggers
abort every UPDATE and DELETE. Floats are 8-byte IEEE columns or blobs of float64, so what is read
back is bit for bit what was recorded; times are UTC ISO-8601 texts.
"""

from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy import (
    CheckConstraint,
    Column,
    Connection,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

METADATA = MetaData()

meta = Table(
    "meta",
    METADATA,
    Column("key", String, primary_key=True),
    Column("value", Text, nullable=False),
)
"""``schema_version``, ``created_at`` and ``mergefront_version`` of the database."""

migrations = Table(
    "migrations",
    METADATA,
    Column("name", String, primary_key=True),
    Column("applied_at", String, nullable=False),
    Column("mergefront_version", String, nullable=False),
)
"""Changes of the tables that are in this database, be it since it was made."""

searches = Table(
    "searches",
    METADATA,
    Column("search_id", Integer, primary_key=True),
    Column("created_at", String, nullable=False),
    Column("job", Text, nullable=False, doc="JSON, key order kept: it is the order of the genes"),
    Column("job_digest", String, nullable=False),
    Column("job_path", Text, doc="JSON: absolute path of the job file, or NULL"),
    Column("working_directory", Text, nullable=False, doc="JSON: what relative paths start from"),
    Column("sources", Text, nullable=False, doc="JSON: name, directory and digest per checkpoint"),
    Column("manifest", Text, nullable=False, doc="JSON: item ids per split and task"),
    Column("name", String, doc="in a database of several; NULL in a file"),
    Index("searches_name", "name", unique=True),
)

owners = Table(
    "owners",
    METADATA,
    Column("search_id", ForeignKey("searches.search_id"), primary_key=True),
    Column("token", String, nullable=False, doc="of the session that may write, drawn at random"),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", String, nullable=False),
    Column("heartbeat_s", Double, nullable=False, doc="seconds since 1970 by the server's clock"),
    info={"dialect": "postgresql"},
)
"""Who writes a search in a database, or did last; of a file its lock says so."""

runs = Table(
    "runs",
    METADATA,
    Column("search_id", ForeignKey("searches.search_id"), primary_key=True),
    Column("run", Integer, primary_key=True, doc="0 for the start, then one per resume"),
    Column("started_at", String, nullable=False),
    Column("heartbeat_at", String, nullable=False),
    Column("elapsed_s", Double, nullable=False, doc="monotonic seconds from start to heartbeat"),
    Column("host", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("mergefront_version", String, nullable=False),
)

proposals = Table(
    "proposals",
    METADATA,
    Column("search_id", ForeignKey("searches.search_id"), primary_key=True),
    Column("candidate", Integer, primary_key=True, autoincrement=False),
    Column("origin", String, nullable=False),
    Column("genotype_f64", LargeBinary, nullable=False, doc="little-endian float64"),
    Column("recipe", Text, nullable=False, doc="JSON with the names for people"),
    Column("recipe_id", String, nullable=False),
    Column("seen", Integer, nullable=False, doc="finished candidates told before it was proposed"),
    Column("pending", Text, nullable=False, doc="JSON: candidates proposed but not told yet"),
    Column("proposed_at", String, nullable=False),
)

outcomes = Table(
    "outcomes",
    METADATA,
    Column("search_id", Integer, primary_key=True),
    Column("candidate", Integer, primary_key=True, autoincrement=False),
    Column("split", String, primary_key=True),
    Column("block", String, primary_key=True, doc="of `blocks`; empty for the whole split"),
    Column("signal", String, primary_key=True, doc="what was asked for"),
    Column("sequence", Integer, nullable=False, doc="finishing order from 0, over all splits"),
    Column("status", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("worker", String, nullable=False),
    Column("weights_digest", String),
    Column("seconds", Text, nullable=False, doc="JSON: wall seconds by stage"),
    Column("stage", String),
    Column("error_class", String),
    Column("message", Text),
    Column("finished_at", String, nullable=False),
    UniqueConstraint("search_id", "sequence"),
    CheckConstraint("status IN ('completed', 'failed')", name="status_known"),
    CheckConstraint("signal IN ('scores', 'companions')", name="signal_known"),
    ForeignKeyConstraint(
        ["search_id", "candidate"], ["proposals.search_id", "proposals.candidate"]
    ),
)
"""Exactly one row per candidate, split, block and signal: the primary key refuses a second."""

stops = Table(
    "stops",
    METADATA,
    Column("search_id", Integer, primary_key=True),
    Column("candidate", Integer, primary_key=True, autoincrement=False),
    Column("stop", Integer, nullable=False, doc="counts the stops of a search from 0"),
    Column("sequence", Integer, nullable=False, doc="of the last outcome before; -1 for none"),
    Column("reason", String, nullable=False),
    Column("scores", Text, doc="JSON: objective -> value, stderr, count, as told; NULL: failed"),
    Column("numbers", Text, nullable=False, doc="JSON: what decided"),
    Column("stopped_at", String, nullable=False),
    UniqueConstraint("search_id", "stop"),
    ForeignKeyConstraint(
        ["search_id", "candidate"], ["proposals.search_id", "proposals.candidate"]
    ),
)
"""Candidates that were not scored on all search items, on purpose: no outcome comes after."""

blocks = Table(
    "blocks",
    METADATA,
    Column("search_id", ForeignKey("searches.search_id"), primary_key=True),
    Column("split", String, primary_key=True),
    Column("block", String, primary_key=True, doc="evaluators.blocks.block_name of the items"),
    Column("items", Text, nullable=False, doc="JSON: task -> item ids, in the split's order"),
)
"""Which items were scored where not all of a split were."""


def _of_outcome(name: str, part: str, *columns: Column[object]) -> Table:
    """Describe a table with one row per part (objective or task) of an outcome."""
    key = ("search_id", "candidate", "split", "block", "signal")
    return Table(
        name,
        METADATA,
        Column("search_id", Integer, primary_key=True),
        Column("candidate", Integer, primary_key=True, autoincrement=False),
        Column("split", String, primary_key=True),
        Column("block", String, primary_key=True),
        Column("signal", String, primary_key=True),
        Column(part, String, primary_key=True),
        *columns,
        ForeignKeyConstraint(key, [f"outcomes.{column}" for column in key]),
    )


objective_scores = _of_outcome(
    "objective_scores",
    "objective",
    Column("value", Double, nullable=False),
    Column("stderr", Double, nullable=False),
    Column("count", Integer, nullable=False),
)


def _per_item(name: str) -> Table:
    return _of_outcome(
        name,
        "task",
        Column("values_zlib", LargeBinary, nullable=False, doc="one float64 per item, compressed"),
        Column("weights_zlib", LargeBinary, doc="the same; NULL when all items count alike"),
        Column("item_ids", Text, doc="JSON; NULL when they are those of the block, in its order"),
    )


item_scores = _per_item("item_scores")

companion_scores = _per_item("companion_scores")
"""What tasks say beside their scores (``companion`` in the job), for the same items."""

texts = _of_outcome(
    "texts",
    "task",
    Column("texts_zlib", LargeBinary, nullable=False, doc="zlib of a JSON list, one per item"),
)

choices = Table(
    "choices",
    METADATA,
    Column("search_id", Integer, primary_key=True),
    Column("choice", Integer, primary_key=True, autoincrement=False),
    Column("candidate", Integer, nullable=False),
    Column("rule", Text, nullable=False),
    Column("chosen_at", String, nullable=False),
    ForeignKeyConstraint(
        ["search_id", "candidate"], ["proposals.search_id", "proposals.candidate"]
    ),
)

seeds = Table(
    "seeds",
    METADATA,
    Column("search_id", ForeignKey("searches.search_id"), primary_key=True),
    Column("seed", Integer, primary_key=True, autoincrement=False, doc="in the order of telling"),
    Column("source", Integer, nullable=False, doc="candidate of the archive that it is from"),
    Column("origin", String, nullable=False),
    Column("genotype_f64", LargeBinary, nullable=False, doc="little-endian float64"),
    Column("recipe", Text, nullable=False, doc="JSON with the names for people"),
    Column(
        "scores",
        Text,
        nullable=False,
        doc="JSON: objective -> value, stderr, count, as told; and companion, with the same",
    ),
    Column("is_exact", Integer, nullable=False, doc="1: the same tensors on the same items"),
)
"""What a search that was started from another archive knew before its first proposal."""

losses = Table(
    "losses",
    METADATA,
    Column("search_id", Integer, primary_key=True),
    Column("loss", Integer, primary_key=True, autoincrement=False, doc="counts from 0"),
    Column("candidate", Integer, nullable=False),
    Column("split", String, nullable=False),
    Column("block", String, nullable=False),
    Column("signal", String, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("node", String, nullable=False, doc="as Ray names it"),
    Column("error_class", String, nullable=False),
    Column("message", Text, nullable=False),
    Column("is_forgiven", Integer, nullable=False, doc="1: takes a row of its evaluation back"),
    Column("lost_at", String, nullable=False),
    ForeignKeyConstraint(
        ["search_id", "candidate"], ["proposals.search_id", "proposals.candidate"]
    ),
)
"""Workers that died or hung in an evaluation, written before it is tried again."""

warm_starts = Table(
    "warm_starts",
    METADATA,
    Column("search_id", ForeignKey("searches.search_id"), primary_key=True),
    Column("archive", Text, nullable=False, doc="JSON: path of the other archive"),
    Column("left_out", Text, nullable=False, doc="JSON: reason -> number of outcomes"),
    Column("recorded_at", String, nullable=False),
)

APPEND_ONLY = (
    searches,
    seeds,
    warm_starts,
    proposals,
    outcomes,
    stops,
    blocks,
    objective_scores,
    item_scores,
    companion_scores,
    texts,
    choices,
    losses,
)
"""Tables whose rows never change and never go."""

_REFUSAL = "CREATE TRIGGER {table}_no_{name} BEFORE {change} ON {table} "
_SQLITE_BODY = "BEGIN SELECT RAISE(ABORT, '{table} is append-only: {change} refused'); END"
_POSTGRES_BODY = "FOR EACH {each} EXECUTE FUNCTION refuse_change()"
_POSTGRES_FUNCTION = """
CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING MESSAGE = TG_TABLE_NAME || ' is append-only: ' || TG_OP || ' refused';
END $$
"""


def make_append_only(connection: Connection, tables: Iterable[Table]) -> None:
    """Let the database abort every change of rows of these tables."""
    is_postgres = connection.dialect.name == "postgresql"
    if is_postgres:
        connection.exec_driver_sql(_POSTGRES_FUNCTION)
    for table in tables:
        for change in ("UPDATE", "DELETE", *(["TRUNCATE"] if is_postgres else [])):
            body = _POSTGRES_BODY if is_postgres else _SQLITE_BODY
            each = "STATEMENT" if change == "TRUNCATE" else "ROW"
            statement = (_REFUSAL + body).format(
                table=table.name, name=change.lower(), change=change, each=each
            )
            connection.exec_driver_sql(statement)


def utc_now() -> str:
    """Return the time as the archive writes it: UTC, ISO-8601, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def mergefront_version() -> str:
    """Return the version of the installed distribution, or say that there is none."""
    try:
        return version("mergefront")
    except PackageNotFoundError:
        return "source tree"
