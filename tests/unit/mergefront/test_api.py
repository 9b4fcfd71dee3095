"""The Python API on a recorded search: tables, choices, reports, and what notebooks show."""

import json

import pytest

import mergefront
from optimizer.archive.archive import Archive
from optimizer.cli import read_commands
from optimizer.report.report import report_of
from tests.unit.optimizer.synthetic_archive import Merge, build

MERGES = (
    Merge((0, 0, 0), (0.1,) * 3, report=(0.1,) * 3, origin="baseline:base"),
    Merge((0.7, 0.6, 0.5), (0.9, 0.8, 0.7), (0.8,) * 3, (0.75, 0.7, 0.65), drop=0.25),
    Merge((0.1, 0.2, 0.9), (0.2, 0.2, 1.0), (0.2, 0.2, 1.0)),
    Merge((3, 3, 3), None),
)


@pytest.fixture
def place(tmp_path):
    return build(tmp_path / "a.sqlite", MERGES, chosen=1)


@pytest.fixture
def search(place):
    return mergefront.open_archive(place)


def test_public_names_are_those_that_are_documented():
    assert len(mergefront.__all__) <= 14
    for name in mergefront.__all__:
        assert getattr(mergefront, name).__doc__, name
    import subprocess
    import sys

    heavy = {"torch", "transformers", "ray", "lm_eval", "matplotlib", "plotly", "pandas"}
    code = "import sys, mergefront; print(*{n.partition('.')[0] for n in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert heavy.isdisjoint(loaded.stdout.split()), heavy & set(loaded.stdout.split())


def test_candidates_are_a_frame_with_the_numbers_of_the_archive(search, place):
    frame = search.candidates()
    assert list(frame["candidate"]) == [0, 1, 2]
    assert frame["instruct"].tolist() == [0.1, 0.9, 0.2]
    assert frame["is_chosen"].tolist() == [False, True, False]
    assert frame["math/all.weight"].tolist() == [0.0, 0.5, 0.9]
    assert frame["code/all.drop_ratio"].tolist() == [0.0, 0.25, 0.0]
    with Archive.open(place) as archive:
        ids = [archive.candidate(index).recipe.recipe_id for index in range(3)]
    assert frame["recipe_id"].tolist() == ids
    assert search.candidates("report")["candidate"].tolist() == [0, 1]


def test_items_of_two_merges_can_be_subtracted(search):
    ours, theirs = search.items(1), search.items(0)
    assert list(ours.columns) == ["task", "item", "score", "weight"]
    assert len(ours) == 60
    assert (ours["item"] == theirs["item"]).all()
    gaps = (ours["score"] - theirs["score"]).groupby(ours["task"]).mean()
    assert gaps["zoo_instruct"] == pytest.approx(0.65)
    assert search.items(2, "report").empty


def test_progress_rises(search):
    frame = search.progress()
    assert frame["evaluations"].tolist() == [1, 2, 3, 4]
    assert frame["hypervolume"].is_monotonic_increasing
    assert frame["hypervolume"].iloc[-1] > frame["hypervolume"].iloc[0]


def test_front_is_a_table_without_markup_of_people(search):
    front = search.front()
    assert len(front) == 2
    assert list(front.to_frame()["candidate"]) == [1, 2]
    html = front._repr_html_()
    assert html.count("<tr") == 3
    assert 'font-weight: bold"><td' in html
    assert html == search._repr_html_()
    assert "0.900" in str(front)


def test_choices_follow_wishes(search):
    merge = search.choose()
    assert (merge.candidate, merge.rule) == (1, "the choice of the search")
    assert merge.scores["report"]["math"].value == pytest.approx(0.65)
    assert merge.weights["math"]["all"] == {"weight": 0.5, "drop_ratio": 0.25}
    assert search.choose(prefer={"math": 1.0}).candidate == 2
    assert search.choose(at_least={"code": 0.5}).candidate == 1
    assert search.choose(recipe_id=merge.recipe_id[:8]).recipe == merge.recipe
    with pytest.raises(mergefront.MergefrontError, match="is no objective"):
        search.choose(prefer={"maths": 1.0})
    html = merge._repr_html_()
    for text in ("0.650 ± 0.109", "0.2500", merge.recipe_id[:10], "the choice of the search"):
        assert text in html
        assert text in str(merge)


@pytest.mark.slow
def test_names_of_people_stay_text_in_notebooks(tmp_path):
    name = "<script>alert(1)</script>"
    path = build(tmp_path / "b.sqlite", MERGES, chosen=1, name=name)
    search = mergefront.open_archive(path)
    for html in (search.report()._repr_html_(), search.front()._repr_html_()):
        assert "<script>" not in html
    assert "&amp;lt;script&amp;gt;" in search.report()._repr_html_()


@pytest.mark.slow
def test_report_is_the_one_of_the_command(search, place, tmp_path):
    report = search.report()
    with Archive.open(place) as archive:
        assert report.gathered.verdict == report_of(archive).verdict
    assert report.gathered.verdict.sentence in str(report).replace("\n", " ")
    written = report.write(html=tmp_path / "r.html", markdown=tmp_path / "r.md")
    assert [path.name for path in written] == ["r.html", "r.md"]
    assert report._repr_html_().startswith("<iframe srcdoc=")


def test_plot_draws_every_pair(search):
    figure = search.plot()
    assert {dimension.label for dimension in figure.data[0].dimensions} == {
        "instruct", "code", "math",
    }  # fmt: skip


def test_what_is_not_there_says_so(tmp_path):
    with pytest.raises(mergefront.MergefrontError, match="none"):
        mergefront.open_archive(tmp_path / "none.sqlite")
    with pytest.raises(mergefront.MergefrontError, match=r"merge\.method: cannot change on resume"):
        mergefront.resume(str(tmp_path / "none.sqlite"), {"merge.method": "ties"})


def test_numbers_are_those_of_the_command_line(search, place, capsys):
    read_commands.front(
        str(place), split="search", wish=read_commands.FrontWish(), as_json=True, as_csv=False
    )
    rows = json.loads(capsys.readouterr().out)["front"]
    frame = search.front().to_frame()
    assert [row["recipe_id"] for row in rows] == frame["recipe_id"].tolist()
    assert [row["mean"] for row in rows] == frame["mean"].tolist()
