"""Copying, verifying and compacting archives: ``mergefront archive ...``."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from configs.errors import ArchiveError, ArchiveExistsError
from evaluators.blocks import block_name
from optimizer.archive import copy
from optimizer.archive.archive import Archive
from optimizer.archive.copy import copy_archive
from optimizer.archive.schema import APPEND_ONLY
from optimizer.archive.seeds import Seed, WarmStart
from optimizer.archive.stops import Stop
from optimizer.archive.verify import verify_archive
from optimizer.candidate import Observation
from tests.contract.archive_examples import (
    completed,
    completed_block,
    example_archive,
    example_candidate,
    failed,
    item_ids,
    with_companion,
)
from tests.fault.refused_commands import mergefront, refused
from workers.toll import Loss

pytestmark = pytest.mark.slow  # starts a database server

BLOCK = {"gsm8k": item_ids("search", "gsm8k")[:2], "mbpp": item_ids("search", "mbpp")[:3]}


def fill(place) -> None:
    """Make an archive with rows in every table."""
    seed = example_candidate(9, origin="seed:strategy:cma")
    known = Seed(Observation(seed, {}), 3, is_exact=True)
    with example_archive(place) as archive:
        archive.record_warm_start(WarmStart("/runs/old.sqlite", (known,), {"it failed": 2}))
        archive.begin_run()
        for index in range(3):
            origin = "baseline:base" if index == 0 else "strategy:cma"
            archive.record_proposal(example_candidate(index, origin=origin))
        archive.record_outcome(with_companion(completed(0)))
        name = archive.record_block("search", BLOCK)
        archive.record_outcome(completed_block(1, name, BLOCK))
        archive.record_stops({1: Stop(reason="racing", scores=None, numbers={"by": 0})})
        archive.record_loss(Loss(failed(2).key, 1, "node", "WorkerLostError", "it died"))
        archive.record_outcome(failed(2))
        archive.record_outcome(completed(0, "report"))
        archive.record_choice(0, "the only one")


@pytest.fixture
def path(tmp_path) -> Path:
    fill(tmp_path / "search.sqlite")
    return tmp_path / "search.sqlite"


@pytest.fixture
def change(path) -> Callable[[str], None]:
    """Changes what never changes, as a broken disk or a curious hand would."""

    def change(statement: str) -> None:
        with closing(sqlite3.connect(path)) as file, file:
            for (trigger,) in file.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall():
                file.execute(f"DROP TRIGGER {trigger}")
            assert file.execute(statement).rowcount != 0, statement

    return change


def everything(place) -> dict[str, object]:
    with Archive.open(place) as archive:
        return {
            "job": archive.job,
            "created_at": archive.created_at,
            "directory": archive.working_directory,
            "elapsed_s": archive.elapsed_s,
            "genotypes": [c.genotype.tobytes() for c in archive.candidates()],
            "recipes": [c.recipe for c in archive.candidates()],
            "evaluations": archive.evaluations(),
            "stops": archive.stops(),
            "left_out": archive.warm_start().left_out,
            "texts": archive.texts(0, "report"),
            "items": {t: s.values.tobytes() for t, s in archive.task_scores(0, "search").items()},
            "companions": archive.companions(0, "search")["gsm8k"].values.tobytes(),
            "choice": archive.choice(),
        }


# Copying


def test_copy_of_a_file_is_equal_and_goes_on(path, tmp_path) -> None:
    done = mergefront("archive", "copy", path, tmp_path / "new" / "copy.sqlite", "--json")
    record = json.loads(done.stdout)
    assert (record["source"], record["equal"]) == (str(path), True)
    assert all(record["rows"][table.name] > 0 for table in APPEND_ONLY)
    assert everything(record["target"]) == everything(path)
    with Archive.open(record["target"], writable=True) as archive:
        archive.record_proposal(example_candidate(3))
        assert archive.record_outcome(completed(3))
    assert verify_archive(record["target"]).is_sound


def test_copy_to_a_database_and_back_is_equal(postgres, path, tmp_path) -> None:
    database = postgres.empty_database()
    example_archive(postgres.url(database, "another")).close()
    url = postgres.url(database, "copy")
    assert mergefront("archive", "copy", path, url).stdout == f"{url}\n"
    assert everything(url) == everything(path)
    assert verify_archive(url).is_sound
    again = postgres.url(postgres.empty_database("others"), "again")
    copy_archive(url, again)
    copy_archive(again, tmp_path / "back.sqlite")
    assert everything(tmp_path / "back.sqlite") == everything(path)
    with Archive.open(url, writable=True) as archive:
        archive.record_proposal(example_candidate(3))


def test_archive_can_be_copied_while_it_is_written(path, tmp_path) -> None:
    with Archive.open(path, writable=True) as archive:
        copy_archive(path, tmp_path / "copy.sqlite")
        archive.record_proposal(example_candidate(3))
    with Archive.open(tmp_path / "copy.sqlite") as copy:
        assert len(copy.candidates()) == 3


def test_copy_does_not_replace_an_archive(path, tmp_path) -> None:
    before = path.read_bytes()
    for target in (path, tmp_path / "link.sqlite"):
        if target != path:
            target.symlink_to(path)
        refused(mergefront("archive", "copy", path, target), 4, "exists already")
    with pytest.raises(ArchiveExistsError):
        copy_archive(path, path)
    assert path.read_bytes() == before


def test_copy_that_differs_is_not_kept(path, tmp_path, monkeypatch) -> None:
    copied = copy._copy_table

    def loses_a_bit(rows, new, table, search) -> int:
        if table.name == "objective_scores":
            rows = (
                SimpleNamespace(_mapping={**row._mapping, "value": row.value * (1 + 2**-52)})
                for row in rows
            )
        return copied(rows, new, table, search)

    monkeypatch.setattr(copy, "_copy_table", loses_a_bit)
    with pytest.raises(ArchiveError, match=r"copy of table `objective_scores` differs .* in row 0"):
        copy_archive(path, tmp_path / "copy.sqlite")
    assert not (tmp_path / "copy.sqlite").exists()


@pytest.mark.parametrize("command", ["copy", "verify", "compact", "migrate"])
def test_archive_that_is_not_there_is_named(command, tmp_path) -> None:
    arguments = [tmp_path / "none.sqlite", *([tmp_path / "to.sqlite"] if command == "copy" else [])]
    refused(mergefront("archive", command, *arguments), 4, "no archive at", "none.sqlite")
    assert not (tmp_path / "to.sqlite").exists()


@pytest.mark.parametrize("url", ["postgresql://ann:hunter2@db/merges", "mysql://db/merges"])
def test_place_that_is_none_is_refused(url, path) -> None:
    for command in ("copy", "verify"):
        arguments = [path, url] if command == "copy" else [url]
        message = refused(mergefront("archive", command, *arguments), 4, "there can be no archive")
        assert "hunter2" not in message


# Verifying


def test_sound_archive_is_said_to_be_sound(path) -> None:
    done = mergefront("archive", "verify", path)
    assert (done.exit_code, done.stdout.startswith(f"{path} is sound: ")) == (0, True)
    record = json.loads(mergefront("archive", "verify", path, "--json").stdout)
    assert (record["sound"], record["problems"]) == (True, [])
    assert record["rows"]["item_scores"] == 10


@pytest.mark.parametrize(
    ("statement", "where", "message"),
    [
        (
            "UPDATE proposals SET recipe = replace(recipe, 'dare_linear', 'linear') "
            "WHERE candidate = 1",
            "candidate 1", "the recipe of candidate 1 has id",
        ),
        ("UPDATE proposals SET recipe = '{' WHERE candidate = 2", "candidate 2", "is no JSON"),
        (
            "UPDATE proposals SET genotype_f64 = x'000000000000f87f' WHERE candidate = 0",
            "candidate 0", "holds what is no number",
        ),
        ("DELETE FROM proposals WHERE candidate = 1", "candidate 2", "comes where candidate 1"),
        ("DELETE FROM proposals WHERE candidate = 1", "outcomes", "1 rows refer to no row of `p"),
        (
            "UPDATE blocks SET items = replace(items, 'search-mbpp-2', 'search-mbpp-4')",
            f"block {block_name(BLOCK)} of search", "its items are those of block",
        ),
        (
            "UPDATE outcomes SET sequence = 9 WHERE split = 'report'",
            "candidate 0 on report", "is outcome 9 where 3 should come",
        ),
        (
            "UPDATE objective_scores SET value = value + 1e-6 "
            "WHERE objective = 'code' AND split = 'report'",
            "candidate 0 on report", "`code` is recorded as",
        ),
        (
            "UPDATE objective_scores SET count = count + 1 WHERE objective = 'math'",
            "candidate 0 on search", "its items give",
        ),
        (
            "DELETE FROM objective_scores WHERE split = 'report' AND objective = 'math'",
            "candidate 0 on report", "has scores of `code`, `instruct`, and items of",
        ),
        ("DELETE FROM item_scores WHERE split = 'report'", "candidate 0 on report", "no scores"),
        (
            "UPDATE item_scores SET values_zlib = x'00' WHERE split = 'report' AND task = 'mbpp'",
            "candidate 0 on report, item_scores of `mbpp`", "cannot be read",
        ),
        (
            """UPDATE item_scores SET item_ids = '["a","b","c","d","e","f","g"]' """
            "WHERE split = 'report' AND task = 'mbpp'",
            "candidate 0 on report, item_scores of `mbpp`", "`a` is no item of it",
        ),
        (
            "UPDATE companion_scores SET values_zlib = x'00'",
            "candidate 0 on search, companion_scores of `gsm8k`", "cannot be read",
        ),
        ("UPDATE texts SET texts_zlib = x'00'", "candidate 0 on search", "texts of `gsm8k`"),
        ("UPDATE stops SET stop = 4", "stop of candidate 1", "is stop 4 after outcome 1"),
        ("UPDATE stops SET numbers = ''", "stop of candidate 1", "is no JSON"),
        ("UPDATE seeds SET recipe = '{}'", "seeds", "cannot be read"),
        ("DELETE FROM warm_starts", "seeds", "there are 1 seeds, and no warm start of so many"),
        (
            "UPDATE outcomes SET status = 'failed' WHERE split = 'report'",
            "candidate 0 on report", "failed, but has scores",
        ),
        ("UPDATE choices SET candidate = 7", "choices", "1 rows refer to no row of `proposals`"),
    ],
)  # fmt: skip
def test_damage_is_found_and_named(path, change, statement, where, message) -> None:
    change(statement)
    found = verify_archive(path)
    assert any(p.path == where and message in p.message for p in found.problems), found.problems

    done = mergefront("archive", "verify", path, "--json")
    record = json.loads(done.stdout)
    assert (done.exit_code, record["sound"]) == (4, False)
    assert {"path", "message"} == record["problems"][0].keys()
    assert "restore it from a copy" in done.stderr


def test_page_that_was_overwritten_is_found(path) -> None:
    content = bytearray(path.read_bytes())
    with closing(sqlite3.connect(path)) as file:
        query = "SELECT rootpage FROM sqlite_master WHERE name = 'sqlite_autoindex_texts_1'"
        (page,) = file.execute(query).fetchone()
        (size,) = file.execute("PRAGMA page_size").fetchone()
    content[(page - 1) * size + 8 : page * size - 100] = bytes(size - 108)
    path.write_bytes(content)
    assert any(problem.path == "file" for problem in verify_archive(path).problems)


def test_verifying_changes_nothing(path, change) -> None:
    change("UPDATE stops SET stop = 4")
    before = path.read_bytes()
    verify_archive(path)
    assert path.read_bytes() == before


def test_archive_that_is_written_can_be_verified(path) -> None:
    with Archive.open(path, writable=True) as archive:
        archive.record_proposal(example_candidate(3))
        assert verify_archive(path).is_sound


# Compacting


def test_compact_gives_space_back_and_keeps_every_row(path) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("CREATE TABLE ballast AS SELECT randomblob(500000) AS a")
        file.execute("DROP TABLE ballast")
    before, size = everything(path), path.stat().st_size
    record = json.loads(mergefront("archive", "compact", path, "--json").stdout)
    assert record == {
        "archive": str(path),
        "bytes_before": size,
        "bytes_after": path.stat().st_size,
    }
    assert path.stat().st_size < size - 400_000
    assert everything(path) == before
    assert "->" in mergefront("archive", "compact", path).stdout


def test_archive_that_is_written_is_not_compacted(path) -> None:
    with Archive.open(path, writable=True):
        refused(mergefront("archive", "compact", path), 4, "being written by process")


def test_compact_gives_the_space_of_a_file_back_while_it_is_read(path) -> None:
    with Archive.open(path) as reader:
        assert len(reader.candidates()) == 3
        assert mergefront("archive", "compact", path).exit_code == 0
        assert len(reader.candidates()) == 3
        assert reader.task_scores(0, "report")


def test_compact_keeps_every_row_of_a_database_that_is_written(postgres) -> None:
    url = postgres.url(postgres.empty_database(), "search")
    fill(url)
    before = everything(url)
    with Archive.open(url, writable=True):
        record = json.loads(mergefront("archive", "compact", url, "--json").stdout)
    assert record["bytes_after"] > 0
    assert everything(url) == before
