"""Paired statistics against scipy and brute force."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from evaluators.paired import Stratum, difference, mcnemar, sign_flip_p_value

# Sums of these are far apart or equal, so that rounding cannot decide a comparison.
scores = st.integers(-8, 8).map(lambda value: value / 4)
few = st.lists(scores, min_size=1, max_size=7).map(np.array)
shares = st.sampled_from([0.25, 0.5, 1.0])
comparisons = st.lists(st.builds(Stratum, shares, few), min_size=1, max_size=2)


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=2, max_size=40))
def test_one_stratum_is_the_paired_t_test(pairs) -> None:
    a, b = np.array(pairs).T
    found = difference([Stratum(1.0, a - b)])
    assert found.mean == pytest.approx((a - b).mean())
    assert found.stderr == pytest.approx(stats.sem(a - b), abs=1e-12)
    if found.stderr > 1e-6:
        expected = stats.ttest_rel(a, b)
        assert found.sigmas == pytest.approx(expected.statistic, rel=1e-6)
        assert found.interval(0.9) == pytest.approx(tuple(expected.confidence_interval(0.9)))


@given(comparisons)
def test_strata_of_several_tasks_are_welch(parts) -> None:
    found = difference(parts)
    means = [part.share * part.differences.mean() for part in parts]
    assert found.mean == pytest.approx(sum(means))
    turned = difference([Stratum(part.share, -part.differences) for part in reversed(parts)])
    assert turned.mean == pytest.approx(-found.mean)
    assert turned.stderr == pytest.approx(found.stderr)
    if len(parts) == 2 and all(np.ptp(part.differences) for part in parts):
        x, y = (part.share * part.differences for part in parts)
        welch = stats.ttest_ind(x, -y, equal_var=False)
        assert found.degrees_of_freedom == pytest.approx(welch.df)
        assert found.interval() == pytest.approx(tuple(welch.confidence_interval(0.95)))


@given(comparisons)
def test_few_items_are_tested_exactly(parts) -> None:
    terms = [part.share * d / part.differences.size for part in parts for d in part.differences]
    observed = abs(sum(terms))
    sums = [
        abs(sum(sign * term for sign, term in zip(signs, terms, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(terms))
    ]
    expected = np.mean([value >= observed - 1e-9 for value in sums])
    assert sign_flip_p_value(parts) == pytest.approx(expected)


@given(st.lists(scores, min_size=2, max_size=7).map(np.array))
def test_sign_flip_is_that_of_scipy(values) -> None:
    expected = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    if values.any():
        assert sign_flip_p_value([Stratum(1.0, values)]) == pytest.approx(expected.pvalue)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=18))
def test_mcnemar_is_the_sign_flip_of_right_and_wrong(pairs) -> None:
    a, b = np.array(pairs, dtype=np.float64).T
    found = mcnemar(a, b)
    assert found.p_value == pytest.approx(sign_flip_p_value([Stratum(1.0, a - b)]))
    assert (found.only_b, found.only_a) == (mcnemar(b, a).only_a, mcnemar(b, a).only_b)
    assert found.only_a - found.only_b == pytest.approx((a - b).sum())


@given(st.lists(scores, min_size=21, max_size=60), st.integers(0, 99))
def test_random_signs_agree_with_the_normal_approximation(values, seed) -> None:
    array = np.array(values)
    if np.count_nonzero(array) <= 20:
        return
    p_value = sign_flip_p_value([Stratum(1.0, array)], seed=seed, num_resamples=2000)
    spread = np.sqrt((array**2).sum())
    gap = np.abs(array[array != 0]).min()
    low, high = (2 * stats.norm.sf((abs(array.sum()) + step) / spread) for step in (gap, -gap))
    assert low - 0.08 < p_value < min(1.0, high) + 0.08
