"""An archive in a PostgreSQL database: how it is made, opened, locked and compacted."""

import shlex
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

from sqlalchemy import Connection, Engine, func, select, text

from configs.errors import (
    ArchiveError,
    ArchiveExistsError,
    ArchiveLockedError,
    ArchiveNotFoundError,
)
from configs.place import DatabasePlace
from optimizer.archive.migrations import (
    check_version,
    create_tables,
    found_version,
    migrate,
    schema_version,
)
from optimizer.archive.owner import Owner
from optimizer.archive.postgres import SCHEMA, database_engine, database_errors
from optimizer.archive.postgres_lock import (
    WriterSession,
    live_owner,
    live_searches,
    serialize,
)
from optimizer.archive.schema import METADATA, searches
from optimizer.archive.store import Backend, Fill, Store

_MAX_NAMES = 10
_MAY_USE = text(f"SELECT has_schema_privilege(to_regnamespace('{SCHEMA}')::oid, 'USAGE')")
"""NULL where there is no such schema."""


class PostgresStore(Store):
    """An open search; a writable one has the session that holds its lock."""

    def __init__(
        self, place: DatabasePlace, engine: Engine, search_id: int, session: WriterSession | None
    ) -> None:
        super().__init__(place, engine, search_id)
        self._database = place
        self._session = session

    @property
    def writable(self) -> bool:
        """Whether this process holds the lock, as far as it knows."""
        return self._session is not None

    def errors(self) -> AbstractContextManager[None]:
        """Explain what PostgreSQL refuses."""
        return database_errors(self._database)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """Lend a transaction of the session that holds the lock."""
        if self._session is None:
            raise self.not_writable()
        with self.errors(), self._session.transaction() as connection:
            yield connection

    def close(self) -> None:
        """End all sessions and let the next writer in."""
        if self._session is not None:
            self._session.release()
        self._engine.dispose()


class PostgresBackend(Backend):
    """A search that is, or will be, in a database."""

    def __init__(self, place: DatabasePlace) -> None:
        self.place: DatabasePlace = place

    def exists(self) -> bool:
        """Whether the database has a search of that name."""
        with self._looking() as connection:
            return self._version(connection) is not None and self._found(connection) is not None

    def refuse_existing(self) -> None:
        """Refuse to make a search where there is one."""
        if self.exists():
            raise self._exists()

    def begin(self, fill: Fill) -> Store:
        """Make the search, and the tables where it is the first of the database."""
        with self._writer() as (engine, session), session.transaction() as connection:
            serialize(connection)
            if self._version(connection) is None:
                self._refuse_encoding(connection)
                if not connection.execute(_MAY_USE).scalar_one_or_none():
                    connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")
                create_tables(connection)
            else:
                self._bring_up_to_date(connection)
            if self._found(connection) is not None:
                raise self._exists()
            last = connection.execute(select(func.max(searches.c.search_id))).scalar()
            search_id = (last or 0) + 1
            fill(connection, {"search_id": search_id, "name": self.place.search})
            session.take(connection, search_id)
            return PostgresStore(self.place, engine, search_id, session)

    def open(self, *, writable: bool) -> Store:
        """Connect, and take the lock of the search where it is to be written."""
        if writable:
            with self._writer() as (engine, session), session.transaction() as connection:
                serialize(connection)
                search_id = self._checked(connection, writable=True)
                session.take(connection, search_id)
                store = PostgresStore(self.place, engine, search_id, session)
                store.migrated = self._bring_up_to_date(connection, besides=search_id)
                return store
        with ExitStack() as on_error:
            engine = database_engine(self.place, writable=False)
            on_error.callback(engine.dispose)
            with database_errors(self.place), engine.begin() as connection:
                search_id = self._checked(connection, writable=False)
            on_error.pop_all()  # nothing went wrong: the store owns the engine
            return PostgresStore(self.place, engine, search_id, None)

    def owner(self) -> Owner | None:
        """Return whose session holds the lock."""
        with self._looking() as connection:
            search_id = self._checked(connection, writable=False)
            return live_owner(connection, search_id)

    def compact(self) -> tuple[int, int]:
        """Vacuum the tables of all searches of the database; nobody has to wait for that."""
        with self._looking() as connection:
            self._checked(connection, writable=False)
            before = _size(connection)
        engine = database_engine(self.place, writable=True)
        try:
            with database_errors(self.place), engine.connect() as connection:
                free = connection.execution_options(isolation_level="AUTOCOMMIT")
                for table in METADATA.sorted_tables:
                    free.exec_driver_sql(f"VACUUM (ANALYZE) {table.name}")
        finally:
            engine.dispose()
        with self._looking() as connection:
            return before, _size(connection)

    @contextmanager
    def _looking(self) -> Iterator[Connection]:
        engine = database_engine(self.place, writable=False)
        try:
            with database_errors(self.place), engine.begin() as connection:
                yield connection
        finally:
            engine.dispose()

    @contextmanager
    def _writer(self) -> Iterator[tuple[Engine, WriterSession]]:
        """Lend a session that may write; it goes on when all went well."""
        with database_errors(self.place), ExitStack() as on_error:
            engine = database_engine(self.place, writable=True)
            on_error.callback(engine.dispose)
            session = WriterSession(self.place, engine)
            on_error.callback(session.release)
            yield engine, session
            session.begin_heartbeat()
            on_error.pop_all()

    def _checked(self, connection: Connection, *, writable: bool) -> int:
        """Return the number of the search, whose tables this mergefront can use."""
        version = self._version(connection)
        if version is None:
            raise self._not_found("its database holds no search")
        check_version(self.place, *version, writable=writable)
        found = self._found(connection)
        if found is None:
            raise self._not_found(f"its database holds {_names(connection)}")
        return found

    def _version(self, connection: Connection) -> tuple[int, str] | None:
        """Return the schema of the database; None where there are no tables of ours."""
        may_use = connection.execute(_MAY_USE).scalar_one_or_none()
        if may_use is False:
            user = connection.exec_driver_sql("SELECT current_user").scalar_one()
            raise ArchiveError(
                f"archive {self.place} cannot be used by user `{user}`: it may not use the schema "
                f"`{SCHEMA}`; its owner can GRANT that",
                path=str(self.place),
            )
        return found_version(connection) if may_use else None

    def _refuse_encoding(self, connection: Connection) -> None:
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            name = self.place.connection.get("dbname", "NAME")
            raise ArchiveError(
                f"archive {self.place} cannot be made: its database has the encoding {encoding}, "
                "which does not hold every text; make another, `createdb --encoding=UTF8 "
                f"--template=template0 {name}-utf8`",
                path=str(self.place),
            )

    def _found(self, connection: Connection) -> int | None:
        query = select(searches.c.search_id).where(searches.c.name == self.place.search)
        return connection.execute(query).scalar()

    def _bring_up_to_date(self, connection: Connection, besides: int = 0) -> tuple[str, ...]:
        """Apply what is missing in the tables, unless an older mergefront is writing there."""
        version = self._version(connection)
        if version is None or version[0] == schema_version():
            return ()
        check_version(self.place, *version, writable=True)
        others = live_searches(connection) - {besides}
        if others:
            query = select(searches.c.name).where(searches.c.search_id.in_(others))
            names = ", ".join(sorted(connection.execute(query).scalars()))
            raise ArchiveLockedError(
                f"the tables of {self.place.database} have schema {version[0]} and cannot be "
                f"brought to {schema_version()} while others are written: {names}; wait until "
                "they end",
                path=str(self.place),
            )
        return tuple(migrate(connection))

    def _exists(self) -> ArchiveExistsError:
        return ArchiveExistsError(
            f"archive {self.place} exists already; go on with `mergefront resume "
            f"{shlex.quote(str(self.place))}`, or name another search in the key `archive` of the "
            "job (?search=NAME)",
            path=str(self.place),
        )

    def _not_found(self, found: str) -> ArchiveNotFoundError:
        return ArchiveNotFoundError(
            f"there is no archive at {self.place}: {found}; start a search with "
            "`mergefront run JOB.yaml`",
            path=str(self.place),
        )


def _names(connection: Connection) -> str:
    names = connection.execute(select(searches.c.name).order_by(searches.c.name)).scalars().all()
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return f"{', '.join(f'`{name}`' for name in names[:_MAX_NAMES]) or 'no search'}{more}"


def _size(connection: Connection) -> int:
    query = (
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM pg_class "
        "WHERE relnamespace = to_regnamespace(:name) AND relkind = 'r'"
    )
    return int(connection.execute(text(query), {"name": SCHEMA}).scalar_one())
