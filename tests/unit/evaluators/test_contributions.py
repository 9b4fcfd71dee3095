"""Per-item contributions: their mean is the statistic, their spread its uncertainty."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from evaluators.contributions import contributions, spearman_contributions
from evaluators.scores import standard_error

# Few distinct values: ties everywhere.
PAIRS = st.lists(
    st.tuples(st.integers(0, 6), st.integers(-3, 3) | st.floats(-1, 1)), min_size=2, max_size=40
)


def correlation(x: np.ndarray, y: np.ndarray) -> float:
    if len(set(x)) < 2 or len(set(y)) < 2:
        return 0.0
    return float(spearmanr(x, y).statistic)


@given(PAIRS)
def test_mean_is_spearmans_correlation_with_ties(pairs: list[tuple[float, float]]) -> None:
    x, y = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    assert spearman_contributions(x, y).mean() == pytest.approx(correlation(x, y), abs=1e-9)


@given(PAIRS)
def test_fast_way_is_the_jackknife_of_scipys_correlation(
    pairs: list[tuple[float, float]],
) -> None:
    x, y = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    np.testing.assert_allclose(
        spearman_contributions(x, y), contributions(correlation, x, y), atol=1e-9
    )


def test_contributions_to_a_mean_are_the_values() -> None:
    values = np.random.default_rng(0).normal(size=30)
    np.testing.assert_allclose(contributions(np.mean, values), values)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.0, 0.7, 0.95])
def test_spread_is_the_standard_error_of_the_correlation(strength: float) -> None:
    draw = np.random.default_rng(1)
    found, claimed = [], []
    for _ in range(400):
        x, noise = draw.normal(size=(2, 60))
        parts = spearman_contributions(x, strength * x + (1 - strength**2) ** 0.5 * noise)
        found.append(parts.mean())
        claimed.append(standard_error(parts))
    # Products of standardized ranks have the same mean, and where correlations are strong would
    # claim several times as much.
    assert np.mean(claimed) == pytest.approx(np.std(found), rel=0.15)


@pytest.mark.slow
def test_spread_of_differences_is_that_of_the_difference() -> None:
    draw = np.random.default_rng(2)
    found, claimed = [], []
    for _ in range(400):
        x, noise, other = draw.normal(size=(3, 60))
        better = spearman_contributions(x + 0.5 * noise, x)
        worse = spearman_contributions(x + 0.5 * noise + 0.3 * other, x)
        found.append(better.mean() - worse.mean())
        claimed.append(standard_error(better - worse))
    assert np.mean(claimed) == pytest.approx(np.std(found), rel=0.15)


def test_no_association_can_be_seen_in_equal_values() -> None:
    assert spearman_contributions([1, 1, 1], [1, 2, 3]).tolist() == [0, 0, 0]
    assert spearman_contributions([1, 2, 3], [0.1, 0.1, 0.1]).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("predicted", "expected", "message"),
    [
        ([1.0], [1.0], "at least 2"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "columns of one length"),
        ([1.0, float("nan"), 2.0], [1, 2, 3], "`predicted` is nan for item 1 of 3"),
        ([1, 2, 3], [1.0, 2.0, float("inf")], "`expected` is inf for item 2 of 3"),
        ([[1.0], [2.0]], [1, 2], r"`predicted` must have shape \(n,\), found \(2, 1\)"),
    ],
)
def test_wrong_columns_are_refused(predicted: object, expected: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        spearman_contributions(predicted, expected)  # type: ignore[arg-type]  # wrong on purpose
