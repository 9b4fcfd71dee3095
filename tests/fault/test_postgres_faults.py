"""What an archive in PostgreSQL promises when a writer dies, hangs or loses the server."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import ArchiveError, ArchiveLockedError
from optimizer.archive.archive import Archive
from tests.contract.archive_examples import completed, example_archive, example_candidate
from tests.postgres_server import PostgresServer, find_programs

pytestmark = pytest.mark.slow  # starts a database server

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}
_WRITER = """
import sys
from optimizer.archive.archive import Archive
from tests.contract.archive_examples import *
with Archive.open(sys.argv[1], writable=True) as archive:
    for line in sys.stdin:
        index = len(archive.candidates())
        try:
            archive.record_proposal(example_candidate(index))
            archive.record_outcome(completed(index))
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        else:
            print("recorded", index, flush=True)
"""


class Writer:
    """Another process that has an archive open for writing."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _WRITER, url],
            env=ENVIRONMENT, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def record(self) -> str:
        self.ask()
        return self.answer()

    def ask(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture
def url(postgres) -> str:
    url = postgres.url(postgres.empty_database(), "search")
    example_archive(url).close()
    return url


@pytest.fixture
def writer(url) -> Iterator[Writer]:
    writer = Writer(url)
    assert writer.record() == "recorded 0\n"
    yield writer
    writer.process.kill()
    writer.process.communicate()


def database_of(url: str) -> str:
    return url.split("/")[3].partition("?")[0]


def test_second_writer_is_admitted_when_the_first_was_killed(url, writer) -> None:
    with pytest.raises(ArchiveLockedError, match=f"by process {writer.process.pid} on ") as caught:
        Archive.open(url, writable=True)
    assert caught.value.context["owner"]["pid"] == writer.process.pid
    writer.process.kill()
    started = time.monotonic()
    with Archive.open(url, writable=True) as second:
        assert time.monotonic() - started < 30, "it waited for the lock"
        assert len(second.observations()) == 1
        second.record_proposal(example_candidate(1))
        assert second.record_outcome(completed(1))


def test_writer_that_hangs_loses_its_archive_and_cannot_write_again(postgres, url, writer) -> None:
    """As a machine that lost power, or a network that was cut, looks to the server."""
    writer.process.send_signal(signal.SIGSTOP)
    with pytest.raises(ArchiveLockedError, match=r"last sign of life \d+ s ago"):
        Archive.open(url, writable=True)
    postgres.execute("UPDATE owners SET heartbeat_s = heartbeat_s - 61", database_of(url))
    with Archive.open(url, writable=True) as second:
        second.record_proposal(example_candidate(1))
        writer.ask()
        writer.process.send_signal(signal.SIGCONT)
        answer = writer.answer()
        assert answer.startswith(f"ArchiveLockedError archive {url} is being written by process")
        assert "this process was silent for so long" in answer
        assert second.record_outcome(completed(1))
        assert len(second.candidates()) == 2


@pytest.fixture
def mortal_postgres() -> Iterator[PostgresServer]:
    """A server that a test may stop."""
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    programs = find_programs()
    if programs is None:
        pytest.skip("PostgreSQL is not installed here; `apt-get install postgresql` has it")
    with PostgresServer(programs) as server:
        yield server


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT])
def test_writer_goes_on_when_the_server_was_started_again(
    mortal_postgres, how, monkeypatch
) -> None:
    monkeypatch.setattr("optimizer.archive.postgres_lock.PING_AFTER_S", 0.0)
    url = mortal_postgres.url("postgres", "search")
    with example_archive(url) as archive:
        archive.record_proposal(example_candidate(0))
        archive.record_outcome(completed(0))
        mortal_postgres.stop(how)
        mortal_postgres.start()
        archive.record_proposal(example_candidate(1))
        with pytest.raises(ArchiveLockedError):
            Archive.open(url, writable=True)
        assert archive.record_outcome(completed(1))
        assert len(archive.observations()) == 2
    with Archive.open(url) as reader:
        assert len(reader.observations()) == 2


def test_writer_says_so_when_the_server_stays_away(mortal_postgres, monkeypatch) -> None:
    for name, seconds in (("PING_AFTER_S", 0.0), ("RECONNECT_S", 0.5)):
        monkeypatch.setattr(f"optimizer.archive.postgres_lock.{name}", seconds)
    url = mortal_postgres.url("postgres", "search")
    with example_archive(url) as archive:
        archive.record_proposal(example_candidate(0))
        mortal_postgres.stop(signal.SIGQUIT)
        with pytest.raises(ArchiveError, match="cannot be reached"):
            archive.record_outcome(completed(0))
        mortal_postgres.start()
        assert archive.record_outcome(completed(0))


def test_connection_that_is_lost_in_a_transaction_writes_nothing(postgres, url) -> None:
    with Archive.open(url, writable=True) as archive:
        archive.record_proposal(example_candidate(0))

        def write() -> None:
            with archive._store.writing() as connection:
                connection.exec_driver_sql("INSERT INTO meta VALUES ('half', 'x')")
                postgres.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()",
                    database_of(url),
                )
                connection.exec_driver_sql("INSERT INTO meta VALUES ('whole', 'x')")

        with pytest.raises(ArchiveError, match=r"was lost: .*Everything recorded before is safe"):
            write()
        rows = postgres.execute("SELECT key FROM meta", database_of(url))
        assert ("half",) not in rows
        assert archive.record_outcome(completed(0))
