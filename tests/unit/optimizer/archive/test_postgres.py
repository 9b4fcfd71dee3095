"""What is particular to an archive in PostgreSQL: the database, its settings, its refusals."""

import importlib.util
import socket
import time

import psycopg
import pytest

from configs.errors import (
    ArchiveError,
    ArchiveLockedError,
    ArchiveNotFoundError,
    SchemaVersionError,
)
from optimizer.archive import migrations
from optimizer.archive.archive import Archive
from optimizer.archive.migrations import MIGRATIONS
from optimizer.archive.schema import APPEND_ONLY
from optimizer.archive.store import backend_of
from tests.contract.archive_examples import completed, example_archive, example_candidate
from tests.fault.refused_commands import mergefront, refused
from tests.postgres_server import PASSWORD
from tests.unit.optimizer.synthetic_archive import Merge, build
from workers.toll import Loss

pytestmark = pytest.mark.slow  # starts a database server

PASSWORD_PARTS = PASSWORD.split()


def record(archive: Archive, count: int) -> None:
    first = len(archive.candidates())
    for index in range(first, first + count):
        archive.record_proposal(example_candidate(index))
        archive.record_outcome(completed(index))


@pytest.fixture
def database(postgres) -> str:
    return postgres.empty_database()


@pytest.fixture
def url(postgres, database) -> str:
    return postgres.url(database, "one")


# What cannot be reached


def test_missing_driver_is_named(monkeypatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "psycopg" else found(name)
    )
    with pytest.raises(ArchiveError, match=r"pip install 'mergefront\[postgres\]'"):
        Archive.open("postgresql://db/merges")


@pytest.mark.parametrize("writable", [False, True])
def test_server_that_is_not_there_is_named_at_once(writable) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(
        ArchiveError, match=rf"127\.0\.0\.1:{port}/m.* cannot be reached: .*refused"
    ):
        Archive.open(f"postgresql://127.0.0.1:{port}/m", writable=writable)
    assert time.monotonic() - started < 5.0


def test_server_that_never_answers_is_given_up() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(ArchiveError, match=r"cannot be reached: .*timeout"):
            Archive.open(f"postgresql://127.0.0.1:{port}/m?connect_timeout=2")
        assert time.monotonic() - started < 10.0


def test_host_that_does_not_exist_is_named() -> None:
    with pytest.raises(ArchiveError, match=r"nowhere\.invalid/m.* cannot be reached"):
        Archive.open("postgresql://nowhere.invalid/m")


@pytest.mark.parametrize("password", ["wrong password", None])
def test_password_that_is_wrong_is_refused_and_never_shown(
    postgres, database, password, monkeypatch, tmp_path
) -> None:
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    if password is not None:
        monkeypatch.setenv("PGPASSWORD", password)
    message = refused(
        mergefront("status", postgres.tcp_url(database)), 4,
        "`mergefront` has no or the wrong password", "PGPASSWORD",
    )  # fmt: skip
    assert "wrong password (" in message  # the words of ours, then those of the server
    assert message.count("wrong password") == 1


def test_password_comes_from_the_environment(postgres, database, monkeypatch) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    with example_archive(postgres.tcp_url(database)) as archive:
        record(archive, 1)
        assert PASSWORD not in str(archive.place)
    rows = postgres.execute("SELECT * FROM searches", database)
    assert not any(PASSWORD in str(row) for row in rows)


def test_user_and_database_that_do_not_exist_are_named(postgres, database) -> None:
    with pytest.raises(ArchiveError, match=r'role "nobody" does not exist.*user in the URL'):
        Archive.open(postgres.url(database).replace("mergefront@", "nobody@"))
    with pytest.raises(ArchiveError, match=r'database "none" does not exist.*createdb none'):
        Archive.open(postgres.url("none"))


def test_user_who_may_not_write_is_refused(postgres, database, url) -> None:
    example_archive(url).close()
    postgres.execute("DROP ROLE IF EXISTS guest")
    postgres.execute("CREATE ROLE guest LOGIN")
    guest = url.replace("mergefront@", "guest@")
    with pytest.raises(
        ArchiveError, match="cannot be used by user `guest`: it may not use the schema"
    ):
        Archive.open(guest)
    postgres.execute("GRANT USAGE ON SCHEMA mergefront TO guest", database)
    postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA mergefront TO guest", database)
    with Archive.open(guest) as reader:
        assert reader.candidates() == []
    with pytest.raises(ArchiveError, match="permission denied"):
        Archive.open(guest, writable=True)
    with pytest.raises(ArchiveError, match="permission denied for database"):
        example_archive(
            postgres.url(postgres.empty_database("others")).replace("mergefront@", "guest@")
        )


# Several searches in one database


def test_database_holds_searches_that_do_not_mix(postgres, database) -> None:
    places = [postgres.url(database, name) for name in ("one", "two")]
    with example_archive(places[0]) as one, example_archive(places[1]) as two:
        record(one, 2)
        record(two, 3)
        record(one, 2)
        assert (len(one.observations()), len(two.observations())) == (4, 3)
        for place in places:
            with pytest.raises(ArchiveLockedError, match="being written by process"):
                Archive.open(place, writable=True)
    with Archive.open(places[1]) as two:
        assert [seen.candidate.index for seen in two.observations()] == [0, 1, 2]


def test_url_without_a_name_is_the_search_default(postgres, database) -> None:
    example_archive(postgres.url(database)).close()
    with Archive.open(postgres.url(database, "default")) as archive:
        assert str(archive.place).endswith("search=default")


def test_search_that_is_not_there_is_told_from_those_that_are(postgres, database, url) -> None:
    with pytest.raises(ArchiveNotFoundError, match="its database holds no search"):
        Archive.open(url)
    for name in ("b", "a"):
        example_archive(postgres.url(database, name)).close()
    with pytest.raises(ArchiveNotFoundError, match=r"its database holds `a`, `b`; start a search"):
        Archive.open(url)
    assert not Archive.exists(url)
    assert Archive.exists(postgres.url(database, "a"))


def test_tables_stay_out_of_the_way_of_others(postgres, database, url) -> None:
    postgres.execute("CREATE TABLE public.meta (title text)", database)
    assert not Archive.exists(url)
    example_archive(url).close()
    found = postgres.execute(
        "SELECT DISTINCT table_schema FROM information_schema.tables "
        "WHERE table_schema NOT IN ('information_schema', 'pg_catalog') ORDER BY 1",
        database,
    )
    assert found == [("mergefront",), ("public",)]


def test_create_that_fails_leaves_nothing(postgres, database, url) -> None:
    def fill(connection, search) -> None:
        raise ArchiveError("no")

    for _ in range(2):
        with pytest.raises(ArchiveError, match=r"^no$"):
            backend_of(url).begin(fill)
    assert not Archive.exists(url)
    example_archive(url).close()


# Durability and isolation


def test_commit_waits_for_the_disk_whatever_the_default(postgres, database, url) -> None:
    postgres.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    with example_archive(url) as archive, archive._store.writing() as connection:
        found = connection.exec_driver_sql("SHOW synchronous_commit").scalar_one()
    assert found == "on"


def test_writer_is_not_held_up_by_a_reader_that_stays(postgres, url) -> None:
    with example_archive(url) as archive, Archive.open(url) as reader:
        record(archive, 1)
        with reader._transaction() as connection:
            query = "SELECT count(*) FROM outcomes"
            assert connection.exec_driver_sql(query).scalar_one() == 1
            started = time.monotonic()
            record(archive, 10)
            assert time.monotonic() - started < 5.0  # a lock would have cost 30 s
            assert connection.exec_driver_sql(query).scalar_one() == 1
        assert len(reader.observations()) == 11


def test_reader_cannot_write_at_all(url) -> None:
    example_archive(url).close()
    with (
        Archive.open(url) as reader,
        pytest.raises(
            ArchiveError, match="cannot be written: cannot execute INSERT in a read-only"
        ),
        reader._transaction() as connection,
    ):
        connection.exec_driver_sql("INSERT INTO meta VALUES ('a', 'b')")


def test_tables_cannot_be_emptied(postgres, database, url) -> None:
    example_archive(url).close()
    for table in APPEND_ONLY:
        with pytest.raises(psycopg.errors.RaiseException, match="is append-only: TRUNCATE"):
            postgres.execute(f"TRUNCATE {table.name} CASCADE", database)


def test_refused_write_leaves_no_trace(postgres, database, url) -> None:
    with example_archive(url) as archive:
        record(archive, 1)
        archive.record_proposal(example_candidate(1))
        postgres.execute(
            "ALTER TABLE texts ADD CONSTRAINT refuse CHECK (candidate < 1) NOT VALID", database
        )
        with pytest.raises(ArchiveError, match=r"refuses the change: .*refuse"):
            archive.record_outcome(completed(1))
        assert len(archive.observations()) == 1
        postgres.execute("ALTER TABLE texts DROP CONSTRAINT refuse", database)
        for table in ("outcomes", "objective_scores", "item_scores", "texts"):
            query = f"SELECT count(*) FROM {table} WHERE candidate = 1"  # noqa: S608 - our own names
            assert postgres.execute(query, database) == [(0,)]
        assert archive.record_outcome(completed(1)) is True


# Migrations


@pytest.fixture
def newer(monkeypatch):
    """From now on, this is a mergefront with one more table."""

    def begin() -> None:
        def m999_more(connection) -> None:
            connection.exec_driver_sql("CREATE TABLE more (a INTEGER)")

        monkeypatch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, m999_more])

    return begin


def test_database_is_brought_up_to_date_when_it_is_opened_for_writing(url, newer) -> None:
    with example_archive(url) as archive:
        record(archive, 1)
    newer()
    with pytest.raises(SchemaVersionError, match=r"mergefront archive migrate postgresql://"):
        Archive.open(url)
    with Archive.open(url, writable=True) as archive:
        record(archive, 1)
    with Archive.open(url) as reader:
        assert len(reader.observations()) == 2


def test_database_of_schema_4_goes_on_as_a_new_one(postgres, database, url) -> None:
    """What ``m005_losses_are_kept`` makes is what a new database has."""

    def found() -> list[list[tuple[object, ...]]]:
        queries = (
            "SELECT column_name, data_type, is_nullable FROM information_schema.columns "
            "WHERE table_name = 'losses'",
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE tgname LIKE 'losses%'",
            "SELECT pg_get_constraintdef(oid) FROM pg_constraint "
            "WHERE conrelid = 'mergefront.losses'::regclass",
        )
        return [sorted(postgres.execute(query, database)) for query in queries]

    with example_archive(url) as archive:
        record(archive, 1)
    before = found()
    for statement in (
        "DROP TABLE losses",
        "DELETE FROM migrations WHERE name = 'm005_losses_are_kept'",
        "UPDATE meta SET value = '4' WHERE key = 'schema_version'",
    ):
        postgres.execute(statement, database)
    with Archive.open(url, writable=True) as archive:
        archive.record_loss(Loss(completed(0).key, 1, "node", "WorkerLostError", "it died"))
    assert found() == before
    assert [len(rows) for rows in before[:2]] == [12, 3]


def test_database_is_not_changed_under_an_older_mergefront(postgres, database, url, newer) -> None:
    with example_archive(url), example_archive(postgres.url(database, "two")) as two:
        two.close()
        newer()
        for refuse in (
            lambda: Archive.open(postgres.url(database, "two"), writable=True),
            lambda: example_archive(postgres.url(database, "three")),
        ):
            with pytest.raises(ArchiveLockedError, match="while others are written: one;"):
                refuse()
    assert mergefront("archive", "migrate", url).stdout.endswith("search=one: m999_more\n")
    Archive.open(postgres.url(database, "two"), writable=True).close()


# Commands


def test_every_reading_command_takes_a_url(postgres, database, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    merges = (
        Merge((0, 0, 0), (0.1,) * 3, report=(0.1,) * 3, origin="baseline:base"),
        Merge((0.7, 0.6, 0.5), (0.9,) * 3, select=(0.8,) * 3, report=(0.7,) * 3),
    )
    file = build(tmp_path / "a.sqlite", merges, chosen=1, budget={"evaluations": 2})
    url = postgres.url(database, "team")
    assert mergefront("archive", "copy", file, url).exit_code == 0
    for command in ("status", "report", "front", "recipe"):
        texts = [mergefront(command, place).stdout for place in (file, url)]
        # What a job says of its archive is of where it began; what is published names no server.
        told = [text.replace(str(file), url) for text in texts]
        assert told[0].replace('"a.sqlite"', '"ARCHIVE"') == told[1], command
    done = mergefront("plot", url, "--out", tmp_path / "front.png")
    assert (done.exit_code, (tmp_path / "front.png").stat().st_size > 1000) == (0, True)
    mergefront("plot", url)
    assert (tmp_path / "team-front.html").is_file()


def test_status_names_a_writer_anywhere(postgres, database, url) -> None:
    with example_archive(url):
        assert "running; process" in mergefront("status", url).stdout
        postgres.execute("UPDATE owners SET host = 'another'", database)
        assert " on another" in mergefront("status", url).stdout
    assert "interrupted" in mergefront("status", url).stdout
