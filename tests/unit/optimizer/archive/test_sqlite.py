"""What is particular to an archive in an SQLite file: the file, its durability, its damage."""

import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from configs.errors import ArchiveError, ArchiveExistsError, ArchiveLockedError
from optimizer.archive.archive import Archive
from tests.contract.archive_examples import (
    completed,
    example_archive,
    example_candidate,
)


def record(archive: Archive, count: int) -> None:
    first = len(archive.candidates())
    for index in range(first, first + count):
        archive.record_proposal(example_candidate(index))
        archive.record_outcome(completed(index))


def names_in(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "search.sqlite"


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an archive of mergefront but an empty file"),
        (b"seed: 3\n", "is none, or its beginning is damaged: file is not a database"),
        (b"SQLite format 3\0", "damaged"),
        (b"SQLite format 3\0" + bytes(5000), "damaged"),
    ],
)
def test_open_refuses_when_file_is_no_archive(path, content, message, writable) -> None:
    path.write_bytes(content)

    with pytest.raises(ArchiveError, match=message) as caught:
        Archive.open(path, writable=writable)
    assert str(path) in caught.value.message
    assert path.read_bytes() == content


@pytest.mark.parametrize("has_meta", [False, True])
def test_open_refuses_when_database_is_of_something_else(path, has_meta) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE songs (title)")
        if has_meta:
            connection.execute("CREATE TABLE meta (key, value)")
            connection.execute("INSERT INTO meta VALUES ('schema_version', '1')")

    with pytest.raises(
        ArchiveError, match="not an archive of mergefront but an SQLite database of"
    ):
        Archive.open(path)


def test_open_refuses_when_path_is_a_directory(tmp_path) -> None:
    with pytest.raises(ArchiveError, match="not an archive of mergefront but not a file"):
        Archive.open(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.999])
@pytest.mark.parametrize("writable", [False, True])
def test_open_refuses_when_file_is_truncated(path, share, writable) -> None:
    with example_archive(path) as archive:
        record(archive, 20)
    size = path.stat().st_size
    os.truncate(path, int(size * share))

    with pytest.raises(ArchiveError, match=r"damaged.*Restore it from a copy"):
        Archive.open(path, writable=writable)


def test_changed_recipe_is_refused_by_who_uses_it(path) -> None:
    with example_archive(path) as archive:
        record(archive, 2)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER proposals_no_update")
        connection.execute(
            "UPDATE proposals SET recipe = replace(recipe, 'dare_linear', 'linear') "
            "WHERE candidate = 1"
        )

    message = r"candidate 1 has id .*, recorded was .*damaged"
    with Archive.open(path) as archive:
        sound, changed = archive.candidates()
        assert sound.recipe.method == "dare_linear"
        with pytest.raises(ArchiveError, match=message):
            assert changed.recipe
    # Who goes on with a search goes by all of it.
    with Archive.open(path, writable=True) as archive, pytest.raises(ArchiveError, match=message):
        archive.candidates()


@pytest.mark.parametrize(
    "name", ["a b?mode=memory#x%20.sqlite", "ünï.sqlite", "no-suffix", os.fsdecode(b"\xff.sqlite")]
)
def test_archive_may_have_any_name(tmp_path, name) -> None:
    with example_archive(tmp_path / "new" / "directory" / name) as archive:
        record(archive, 1)

    assert names_in(tmp_path / "new" / "directory") == sorted([name, name + ".lock"])
    with Archive.open(tmp_path / "new" / "directory" / name) as archive:
        assert len(archive.observations()) == 1


@pytest.mark.parametrize("name", ["nul\0.sqlite", "x" * 300 + ".sqlite", "file/below.sqlite"])
def test_archive_is_refused_when_no_file_can_have_the_name(tmp_path, name) -> None:
    (tmp_path / "file").touch()
    for make in (example_archive, Archive.open):
        with pytest.raises(ArchiveError):
            make(tmp_path / name)


def test_archive_is_one_whatever_it_is_called(path, tmp_path, monkeypatch) -> None:
    (tmp_path / "link.sqlite").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    with example_archive(path):
        for other in (Path(path.name), Path("link.sqlite"), tmp_path / "." / path.name):
            with pytest.raises(ArchiveLockedError):
                Archive.open(other, writable=True)
            with pytest.raises(ArchiveExistsError):
                example_archive(other)


def test_archive_may_be_made_from_a_directory_of_any_name(path, tmp_path, monkeypatch) -> None:
    here = tmp_path / os.fsdecode(b"\xff and more")
    here.mkdir()
    monkeypatch.chdir(here)
    example_archive(path).close()
    with Archive.open(path) as archive:
        assert archive.working_directory == here


def test_create_clears_what_a_killed_create_left(path) -> None:
    for left in (".search.sqlite.new", ".search.sqlite.new-journal", "search.sqlite-wal"):
        path.with_name(left).write_bytes(b"half an archive")

    with example_archive(path) as archive:
        record(archive, 1)
    assert names_in(path.parent) == ["search.sqlite", "search.sqlite.lock"]


def test_create_does_not_revive_the_log_of_a_removed_archive(path) -> None:
    """A log that outlived its file would be replayed into the next file of the same name."""
    with example_archive(path) as archive:
        record(archive, 3)
        log = path.with_name("search.sqlite-wal").read_bytes()
    path.unlink()
    path.with_name("search.sqlite-wal").write_bytes(log)

    with example_archive(path) as archive:
        assert archive.candidates() == []
        record(archive, 1)
    with Archive.open(path) as archive:
        assert len(archive.candidates()) == 1


def test_commit_waits_for_the_disk(path) -> None:
    with example_archive(path) as archive, archive._transaction() as connection:
        found = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        ]
    assert found == ["wal", 2, 1]


def test_writer_is_not_held_up_by_a_reader_that_stays(path) -> None:
    with example_archive(path) as archive:
        record(archive, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            assert reader.execute("SELECT count(*) FROM outcomes").fetchone() == (1,)
            started = time.monotonic()
            record(archive, 10)
            assert time.monotonic() - started < 5.0  # a lock would have cost 30 s
            assert reader.execute("SELECT count(*) FROM outcomes").fetchone() == (1,)


def test_reader_is_not_held_up_by_a_write_in_progress(path) -> None:
    with example_archive(path) as archive:
        record(archive, 1)
        with closing(sqlite3.connect(path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("UPDATE meta SET value = value")
            started = time.monotonic()
            with Archive.open(path) as reader:
                assert len(reader.observations()) == 1
            assert time.monotonic() - started < 5.0
            writer.execute("ROLLBACK")


@pytest.mark.slow
def test_writer_keeps_its_log_when_readers_come_and_go(path) -> None:
    """Closing a descriptor drops a process's locks on a file; the writer must not lose its own.

    Without them the reader in the other process takes itself for the last one to leave, and
    removes the log that the writer goes on writing to.
    """
    other = (
        "import sys; from pathlib import Path; from optimizer.archive.archive import Archive; "
        "archive = Archive.open(Path(sys.argv[1])); print(len(archive.observations())); "
        "archive.close()"
    )
    with example_archive(path) as archive:
        record(archive, 1)
        for count in (1, 2):
            Archive.open(path).close()
            seen = subprocess.run(
                [sys.executable, "-c", other, str(path)],
                env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
                capture_output=True,
                text=True,
                check=True,
            )
            assert seen.stdout == f"{count}\n"
            assert path.with_name("search.sqlite-wal").exists()
            record(archive, 1)


def test_reader_leaves_the_file_as_it_is(path) -> None:
    with example_archive(path) as archive:
        record(archive, 2)
    before = path.read_bytes()

    with Archive.open(path) as reader:
        reader.observations()
    assert path.read_bytes() == before
    assert names_in(path.parent) == ["search.sqlite", "search.sqlite.lock"]


def test_archive_can_be_read_where_nothing_can_be_written(path, tmp_path) -> None:
    with example_archive(path) as archive:
        record(archive, 2)
    mounted = tmp_path / "read-only"
    mounted.mkdir()
    bind = ["mount", "--bind", "-o", "ro", str(tmp_path), str(mounted)]
    if os.geteuid() != 0 or subprocess.run(bind, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a read-only directory here: needs root")
    try:
        with Archive.open(mounted / path.name) as reader:
            assert len(reader.observations()) == 2
        with pytest.raises(ArchiveError, match="cannot be locked for writing: Read-only file"):
            Archive.open(mounted / path.name, writable=True)
    finally:
        subprocess.run(["umount", str(mounted)], check=True)


def test_refused_write_leaves_no_trace(path) -> None:
    """The database refuses in the middle of an outcome; nothing of it may stay."""
    with example_archive(path) as archive:
        record(archive, 1)
        archive.record_proposal(example_candidate(1))
        trigger = (
            "CREATE TRIGGER refuse BEFORE INSERT ON texts "
            "BEGIN SELECT RAISE(ABORT, 'not today'); END"
        )
        with closing(sqlite3.connect(path)) as other, other:
            other.execute(trigger)
        with pytest.raises(ArchiveError, match="refuses the change: not today"):
            archive.record_outcome(completed(1))
        assert len(archive.observations()) == 1
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("DROP TRIGGER refuse")
            for table in ("outcomes", "objective_scores", "item_scores", "texts"):
                rows = other.execute(f"SELECT count(*) FROM {table} WHERE candidate = 1")  # noqa: S608 - our own names
                assert rows.fetchone() == (0,)

        assert archive.record_outcome(completed(1)) is True
        assert [outcome.sequence for outcome in archive.outcomes("search")] == [0, 1]
