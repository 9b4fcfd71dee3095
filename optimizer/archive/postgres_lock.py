"""One writer per search in a database: a lock that dies with the session that holds it.

The server holds the lock (``pg_try_advisory_lock``), and everything is written through the session
that has it, so a session that lost it cannot write. The table ``owners`` says who it is and when he
last gave a sign of life. A session whose owner is silent for ``SILENT_S`` is ended, and its lock
goes to who asks; a process that wakes up after that finds another's token in the table, and stops.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import RLock

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from configs.place import DatabasePlace
from optimizer.archive.owner import SILENT_S, Heartbeat, Owner, locked, taken_over, this_process

NAMESPACE = 0x6D67_6672
"""First number of our advisory locks, ``mgfr``; the second is the search, 0 for the tables."""

PING_AFTER_S = 1.0
"""A session that was idle for so long is asked whether it is still there."""

RECONNECT_S = 30.0
"""How long a writer waits for a server that went away, between two transactions."""

_KILLED_S = 1.0
"""The server needs a moment to see that a process was killed."""

_TRY = text("SELECT pg_try_advisory_lock(:namespace, :search)")
_HOLDER = """
SELECT pid FROM pg_locks
WHERE locktype = 'advisory' AND granted AND objsubid = 2 AND classid = :namespace
  AND objid = :search
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_OWNER = text(
    "SELECT token, host, pid, started_at, "
    "extract(epoch FROM clock_timestamp()) - heartbeat_s AS silent_s "
    "FROM owners WHERE search_id = :search"
)
_OWN = text(
    "INSERT INTO owners VALUES (:search, :token, :host, :pid, :started_at, "
    "extract(epoch FROM clock_timestamp())) ON CONFLICT (search_id) DO UPDATE SET "
    "token = excluded.token, host = excluded.host, pid = excluded.pid, "
    "started_at = excluded.started_at, heartbeat_s = excluded.heartbeat_s"
)
_BEAT = text(
    "UPDATE owners SET heartbeat_s = extract(epoch FROM clock_timestamp()) "
    "WHERE search_id = :search AND token = :token"
)


def serialize(connection: Connection) -> None:
    """Wait until no other process makes tables or takes a search; held to the transaction's end."""
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:namespace, 0)"), {"namespace": NAMESPACE}
    )


def live_owner(connection: Connection, search_id: int) -> Owner | None:
    """Return who holds the lock of a search; None when nobody does."""
    held = connection.execute(text(_HOLDER), _key(search_id)).first()
    return None if held is None else _named(connection, search_id)


def live_searches(connection: Connection) -> set[int]:
    """Return which searches are being written."""
    query = text(_HOLDER.replace("SELECT pid", "SELECT objid").replace("= :search", "<> 0"))
    return set(connection.execute(query, {"namespace": NAMESPACE}).scalars())


class WriterSession:
    """The session of this process that may write a search, until ``release``."""

    def __init__(self, place: DatabasePlace, engine: Engine) -> None:
        """Connect; nothing is locked before ``take``."""
        self._place = place
        self._engine = engine
        self._token = secrets.token_hex(16)
        self._search_id = 0
        self._mutex = RLock()
        self._used_at = 0.0
        self._heartbeat: Heartbeat | None = None
        self._connection = self._connected()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Lend a transaction of the session that has the lock.

        Where the connection was lost since the last one, another is made and the lock taken again,
        unless another process has written the search meanwhile.

        Raises:
            ArchiveLockedError: Another process took over.
        """
        with self._mutex:
            self._ensure()
            self._used_at = 0.0  # unless all goes well
            with self._connection.begin():
                yield self._connection
            self._used_at = time.monotonic()

    def take(self, connection: Connection, search_id: int) -> None:
        """Take the lock of a search, in the transaction that found or made it.

        Raises:
            ArchiveLockedError: Another process, or this one, writes it.
        """
        self._search_id = search_id
        deadline = time.monotonic() + _KILLED_S
        while not connection.execute(_TRY, _key(search_id)).scalar_one():
            owner = _named(connection, search_id)
            if owner is not None and (owner.silent_s or 0.0) > SILENT_S:
                self._end_holder(connection, owner)
            elif time.monotonic() > deadline:
                raise locked(self._place, owner)
            else:
                time.sleep(0.05)
        owner = this_process()
        connection.execute(
            _OWN,
            {
                "search": search_id,
                "token": self._token,
                "host": owner.host,
                "pid": owner.pid,
                "started_at": owner.started_at,
            },
        )

    def begin_heartbeat(self) -> None:
        """Give signs of life from now on."""
        self._heartbeat = Heartbeat(self._beat)

    def release(self) -> None:
        """Let the next writer in; a second call does nothing."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        with self._mutex:
            if not self._connection.closed:
                # Explicitly, since the server needs a moment to see that a session has ended.
                with suppress(DBAPIError), self._connection.begin():
                    self._connection.execute(
                        text("SELECT pg_advisory_unlock(:namespace, :search)"),
                        _key(self._search_id),
                    )
                self._connection.close()

    def _connected(self) -> Connection:
        # Its transactions must see what others committed while they waited for a lock.
        return self._engine.connect().execution_options(isolation_level="READ COMMITTED")

    def _ensure(self) -> None:
        """Make sure that the session is there and has the lock."""
        if time.monotonic() - self._used_at < PING_AFTER_S:
            return
        try:
            if not (self._connection.closed or self._connection.invalidated):
                with self._connection.begin():
                    self._connection.exec_driver_sql("SELECT 1")
                return
        except DBAPIError as error:
            if not (error.connection_invalidated and self._search_id):
                raise
        self._take_again()

    def _take_again(self) -> None:
        deadline, pause_s = time.monotonic() + RECONNECT_S, 0.1
        while True:
            try:
                self._connection.close()
                self._connection = self._connected()
                with self._connection.begin():
                    self._reclaim(self._connection)
            except DBAPIError:
                if time.monotonic() + pause_s > deadline:
                    raise
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, 2.0)
            else:
                return

    def _reclaim(self, connection: Connection) -> None:
        """Take the lock of a search that was ours again, if nobody else took it meanwhile."""
        serialize(connection)
        key = _key(self._search_id)
        found = connection.execute(_OWNER, key).one()
        owner = _named(connection, self._search_id)
        if found.token != self._token:
            raise taken_over(self._place, owner)
        if connection.execute(_TRY, key).scalar_one():
            return
        # The server has not noticed yet that the old connection is gone.
        self._end_holder(connection, owner)
        if not connection.execute(_TRY, key).scalar_one():
            raise locked(self._place, owner)

    def _end_holder(self, connection: Connection, owner: Owner | None) -> None:
        holder = connection.execute(text(_HOLDER), _key(self._search_id)).scalar()
        if holder is None:
            return
        try:
            with connection.begin_nested():
                connection.execute(
                    text("SELECT pg_terminate_backend(:holder, 5000)"), {"holder": holder}
                )
        except DBAPIError as error:
            advice = (
                "its session is stale, but this user may not end it; let one who may run "
                f"SELECT pg_terminate_backend({holder})"
            )
            raise locked(self._place, owner, advice=advice) from error

    def _beat(self) -> None:
        with suppress(DBAPIError), self._engine.begin() as connection:
            connection.execute(_BEAT, {"search": self._search_id, "token": self._token})


def _key(search_id: int) -> dict[str, int]:
    return {"namespace": NAMESPACE, "search": search_id}


def _named(connection: Connection, search_id: int) -> Owner | None:
    """Return whom the lock of a search was last given to."""
    found = connection.execute(_OWNER, {"search": search_id}).first()
    if found is None:
        return None
    return Owner(found.pid, found.host, found.started_at, float(found.silent_s))
