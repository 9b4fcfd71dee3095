import io
import json
import re

import pytest
from rich.console import Console

from optimizer.archive.archive import Archive
from optimizer.report.report import render, report_of, report_record
from optimizer.results import progress_view
from optimizer.strategies.registry import STRATEGIES
from tests.fault import scripted_search
from tests.unit.optimizer.synthetic_archive import Merge, build, greedy_path

BASE = Merge((0, 0, 0), (0.1, 0.1, 0.1), report=(0.1, 0.1, 0.1), origin="baseline:base")
SOUP = Merge(
    (0.4, 0.4, 0.4), (0.5, 0.5, 0.5), report=(0.5, 0.5, 0.5), origin="baseline:uniform soup"
)
FAILED = Merge((3, 3, 3), None)


def winner(report: float) -> Merge:
    return Merge((0.7, 0.6, 0.5), (0.9,) * 3, select=(0.8,) * 3, report=(report,) * 3)


def text_of(report) -> str:
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(render(report))
    return console.export_text()


@pytest.fixture
def make_report(tmp_path):
    def make(*merges: Merge, chosen: int | None = None):
        with Archive.open(build(tmp_path / "a.sqlite", merges, chosen=chosen)) as archive:
            return report_of(archive)

    return make


def test_search_by_a_strategy_that_is_not_installed_here_has_a_report(tmp_path, monkeypatch):
    with monkeypatch.context() as there:
        there.setitem(STRATEGIES, "visiting", STRATEGIES["dirichlet"])
        scripted_search.run(
            tmp_path / "a.sqlite",
            budget={"evaluations": 24},
            search={"strategy": "visiting", **scripted_search.IN_FULL},
        )
    with Archive.open(tmp_path / "a.sqlite") as archive:
        report = report_of(archive)
        assert report.progress.expected_gain is None
        assert "evaluations" in text_of(report)


def test_report_prints_scores_of_every_split_side_by_side(make_report):
    report = make_report(BASE, SOUP, winner(0.75), chosen=2)
    assert list(report.chosen) == ["search", "select", "report"]
    text = text_of(report)
    assert re.search(r"math +0\.900 ± 0\.\d+ +0\.800 ± 0\.\d+ +0\.750 ± 0\.\d+", text)
    assert re.search(r"mean +0\.900 +0\.800 +0\.750", text)
    assert "20 items each" in text


def test_report_says_that_the_search_won(make_report):
    report = make_report(BASE, SOUP, winner(0.75), chosen=2)
    assert report.verdict is not None
    assert report.verdict.won
    assert list(report.baselines) == ["uniform soup", "base"]
    text = text_of(report)
    assert "beats every baseline" in text
    assert "+0.250 ± 0.057" in text
    assert re.search(r"math +\+0\.250 ± 0\.\d+ +\[\+0\.\d+, \+0\.\d+\] +0\.062", text)
    assert "the strongest of the baselines" in text
    assert "Winner's curse" in text
    assert "+0.650" in text


def test_report_says_plainly_that_the_search_lost(make_report):
    text = text_of(make_report(BASE, SOUP, winner(0.45), chosen=2))
    assert "The search did not win: against uniform soup, -0.050" in text


def test_report_says_that_the_choice_is_a_baseline(make_report):
    soup = Merge((0.4, 0.4, 0.4), (0.5,) * 3, (0.5,) * 3, (0.5,) * 3, "baseline:uniform soup")
    report = make_report(BASE, soup, chosen=1)
    text = text_of(report)
    assert "The search did not win" in text
    assert "chosen merge = uniform soup" in text
    assert "\nuniform soup " not in text  # not once more as a baseline


def test_report_names_the_greedy_soup(make_report):
    report = make_report(*greedy_path(), winner(0.9), chosen=5)
    assert report.baselines["greedy soup"] == report.baselines["soup of a"]
    assert "greedy soup" in text_of(report)


def test_report_of_an_unfinished_search_says_so(make_report):
    report = make_report(BASE, winner(0.5), FAILED)
    assert report.verdict is None
    text = text_of(report)
    assert "No merge was chosen yet" in text
    assert "3 evaluations" in text
    assert "1 failed (1 x evaluate: EvaluationError)" in text


def test_report_before_the_report_split_has_no_verdict(make_report):
    merge = Merge((0.7, 0.6, 0.5), (0.9,) * 3, select=(0.8,) * 3)
    assert "No verdict yet" in text_of(make_report(BASE, merge, chosen=1))


def test_report_is_json_even_with_infinitely_sure_differences(make_report):
    # Every item differs alike: the standard error is zero.
    best = Merge((0.7, 0.6, 0.5), (1.0,) * 3, (1.0,) * 3, (1.0,) * 3)
    worst = Merge((0, 0, 0), (0.0,) * 3, report=(0.0,) * 3, origin="baseline:base")
    record = report_record(make_report(worst, best, chosen=1))
    again = json.loads(json.dumps(record, allow_nan=False))
    found = again["verdict"]["differences"]["base"]
    assert found["objectives"].keys() == {"instruct", "code", "math"}
    assert found["p_value"] == pytest.approx(2 / 2**60)
    assert {key: found[key] for key in ("mean", "stderr", "sigmas", "interval_95")} == {
        "mean": 1.0,
        "stderr": 0.0,
        "sigmas": None,
        "interval_95": [1.0, 1.0],
    }
    assert again["verdict"]["won"] is True
    assert again["choice"]["candidate"] == 1


def test_report_of_an_archive_without_proposals_is_empty(tmp_path):
    with Archive.open(build(tmp_path / "b.sqlite", [])) as archive:
        report = report_of(archive)
    assert report.front == []
    assert "0 evaluations" in text_of(report)


def test_report_shows_the_hypervolume_over_evaluations_and_items(make_report):
    report = make_report(BASE, SOUP, winner(0.75), chosen=2)
    text = text_of(report)
    record = json.loads(json.dumps(report_record(report), allow_nan=False))["progress"]
    assert record["evaluations"] == [1, 2, 3]
    assert record["items"] == [60.0, 120.0, 180.0]
    # Above the base less two items' worth, 0.1 - 2 / 20.
    assert record["hypervolume"] == pytest.approx([0.1**3, 0.5**3, 0.9**3])
    assert re.search(r"3 +180 +0\.7290", text)
    assert record["believed_hypervolume"] is None


def test_report_of_many_merges_says_what_is_believed_of_their_hypervolume(tmp_path):
    from tests.fault import scripted_search

    path = tmp_path / "run.sqlite"
    settings = {"strategy": "surrogate_cma", "racing": {"enabled": False}}
    scripted_search.run(path, budget={"evaluations": 40}, search=settings)
    with Archive.open(path) as archive:
        report = report_of(archive)
    progress = report.progress
    assert 0 < progress.expected_gain < progress.believed
    assert f"expected to add {progress.expected_gain:.2g} to that" in text_of(report)
    assert "Of posterior means it is" in text_of(report)
    assert "Front by posterior mean" in text_of(report)


def test_report_asks_the_strategy_what_is_ahead(tmp_path, monkeypatch):
    from optimizer.strategies.dirichlet import DirichletStrategy
    from tests.fault import scripted_search

    path = tmp_path / "run.sqlite"
    scripted_search.run(path, budget={"evaluations": 16}, search={"strategy": "dirichlet"})

    class Expecting(DirichletStrategy):
        def expected_gain(self):
            return self._num_told / 1000

    monkeypatch.setattr(progress_view, "make_strategy", Expecting)
    with Archive.open(path) as archive:
        report = report_of(archive)
    assert report.progress.expected_gain == 0.016
    assert "The next candidate scored is expected to add 0.016 to that" in text_of(report)
