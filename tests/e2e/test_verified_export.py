"""Exports that stock lm-eval scores anew, through the command line, on the tiny pool."""

import json
from pathlib import Path

import pytest
import yaml

from optimizer.archive import Archive
from tests.e2e.conftest import CommandLine

pytestmark = pytest.mark.slow

RECIPES = 10


@pytest.fixture(scope="module")
def archive(tiny_job, tmp_path_factory) -> Path:
    """One search for all tests of this file."""
    directory = tmp_path_factory.mktemp("verified")
    job = tiny_job(
        archive=str(directory / "archive.sqlite"),
        budget={"evaluations": 20},
        validation={"candidates": 2},
        workers={"count": 2, "cpus": 0.5, "threads": 1},
    )
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
    CommandLine(directory).succeed("run", str(path), timeout_s=400)
    return directory / "archive.sqlite"


def test_ten_recipes_score_what_the_archive_says(mergefront, archive, tmp_path):
    with Archive.open(archive) as reader:
        choice = reader.choice()
        recipes = {choice: reader.candidate(choice).recipe.recipe_id}
        for index in sorted(reader.scores("search"), reverse=True):
            recipes.setdefault(index, reader.candidate(index).recipe.recipe_id)
        splits = {
            index: next(s for s in ("report", "select", "search") if index in reader.scores(s))
            for index in recipes
        }
    # Another merge each time: ids of equal recipes are equal.
    chosen = list({recipe: index for index, recipe in recipes.items()}.items())[:RECIPES]
    assert len(chosen) == RECIPES
    checked = {}
    for number, (recipe, index) in enumerate(chosen):
        out = tmp_path / f"model-{number}"
        done = mergefront.run(
            "export", str(archive), "--out", str(out), "--id", recipe, "--verify", "--json"
        )
        assert done.returncode == 0, done.stdout + done.stderr
        checked[index] = json.loads(done.stdout)["verification"]
        assert "equal" in done.stderr
    for index, found in checked.items():
        assert found["equal"] is True
        assert found["split"] == splits[index] or found["split"] == "report"
        assert {task: part["items"] > 0 for task, part in found["tasks"].items()} == {
            "tiny_text": True, "tiny_choice": True,
        }  # fmt: skip
    assert checked[choice]["items"] == 8  # four report items of each task


def test_export_whose_scores_differ_ends_with_an_error(mergefront, archive, tmp_path):
    import sqlite3

    from optimizer.archive_records import blob_to_scores, scores_to_blob

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
        change = f"update item_scores set values_zlib = ? where {where}"  # noqa: S608 - as above
        target.execute(change, (scores_to_blob(values), choice))
    source.close()
    target.close()
    done = mergefront.run("export", str(changed), "--out", str(tmp_path / "model"), "--verify")
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
