import math

import numpy as np
import pytest

from evaluators.paired import paired_difference
from evaluators.scores import TaskScores, aggregate, standard_error
from tests.unit.evaluators.example_scores import OBJECTIVES, task_scores


def test_aggregate_weighs_tasks_and_adds_errors_in_quadrature():
    scores = aggregate(OBJECTIVES, task_scores(gsm=[1, 0, 0, 0], he=[1, 1], mbpp=[0, 1, 0, 1]))
    assert scores["math"].value == 0.25
    assert scores["math"].stderr == pytest.approx(0.25)  # sd 0.5 of [1, 0, 0, 0], over sqrt(4)
    assert scores["code"].value == pytest.approx(0.75 * 1 + 0.25 * 0.5)
    assert scores["code"].stderr == pytest.approx(0.25 * math.sqrt(1 / 3) / 2)
    assert scores["code"].count == 6


def test_aggregate_of_one_item_has_no_error():
    assert aggregate({"math": OBJECTIVES["math"]}, task_scores(gsm=[1]))["math"].stderr == 0.0


def test_task_scores_refuses_values_that_do_not_fit_the_items():
    with pytest.raises(ValueError, match=r"must have shape \(2,\), one per item, found \(3,\)"):
        TaskScores("gsm", ("a", "b"), np.zeros(3))


def weighted(values: list[float], weights: list[float]) -> TaskScores:
    ids = tuple(f"gsm{i}" for i in range(len(values)))
    return TaskScores("gsm", ids, np.array(values, dtype=float), np.array(weights, dtype=float))


def test_items_count_by_their_weights():
    scores = aggregate({"math": OBJECTIVES["math"]}, {"gsm": weighted([1, 0, 0.5], [2, 1, 1])})
    assert scores["math"].value == pytest.approx(2.5 / 4)
    assert scores["math"].count == 3


def test_equal_weights_change_nothing():
    draw = np.random.default_rng(0)
    values = draw.random(50)
    plain, same = standard_error(values), standard_error(values, np.full(50, 3.0))
    assert same == pytest.approx(plain, rel=1e-12)


def test_error_of_weighted_mean_is_its_spread_over_samples():
    draw = np.random.default_rng(0)
    weights = draw.integers(1, 9, size=(4000, 60)).astype(float)
    values = draw.random((4000, 60)) + 0.1 * weights
    means = np.average(values, weights=weights, axis=1)
    errors = [standard_error(*row) for row in zip(values, weights, strict=True)]
    assert np.mean(errors) == pytest.approx(means.std(), rel=0.05)


def test_paired_difference_counts_items_by_their_weights():
    preference = {"math": 1.0, "code": 0.0}
    a, b = weighted([1, 1, 0], [5, 1, 2]), weighted([0, 1, 1], [5, 1, 2])
    found = paired_difference(OBJECTIVES, preference, {"gsm": a}, {"gsm": b})
    assert found.mean == pytest.approx((5 - 2) / 8)
    assert found.stderr == pytest.approx(
        standard_error(np.array([1.0, 0.0, -1.0]), np.array([5.0, 1.0, 2.0]))
    )


def test_weights_of_another_number_of_items_are_refused():
    with pytest.raises(ValueError, match=r"weights of `gsm` must have shape \(2,\)"):
        weighted([1, 0], [1, 2, 3])
