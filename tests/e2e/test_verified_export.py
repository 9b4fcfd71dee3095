"""Exports that stock lm-eval scores anew, through the command line, on the tiny pool."""

from pathlib import Path

import pytest

import mergefront as mergefront_api
from optimizer.archive.archive import Archive
from optimizer.publish.export import export
from optimizer.publish.verify_export import verify
from optimizer.results.select import choose

# Stock lm-eval starts in a process of its own for each recipe.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

# Of two, CI makes sure; ten take minutes.
RECIPES = [2, pytest.param(10, marks=pytest.mark.campaign)]


@pytest.fixture(scope="module")
def archive(tiny_job, tmp_path_factory) -> Path:
    """One search for all tests of this file."""
    place = tmp_path_factory.mktemp("verified") / "archive.sqlite"
    job = tiny_job(archive=str(place), budget={"evaluations": 18}, validation={"candidates": 2})
    mergefront_api.run(job, in_process=True)
    return place


@pytest.mark.parametrize("count", RECIPES)
def test_recipes_score_what_the_archive_says(archive, tmp_path, count):
    with Archive.open(archive) as reader:
        scored = {split: reader.scores(split) for split in ("report", "select", "search")}
        chosen = {reader.candidate(reader.choice()).recipe.recipe_id: reader.choice()}
        for index in sorted(scored["search"], reverse=True):
            # Another merge each time: ids of equal recipes are equal.
            chosen.setdefault(reader.candidate(index).recipe.recipe_id, index)
        assert len(chosen) >= count
        for number, recipe in enumerate(list(chosen)[:count]):
            out = tmp_path / f"model,{number}"
            export(reader, choose(reader, recipe_id=recipe), out)
            found = verify(reader, out)
            assert found.is_equal, found.record()
            assert found.candidate in scored[found.split]
            assert {check.task for check in found.tasks} == {"tiny_text", "tiny_choice"}
            assert found.num_items == 2 * {"report": 4, "select": 4, "search": 8}[found.split]


def test_export_whose_scores_differ_ends_with_an_error(mergefront, archive, tmp_path):
    import sqlite3

    from optimizer.archive.records import blob_to_scores, scores_to_blob

    with Archive.open(archive) as reader:
        choice = reader.choice()
    changed = tmp_path / "changed.sqlite"
    with sqlite3.connect(archive) as source, sqlite3.connect(changed) as target:
        source.backup(target)
        # Archives are append-only, so the triggers have to go first.
        for (name,) in target.execute("select name from sqlite_master where type = 'trigger'"):
            target.execute(f'drop trigger "{name}"')
        where = "candidate = ? and split = 'report' and task = 'tiny_choice'"
        query = f"select values_zlib from item_scores where {where}"  # noqa: S608 - our own texts
        (blob,) = target.execute(query, (choice,)).fetchone()
        values = blob_to_scores(blob)
        values[0] = 1.0 - values[0]
        change = f"update item_scores set values_zlib = ? where {where}"  # noqa: S608 - our own texts
        target.execute(change, (scores_to_blob(values), choice))
    source.close()
    target.close()
    done = mergefront.run(
        "export", str(changed), "--out", str(tmp_path / "model"), "--verify", timeout_s=900
    )
    assert done.returncode == 1, done.stderr
    assert "tiny_choice: 1 of 4 items differ" in done.stderr
    assert "NOT equal, 1 items differ" in done.stderr
    assert done.stdout.strip() == str(tmp_path / "model")


def test_another_data_type_has_nothing_to_compare_with(mergefront, archive, tmp_path):
    out = tmp_path / "model"
    done = mergefront.run(
        "export", str(archive), "--out", str(out), "--dtype", "bfloat16", "--verify"
    )
    assert done.returncode == 2
    assert "--verify: compares with recorded scores, so leave --dtype out" in done.stderr
    assert not out.exists()
