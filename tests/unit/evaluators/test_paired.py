"""Paired statistics on numbers that are known from elsewhere."""

import dataclasses
import math

import numpy as np
import pytest

from evaluators.paired import (
    PairedDifference,
    Stratum,
    difference,
    mcnemar,
    paired_difference,
    sign_flip_p_value,
    strata,
)
from evaluators.scores import TaskScores
from tests.unit.evaluators.example_scores import OBJECTIVES, task_scores


def test_paired_difference_cancels_what_items_have_in_common():
    easy_and_hard = np.tile([1.0, 0.0], 50)
    a, b = easy_and_hard.copy(), easy_and_hard.copy()
    b[0] = 0.0
    preference = {"math": 1.0, "code": 0.0}
    found = paired_difference(OBJECTIVES, preference, task_scores(gsm=a), task_scores(gsm=b))
    assert found.mean == pytest.approx(0.01)
    assert found.stderr == pytest.approx(0.01)
    assert found.degrees_of_freedom == pytest.approx(99)


def test_paired_difference_weighs_objectives_and_tasks():
    a = task_scores(gsm=[1, 1], he=[1, 1], mbpp=[0, 0])
    b = task_scores(gsm=[0, 0], he=[0, 0], mbpp=[1, 1])
    found = paired_difference(OBJECTIVES, {"math": 0.5, "code": 0.5}, a, b)
    assert found.mean == pytest.approx(0.5 + 0.5 * (0.75 - 0.25))
    assert found.sigmas == math.inf
    shares = [part.share for part in strata(OBJECTIVES, {"math": 0.5, "code": 0.5}, a, b)]
    assert shares == pytest.approx([0.5, 0.375, 0.125])


def test_items_count_by_their_weights():
    weights = np.array([3.0, 1.0])
    found = difference([Stratum(1.0, np.array([1.0, 0.0]), weights)])
    assert found.mean == pytest.approx(0.75)
    assert found.stderr == pytest.approx(0.375)
    # Sums 4, 2, -2 and -4 of 3 and 1: the observed 3 - 1 = 2 is as small as any.
    assert sign_flip_p_value([Stratum(1.0, np.array([1.0, -1.0]), weights)]) == 1.0
    both = [Stratum(1.0, np.array([1.0, 1.0]), weights)]
    assert sign_flip_p_value(both) == pytest.approx(0.5)
    a, b = task_scores(gsm=[1, 0]), task_scores(gsm=[0, 0])
    for part in (a, b):
        part["gsm"] = dataclasses.replace(part["gsm"], weights=weights)
    assert paired_difference(OBJECTIVES, {"math": 1.0}, a, b).mean == pytest.approx(0.75)


def test_paired_difference_refuses_other_items():
    other = {"gsm": TaskScores("gsm", ("x", "y"), np.zeros(2))}
    with pytest.raises(ValueError, match="different items of `gsm`"):
        paired_difference(OBJECTIVES, {"math": 1}, task_scores(gsm=[1, 0]), other)


def test_sigmas_of_no_difference_is_zero():
    assert PairedDifference(0.0, 0.0).sigmas == 0.0
    assert PairedDifference(0.0, 0.0).interval() == (0.0, 0.0)


def test_interval_is_that_of_the_table():
    low, high = PairedDifference(1.0, 0.5, 4).interval(0.95)  # t(0.975, 4) = 2.776
    assert (low, high) == (pytest.approx(1 - 2.776 * 0.5, abs=1e-3), pytest.approx(2.388, abs=1e-3))
    assert PairedDifference(0.0, 1.0).interval(0.95)[1] == pytest.approx(1.95996, abs=1e-5)
    with pytest.raises(ValueError, match="confidence must be in"):
        PairedDifference(0.0, 1.0).interval(1.0)


def test_mcnemar_is_the_binomial_test_of_the_items_that_differ():
    a = np.array([1.0] * 9 + [0.0] * 2 + [1.0] * 20 + [0.0] * 30)
    b = np.array([0.0] * 9 + [1.0] * 2 + [1.0] * 20 + [0.0] * 30)
    found = mcnemar(a, b)
    assert (found.only_a, found.only_b) == (9, 2)
    # Of 11 items, 1 + 11 + 55 ways to give one side at most two; both sides count.
    assert found.p_value == pytest.approx(2 * 67 / 2048)
    assert mcnemar(a, a).p_value == 1.0


def test_mcnemar_refuses_other_shapes_and_scores_between():
    with pytest.raises(ValueError, match="same items"):
        mcnemar(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="sign-flip"):
        mcnemar(np.array([0.5]), np.array([1.0]))


def test_sign_flip_of_few_items_counts_all_signs():
    # 1 + 2 + 3: of the 8 sums only 6 and -6 are as far from zero.
    assert sign_flip_p_value([Stratum(1.0, np.array([1.0, 2.0, 3.0]))]) == pytest.approx(2 / 8)
    assert sign_flip_p_value([Stratum(1.0, np.array([1.0, 2.0, -3.0, 0.0]))]) == 1.0
    assert sign_flip_p_value([Stratum(1.0, np.zeros(5))]) == 1.0


def test_sign_flip_is_not_misled_by_rounding():
    # 0.1 + 0.2 - 0.3 is 5.6e-17, not 0: all four sums of that size must count.
    assert sign_flip_p_value([Stratum(1.0, np.array([0.1, 0.2, -0.3]))]) == 1.0


def test_sign_flip_of_many_items_depends_on_the_seed_only_a_little():
    rng = np.random.default_rng(1)
    parts = [Stratum(0.5, rng.normal(0.1, 1, size=80)), Stratum(0.5, rng.normal(0.1, 1, size=60))]
    values = [sign_flip_p_value(parts, seed=seed) for seed in range(3)]
    assert values[0] == sign_flip_p_value(parts, seed=0)
    assert len(set(values)) == 3
    assert max(values) - min(values) < 0.03
    assert sign_flip_p_value([Stratum(1.0, np.arange(1.0, 101.0))], num_resamples=99) == 1 / 100


def test_sign_flip_of_many_right_or_wrong_items_is_exact():
    assert sign_flip_p_value([Stratum(1.0, np.ones(100))]) == pytest.approx(2.0**-99)
    # 30 of one size and 40 of another: 31 * 41 sums, though 2^70 assignments of signs.
    rng = np.random.default_rng(0)
    parts = [Stratum(0.5, np.repeat([1.0, -1.0], (20, 10))), Stratum(0.5, np.repeat([1, -1.0], 20))]
    exact = sign_flip_p_value(parts)
    assert exact == sign_flip_p_value(parts, seed=1)
    signs = 1 - 2 * rng.integers(0, 2, size=(200_000, 70))
    sums = np.abs(signs @ np.concatenate([part.terms for part in parts]))
    limit = abs(sum(part.terms.sum() for part in parts)) - 1e-9
    assert exact == pytest.approx((sums >= limit).mean(), abs=0.005)


def test_difference_of_one_item_has_no_error():
    found = difference([Stratum(1.0, np.array([0.5]))])
    assert (found.mean, found.stderr) == (0.5, 0.0)
