import csv
import io
import json

import pytest
from rich.console import Console

from configs.recipe import MergeRecipe
from optimizer.archive import recorded_candidate
from optimizer.archive.archive import Archive
from optimizer.results.front_view import (
    format_weights,
    front_of,
    front_table,
    row_record,
    rows_csv,
    scored_candidates,
)
from tests.unit.optimizer.synthetic_archive import CHECKPOINTS, Merge, build

MERGES = (
    Merge((0, 0, 0), (0.1, 0.1, 0.1), origin="baseline:base"),
    Merge((1, 0, 0), (0.9, 0.1, 0.2), origin="baseline:checkpoint instruct"),
    Merge((0.5, 0.6, 0.7), (0.6, 0.8, 0.8), select=(0.5, 0.5, 0.5), drop=0.25),
    Merge((0.5, 0.6, 0.6), (0.6, 0.8, 0.7)),
    Merge((0.5, 0.6, 0.7), (0.6, 0.8, 0.8), drop=0.25),
    Merge((2, 2, 2), None),
)


@pytest.fixture
def archive(tmp_path):
    with Archive.open(build(tmp_path / "a.sqlite", MERGES, chosen=2)) as archive:
        yield archive


def test_rows_leave_out_failures_and_repeated_recipes(archive):
    assert [row.candidate.index for row in scored_candidates(archive, "search")] == [0, 1, 2, 3]


def test_front_holds_what_nothing_dominates_best_mean_first(archive):
    front = front_of(scored_candidates(archive, "search"))
    assert [row.candidate.index for row in front] == [2, 1]
    assert front[0].mean == pytest.approx((0.6 + 0.8 + 0.8) / 3)
    assert [row.is_chosen for row in front] == [True, False]


def test_front_reads_no_recipe_and_what_is_printed_only_those_of_its_members(archive, monkeypatch):
    read = []

    class Counted(MergeRecipe):
        @classmethod
        def model_validate(cls, obj, **options):
            read.append(obj)
            return MergeRecipe.model_validate(obj, **options)

    monkeypatch.setattr(recorded_candidate, "MergeRecipe", Counted)
    front = front_of(scored_candidates(archive, "search"))
    assert (len(front), len(read)) == (2, 0)
    assert [row_record(row)["candidate"] for row in front] == [2, 1]
    assert len(read) == 2


def test_front_of_another_split_holds_what_was_scored_there(archive):
    assert [row.candidate.index for row in front_of(scored_candidates(archive, "select"))] == [2]
    assert front_of(scored_candidates(archive, "report")) == []


def test_mean_weighs_objectives_by_the_preference_of_the_job(tmp_path):
    path = build(tmp_path / "b.sqlite", MERGES, search={"preference": {"math": 3, "code": 1}})
    with Archive.open(path) as archive:
        rows = scored_candidates(archive, "search")
    assert rows[1].mean == pytest.approx(0.75 * 0.2 + 0.25 * 0.1)


def test_choice_marks_the_recipe_even_when_it_was_proposed_twice(tmp_path):
    with Archive.open(build(tmp_path / "c.sqlite", MERGES, chosen=4)) as archive:
        chosen = [
            row.candidate.index for row in scored_candidates(archive, "search") if row.is_chosen
        ]
    assert chosen == [2]


def test_table_shows_scores_errors_and_recipes(archive):
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(front_table(front_of(scored_candidates(archive, "search")), CHECKPOINTS))
    text = console.export_text()
    assert "0.600 ± 0.112" in text
    assert "instruct=0.50@0.25 code=0.60@0.25 math=0.70@0.25" in text
    assert "checkpoint instruct" in text
    assert f"{archive.candidate(2).recipe.recipe_id[:10]} *" in text


def test_recipe_text_leaves_out_drop_ratios_of_zero(archive):
    assert format_weights(archive.candidate(1).recipe) == "instruct=1.00 code=0.00 math=0.00"


def test_json_of_a_row_is_complete(archive):
    row = front_of(scored_candidates(archive, "search"))[0]
    record = json.loads(json.dumps(row_record(row), allow_nan=False))
    assert record["recipe_id"] == archive.candidate(2).recipe.recipe_id
    assert record["scores"]["code"] == {
        "value": pytest.approx(0.8),
        "stderr": pytest.approx(row.scores["code"].stderr),
        "count": 20,
    }
    assert record["genes"]["math"] == {"all": {"weight": 0.7, "drop_ratio": 0.25}}
    assert record["is_chosen"] is True


def test_csv_has_one_number_per_cell_and_reads_back(archive):
    rows = front_of(scored_candidates(archive, "search"))
    table = list(csv.DictReader(io.StringIO(rows_csv(rows, CHECKPOINTS))))
    assert [int(line["candidate"]) for line in table] == [2, 1]
    assert float(table[0]["math"]) == pytest.approx(0.8)
    assert float(table[0]["math/all.weight"]) == 0.7
    assert float(table[0]["math/all.drop_ratio"]) == 0.25
    assert table[0]["is_chosen"] == "1"


def test_csv_of_no_rows_is_a_header():
    assert rows_csv([], ["math"]).splitlines() == [
        "candidate,recipe_id,origin,math,math.stderr,math.count,math.posterior,"
        "math.posterior_stderr,mean,effective_checkpoints,is_chosen"
    ]
