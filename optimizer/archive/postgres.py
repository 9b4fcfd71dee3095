"""PostgreSQL as the place of archives: connections, durability, and what its errors mean.

Everything that is true of PostgreSQL only stands here, in ``optimizer.archive.postgres_lock`` and
``..._store``, and in the triggers of ``optimizer.archive.schema``. psycopg is an optional package
(``mergefront[postgres]``), imported when a database is named.

All tables are in a schema of their own, ``mergefront``, so that they do not mix with others.
"""

import importlib.util
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, QueuePool, create_engine
from sqlalchemy.exc import DBAPIError

from configs.errors import ArchiveError
from configs.place import DatabasePlace

if TYPE_CHECKING:
    import psycopg

SCHEMA = "mergefront"

_SESSION = {
    "search_path": SCHEMA,
    # A commit is on the server's disk when it returns, whatever the server's default is.
    "synchronous_commit": "on",
    # Whoever waits longer for a lock has met somebody who forgot to end a transaction.
    "lock_timeout": "30s",
    # A server that does not hear from us for half a minute lets our locks go.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_CLIENT: Mapping[str, str | int] = {
    "connect_timeout": 5,
    "application_name": "mergefront",
    "client_encoding": "utf8",
    # The same from here: an answer that never comes is a connection that is lost.
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}


def database_engine(place: DatabasePlace, *, writable: bool) -> Engine:
    """Return an engine on a database, which connects when it is used.

    Transactions see one state of the database from their first statement on: scores and outcomes
    that are read one after the other belong together.

    Args:
        place: Where.
        writable: Whether its sessions may write at all.

    Raises:
        ArchiveError: The driver is not installed.
    """
    if importlib.util.find_spec("psycopg") is None:
        raise ArchiveError(
            f"archive {place} is in PostgreSQL, whose driver `psycopg` is not installed; "
            "`pip install 'mergefront[postgres]'`",
            path=str(place),
        )
    session = _SESSION | {"default_transaction_read_only": "off" if writable else "on"}
    options = " ".join(f"-c {key}={value}" for key, value in session.items())
    keywords: dict[str, Any] = {**_CLIENT, **place.connection, "options": options}

    def connect() -> "psycopg.Connection":
        import psycopg

        return psycopg.connect(**keywords)

    return create_engine(
        "postgresql+psycopg://",
        creator=connect,
        isolation_level="REPEATABLE READ",
        use_native_hstore=False,
        poolclass=QueuePool,
        pool_size=1,
        max_overflow=3,
        pool_pre_ping=True,
    )


@contextmanager
def database_errors(place: DatabasePlace) -> Iterator[None]:
    """Turn what the database refuses into an ArchiveError that a person can act on."""
    try:
        yield
    except DBAPIError as error:
        raise ArchiveError(f"archive {place} {_meaning(place, error)}", path=str(place)) from error
    except UnicodeEncodeError as error:
        raise ArchiveError(
            f"archive {place} cannot be written: a text holds {error.object[error.start]!r}, "
            "which is no character",
            path=str(place),
        ) from error


_BY_STATE = {
    "53100": "cannot be written: the server's disk is full ({error}). Everything recorded before "
    "is safe; free some space there and resume",
    "53300": "cannot be reached: the server takes no more connections ({error})",
    "55P03": "was locked for {timeout} by another session: {error}. End that session, or wait",
    "25006": "cannot be written: {error}. It may be a replica; name the primary",
    "42501": "cannot be used by {user}: {error}. Its owner can GRANT that",
    "P0001": "refuses the change: {error}",
}
_BY_CLASS = {
    "08": "was lost: {error}. Everything recorded before is safe; resume when the server is back",
    "57": "was lost: {error}. Everything recorded before is safe; resume when the server is back",
    "23": "refuses the change: {error}",
}
# What libpq says of a connection that was never made has no state, only words.
_BY_WORDS = {
    r"password authentication failed|no password supplied": "cannot be opened: {user} has no or "
    "the wrong password ({error}). Put it into ~/.pgpass or the environment variable PGPASSWORD",
    r"authentication failed|pg_hba\.conf": "cannot be opened: the server does not let {user} in "
    "({error}). Check the user in the URL and the server's pg_hba.conf",
    r"role .* does not exist": "cannot be opened: {error}. Check the user in the URL",
    r"database .* does not exist": "cannot be opened: {error}. Make it first, `createdb {name}`",
    r"connection (to server .*)?failed|could not|timeout|Connection refused|not known|No such": (
        "cannot be reached: {error}. Check the host and port in the URL, and that the server runs"
    ),
}


def _meaning(place: DatabasePlace, error: DBAPIError) -> str:
    cause = error.orig
    state = str(getattr(cause, "sqlstate", None) or "")
    text = _one_line(str(cause))
    meaning = _BY_STATE.get(state) or _BY_CLASS.get(state[:2])
    if meaning is None and not state:
        found = (known for words, known in _BY_WORDS.items() if re.search(words, text))
        meaning = next(found, None)
        if meaning is None and error.connection_invalidated:
            meaning = _BY_CLASS["08"]
    user = place.connection.get("user")
    return (meaning or "cannot be used: {error}").format(
        error=text,
        user=f"user `{user}`" if user else "this user",
        name=place.connection.get("dbname", ""),
        timeout=_SESSION["lock_timeout"],
    )


def _one_line(text: str) -> str:
    """Return the first thing that libpq says, without its hints and the names of functions."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = next((line for line in lines if not line.startswith("CONTEXT:")), "no reason given")
    # Several addresses of one host are tried in turn; each failure repeats the one before.
    return re.sub(r"^Multiple connection attempts failed\. All failures were:$", "", first) or (
        lines[1].removeprefix("- ") if len(lines) > 1 else first
    )
