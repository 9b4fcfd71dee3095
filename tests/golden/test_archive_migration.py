"""An archive of an earlier mergefront goes on in this one.

``archive_schema_3.sqlite.gz`` was written by mergefront at commit ac431f2, schema 3, with the
examples of ``tests/contract/archive_examples.py``: a warm start, three candidates, of which one has
companions, one was stopped after a block and one failed, a held-out score and a choice. There is
no way to make it again but that commit; it is never changed.
"""

import gzip
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import inspect

from configs.errors import SchemaVersionError
from configs.racing import Racing, Screening
from optimizer.archive import migrations
from optimizer.archive.archive import Archive
from optimizer.archive.migrations import MIGRATIONS, schema_version
from optimizer.archive.sqlite import file_engine
from optimizer.archive.verify import verify_archive
from tests.contract.archive_examples import (
    completed,
    example_archive,
    example_candidate,
    example_job,
    example_manifest,
    example_sources,
    example_values,
)
from tests.fault.refused_commands import mergefront, refused

GOLDEN = Path(__file__).with_name("archive_schema_3.sqlite.gz")


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "search.sqlite"
    path.write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    return path


def rows_of(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path)) as file:
        tables = file.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {name: file.execute(f"SELECT * FROM {name}").fetchall() for (name,) in tables}  # noqa: S608 - names of tables


def test_reader_says_what_brings_an_older_archive_up_to_date(path) -> None:
    before = path.read_bytes()
    with pytest.raises(SchemaVersionError, match=r"schema 3, .* reads \d+; bring it up to date "):
        Archive.open(path)
    message = refused(mergefront("status", path), 4, f"mergefront archive migrate {path}")
    assert path.read_bytes() == before

    command = message.split("`")[1].split()
    assert command[0] == "mergefront"
    assert mergefront(*command[1:]).exit_code == 0
    assert mergefront("status", path).exit_code == 0


def test_older_archive_goes_on_with_all_that_it_holds(path) -> None:
    before = rows_of(path)
    with Archive.open(path, writable=True) as archive:
        # Defaults that are others now are still what they were when the search began.
        then = {
            "racing": Racing(enabled=False, confidence=0.9, sampling=False, sample_items=None),
            "screening": Screening(enabled=False, sampling=False),
            "ask_ahead": 1,
        }
        job = example_job()
        job = job.model_copy(update={"search": job.search.model_copy(update=then)})
        assert archive.job == job
        assert archive.sources == example_sources()
        assert archive.manifest == example_manifest()
        assert [c.origin for c in archive.candidates()] == ["baseline:base", *["strategy:cma"] * 2]
        told = archive.observations()
        assert [(seen.candidate.index, seen.stopped) for seen in told] == [
            (0, ""), (1, "racing"), (2, ""),
        ]  # fmt: skip
        assert told[2].scores is None
        assert archive.seeds()[0].candidate.recipe == example_candidate(9).recipe
        found = archive.task_scores(0, "report")["mbpp"].values
        assert found.tobytes() == example_values(0, "report", "mbpp").tobytes()
        assert archive.choice() == 0
        archive.record_proposal(example_candidate(3, seen=4))
        assert archive.record_outcome(completed(3))
    with Archive.open(path) as reader:
        assert len(reader.observations()) == 4
    assert verify_archive(path).problems == []

    after = rows_of(path)
    for name, rows in before.items():
        width = len(rows[0]) if rows else 0
        kept = [row[:width] for row in after[name]]
        if name not in ("meta", "runs"):
            assert set(rows) <= set(kept), name
    assert [row[0] for row in after["migrations"]] == [change.__name__ for change in MIGRATIONS]


def test_migrated_tables_are_those_of_a_new_archive(path, tmp_path) -> None:
    Archive.open(path, writable=True).close()
    example_archive(tmp_path / "new.sqlite").close()
    assert tables_of(path) == tables_of(tmp_path / "new.sqlite")


def tables_of(path: Path) -> dict[str, object]:
    """What there is of tables, columns, indexes and triggers, whatever their order."""
    engine = file_engine(path, writable=False)
    with engine.connect() as connection:
        look = inspect(connection)
        tables = {
            name: (
                {c["name"]: (str(c["type"]), c["nullable"]) for c in look.get_columns(name)},
                sorted(str(i["column_names"]) + str(i["unique"]) for i in look.get_indexes(name)),
                look.get_pk_constraint(name)["constrained_columns"],
            )
            for name in look.get_table_names()
        }
        triggers = connection.exec_driver_sql(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        ).all()
    engine.dispose()
    return {**tables, "triggers": [tuple(row) for row in triggers]}


def test_migration_is_applied_once(path) -> None:
    first = mergefront("archive", "migrate", path, "--json")
    again = mergefront("archive", "migrate", path)
    assert '"m004_searches_have_names"' in first.stdout
    assert again.stdout == f"{path}: nothing to do\n"


def test_migration_that_fails_leaves_the_archive_as_it_was(path, monkeypatch) -> None:
    def m999_fails(connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (a)")
        connection.exec_driver_sql("CREATE TABLE half (a)")

    before = rows_of(path)
    monkeypatch.setattr(migrations, "MIGRATIONS", [*MIGRATIONS, m999_fails])
    assert mergefront("archive", "migrate", path).exit_code == 4
    assert rows_of(path) == before


def test_version_counts_the_migrations() -> None:
    names = [change.__name__ for change in MIGRATIONS]
    assert schema_version() == int(names[-1][1:4])
    assert [int(name[1:4]) for name in names] == list(range(4, 4 + len(names)))


@pytest.mark.parametrize("version", ["2", "99"])
def test_schema_that_cannot_follow_is_refused(path, version) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", [version])
    for writable in (False, True):
        with pytest.raises(SchemaVersionError, match=rf"schema {version}, .*start a new archive"):
            Archive.open(path, writable=writable)
