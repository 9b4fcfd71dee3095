"""What stopped candidates cost and saved, counted by hand from whole searches."""

import pytest

from optimizer.archive.archive import Archive
from optimizer.report.report import report_of
from optimizer.stopped import describe_savings, num_evaluated, savings_of
from tests.fault import scripted_search
from tests.unit.optimizer.synthetic_archive import Merge, build

FULL = 3 * 24


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("stopped") / "archive.sqlite"
    scripted_search.run(path, **scripted_search.SEARCHES["screening"])
    with Archive.open(path) as archive:
        yield archive


def test_failures_before_the_first_sample_count_as_the_driver_counts_them(tmp_path):
    """Of 20 items per task a sample has 8, so that two and a half are an evaluation: two."""
    base = Merge((0, 0, 0), (0.1,) * 3, origin="baseline:base")
    failed = [Merge((weight, 0, 0)) for weight in (0.1, 0.2, 0.3, 0.4, 0.5)]
    for name, merges, count in (
        ("failed", [base, *failed], 1 + 5 // 2),
        ("whole", [base, *failed, Merge((1, 0, 0), (0.5,) * 3)], 7),
    ):
        with Archive.open(build(tmp_path / f"{name}.sqlite", merges)) as archive:
            assert num_evaluated(archive) == count


@pytest.mark.slow
def test_savings_are_the_items_that_stopped_candidates_were_not_scored_on(archive):
    found = savings_of(archive)
    assert found.stopped.keys() == {"racing", "screened", "broken"}
    scored = dict.fromkeys(found.stopped, 0)
    references = dict.fromkeys(found.stopped, 0)
    for index, recorded in archive.stops().items():
        items = archive.scored_items(index, "search")
        scored[recorded.stop.reason] += sum(part.values.size for part in items.values())
        if not items:
            known = archive.companions(index, "search")
            references[recorded.stop.reason] += sum(p.values.size for p in known.values())
    assert found.scored == scored
    assert scored["screened"] == 0
    for reason in ("screened", "broken"):
        assert found.references[reason] >= references[reason] > 0
    assert found.references["screened"] == 24 * found.stopped["screened"]
    spared = found.stopped["racing"] + found.stopped["broken"]
    assert found.saved == spared * FULL - scored["racing"] - scored["broken"]


@pytest.mark.slow
def test_report_counts_evaluations_and_says_what_stopped(archive):
    observations = archive.observations()
    screened = [seen for seen in observations if seen.stopped == "screened"]
    assert len(screened) > 40
    assert num_evaluated(archive) == 60
    with scripted_search.with_strategies():
        report = report_of(archive)
    assert report.num_outcomes == 60
    assert [report.progress.points[-1].evaluations] == [60]
    text = "\n".join(describe_savings(report.savings))
    found = report.savings
    assert f"{found.stopped['racing']} had lost the race after {found.scored['racing']} of" in text
    assert f"{found.stopped['screened']} were looked at by" in text
    assert f"not scored: {found.saved} items" in text


def test_nothing_is_said_of_a_search_that_stopped_nothing(tmp_path):
    scripted_search.run(tmp_path / "a.sqlite", budget={"evaluations": 20})
    with Archive.open(tmp_path / "a.sqlite") as archive:
        found = savings_of(archive)
        assert (found.stopped, found.saved) == ({}, 0)
        assert describe_savings(found) == []
