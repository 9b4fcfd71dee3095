"""What the verdict claims, on archives whose report items are known one by one."""

import json

import numpy as np
import pytest

from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.archive.recorded_space import recorded_space
from optimizer.results.verdict import holm, verdict
from optimizer.results.verdict_view import verdict_record
from tests.unit.optimizer.synthetic_archive import Merge, build, greedy_path


def baseline(number: int, report, search=None) -> Merge:
    weights = (0.1 * number,) * 3
    search = report if search is None else search
    return Merge(weights, search, report=report, origin=f"baseline:number {number}")


@pytest.fixture
def judge(tmp_path):
    def judge(*merges: Merge, chosen: int, **changes):
        path = build(tmp_path / "a.sqlite", merges, chosen=chosen, **changes)
        with Archive.open(path) as archive:
            return verdict(archive, recorded_space(archive))

    return judge


def chosen_merge(report, search=(0.9, 0.9, 0.9)) -> Merge:
    return Merge((0.7, 0.6, 0.5), search, select=search, report=report)


def test_verdict_takes_the_p_value_of_the_baseline_that_is_hardest_to_beat(judge):
    found = judge(
        baseline(1, (0.1,) * 3), baseline(2, (0.5,) * 3), chosen_merge((0.75, 0.75, 0.75)), chosen=2
    )
    # 15 items of 60 differ from the strongest, all in favour: 2 of 2^15 assignments of signs.
    assert found.strongest == "number 2"
    assert found.p_value == pytest.approx(2 / 2**15)
    assert found.won
    assert "beats every baseline (p < 0.0001)" in found.sentence


def test_verdict_of_few_items_that_differ_is_no_win_however_many_sigmas(judge):
    # Five items more, and none less: 2 / 2^5 is above 0.05.
    found = judge(baseline(1, (0.5, 0.5, 0.5)), chosen_merge((0.6, 0.6, 0.55)), chosen=1)
    assert found.p_value == pytest.approx(2 / 2**5)
    assert found.comparisons["number 1"].mean.sigmas > 2
    assert not found.won
    assert "did not win clearly" in found.sentence


def test_one_baseline_that_is_ahead_takes_the_win_away(judge):
    found = judge(
        baseline(1, (0.0,) * 3), baseline(2, (0.8,) * 3), chosen_merge((0.75,) * 3), chosen=2
    )
    assert found.p_value == 1.0
    assert not found.won
    assert found.beaten_by == []
    assert found.sentence.startswith("The search did not win: against number 2, -0.050")


def test_many_baselines_that_are_a_little_ahead_are_no_loss_after_correction(judge):
    # Six items apart: p = 2 / 2^6 = 0.03 alone, but not for the best of twelve.
    many = [baseline(number, (0.6, 0.6, 0.6)) for number in range(1, 13)]
    found = judge(*many, chosen_merge((0.5, 0.5, 0.5)), chosen=12)
    strongest = found.comparisons[found.strongest]
    assert strongest.p_value == pytest.approx(2 / 2**6)
    assert found.adjusted[found.strongest] == pytest.approx(12 * 2 / 2**6)
    assert found.beaten_by == []


def test_a_baseline_that_is_far_ahead_is_a_loss(judge):
    found = judge(
        baseline(1, (0.9,) * 3), baseline(2, (0.2,) * 3), chosen_merge((0.5,) * 3), chosen=2
    )
    assert found.beaten_by == ["number 1"]
    assert "The search lost" in found.sentence


def test_labels_of_one_merge_count_once(judge):
    found = judge(*greedy_path(), chosen_merge((0.9,) * 3), chosen=5)
    assert found.comparisons["greedy soup"] is found.comparisons["soup of a"]
    assert found.num_rivals == 5
    assert len(found.comparisons) == 6


def test_interval_of_the_best_baseline_is_wider_above_than_that_of_any(judge):
    found = judge(
        baseline(1, (0.5, 0.4, 0.3)), baseline(2, (0.4, 0.45, 0.35)), chosen_merge((0.7,) * 3),
        chosen=2,
    )  # fmt: skip
    gaps = [gap.mean for gap in found.comparisons.values()]
    low, high = found.interval()
    assert low == min(gap.interval(0.95)[0] for gap in gaps)
    assert high == min(gap.interval(0.975)[1] for gap in gaps)
    assert low < gaps[0].mean < high


def test_every_objective_has_its_difference_and_the_strongest_its_p_values(judge):
    found = judge(
        baseline(1, (0.1, 0.1, 0.1)), baseline(2, (0.6, 0.2, 0.7)), chosen_merge((0.5, 0.9, 0.7)),
        chosen=2,
    )  # fmt: skip
    gap = found.comparisons["number 2"]
    means = {name: difference.mean for name, difference in gap.objectives.items()}
    assert means == pytest.approx({"instruct": -0.1, "code": 0.7, "math": 0.0})
    assert gap.objective_p_values == pytest.approx(
        {"instruct": 0.5, "code": 2 / 2**14, "math": 1.0}
    )
    assert found.comparisons["number 1"].objective_p_values == {}


def test_verdict_follows_the_preference(judge):
    merges = baseline(1, (0.9, 0.1, 0.1)), baseline(2, (0.2, 0.2, 0.2)), chosen_merge((0.5,) * 3)
    found = judge(*merges, chosen=2, search={"preference": {"instruct": 1.0}})
    assert found.strongest == "number 1"
    assert found.comparisons["number 1"].mean.mean == pytest.approx(-0.4)


def test_winners_curse_is_what_was_lost_beyond_the_baselines(judge):
    # Everyone loses 0.1 on the report items; the chosen merge 0.15 more.
    found = judge(
        baseline(1, (0.4,) * 3, search=(0.5,) * 3), baseline(2, (0.2,) * 3, search=(0.3,) * 3),
        chosen_merge((0.65,) * 3), chosen=2,
    )  # fmt: skip
    curse = found.curse
    assert (curse.search, curse.report) == pytest.approx((0.9, 0.65))
    assert (curse.baselines_search, curse.baselines_report) == pytest.approx((0.4, 0.3))
    assert curse.flattery == pytest.approx(0.15)
    ahead = [
        np.repeat([0.0, 0.5, 1.0, 0.0], (6, 4, 8, 2)),  # 18, 10 and 6 of 20 right
        np.repeat([0.0, 0.5, 1.0, 0.0], (4, 4, 5, 7)),  # 13, 8 and 4 of 20 right
    ]
    variances = [values.var(ddof=1) / 20 / 3 for values in ahead]
    assert curse.stderr == pytest.approx(sum(variances) ** 0.5)
    assert "flattered it by +0.150" in curse.sentence


def test_verdict_without_baselines_on_report_says_so(judge):
    found = judge(Merge((0, 0, 0), (0.1,) * 3, origin="baseline:base"), chosen_merge((0.5,) * 3),
                  chosen=1)  # fmt: skip
    assert found.strongest is None
    assert found.interval() is None
    assert found.curse is None
    assert "there is no verdict" in found.sentence
    json.dumps(verdict_record(found), allow_nan=False)


def test_holm_is_the_step_down_correction():
    assert holm({1: 0.01, 2: 0.04, 3: 0.03}) == pytest.approx({1: 0.03, 3: 0.06, 2: 0.06})
    assert holm({1: 0.7, 2: 0.6}) == {2: 1.0, 1: 1.0}
    assert holm({}) == {}


def test_weighted_items_survive_the_average_of_baselines():
    from optimizer.results.winners_curse import _mean_scores

    weights = np.array([1.0, 3.0])
    parts = [TaskScores("t", ("a", "b"), np.array(v), weights) for v in ([0.0, 1.0], [1.0, 1.0])]
    assert _mean_scores(parts).mean == pytest.approx((0.5 + 3.0) / 4)
