"""Laws of dominance and hypervolume, on random point sets."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from optimizer.pareto import (
    best_gain,
    domination_depth,
    gain_bounds,
    gains,
    hypervolume,
    hypervolume_contributions,
    non_dominated,
    spread_subset,
)

# Few distinct values make ties and duplicates common.
points_of = st.integers(1, 4).flatmap(
    lambda m: st.integers(1, 9).flatmap(
        lambda n: arrays(np.float64, (n, m), elements=st.integers(0, 5).map(lambda v: v / 5))
    )
)


def dominates(a: np.ndarray, b: np.ndarray) -> bool:
    return bool((a >= b).all() and (a > b).any())


def hypervolume_by_inclusion_exclusion(points: np.ndarray) -> float:
    """The slow reference: sum over subsets of the volume of their common box at the origin."""
    total = 0.0
    for size in range(1, len(points) + 1):
        for subset in itertools.combinations(points, size):
            total -= (-1) ** size * float(np.min(subset, axis=0).prod())
    return total


@given(points_of)
def test_front_members_are_exactly_those_that_nothing_dominates(points):
    expected = [not any(dominates(other, point) for other in points) for point in points]
    assert non_dominated(points).tolist() == expected


@given(points_of)
def test_hypervolume_equals_inclusion_exclusion(points):
    assert hypervolume(points, np.zeros(points.shape[1])) == pytest.approx(
        hypervolume_by_inclusion_exclusion(points), abs=1e-12
    )


@given(points_of, st.randoms(use_true_random=False))
def test_hypervolume_ignores_order_and_follows_translation(points, random):
    reference = np.zeros(points.shape[1])
    shuffled = list(points)
    random.shuffle(shuffled)
    volume = hypervolume(points, reference)
    assert hypervolume(shuffled, reference) == pytest.approx(volume, abs=1e-12)
    assert hypervolume(points + 0.25, reference + 0.25) == pytest.approx(volume, abs=1e-12)


@given(points_of)
def test_contribution_is_what_the_front_loses_without_the_point(points):
    reference = np.full(points.shape[1], -0.1)
    contributions = hypervolume_contributions(points, reference)
    front = non_dominated(points)
    assert (contributions[~front] == 0).all()
    for index in np.flatnonzero(front):
        others = np.delete(points[front], np.flatnonzero(front) == index, axis=0)
        lost = hypervolume(points, reference) - hypervolume(others, reference)
        assert contributions[index] == pytest.approx(lost, abs=1e-12)


fronts_of = st.integers(2, 5).flatmap(
    lambda m: st.integers(1, 20).flatmap(
        lambda n: arrays(np.float64, (n, m), elements=st.floats(0, 1, width=32))
    )
)


@given(fronts_of)
def test_hypervolume_equals_that_of_pymoo(points):
    from pymoo.indicators.hv import HV

    reference = np.full(points.shape[1], -0.1)
    theirs = HV(ref_point=-reference)(-points)
    assert hypervolume(points, reference) == pytest.approx(theirs, rel=1e-9)


def test_hypervolume_by_hand():
    # Columns of height 3, 2 and 1; (1, 1) is inside, and (9, -1) is not above the reference.
    points = [[3.0, 1.0], [2.0, 2.0], [1.0, 3.0], [1.0, 1.0], [9.0, -1.0]]
    assert hypervolume(points, [0.0, 0.0]) == 6.0
    # From (1/2, 1/2), heights of 2.5, 1.5 and 0.5 over widths of 0.5, 1 and 1.
    assert hypervolume(points, [0.5, 0.5]) == 3.25


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_hypervolume_equals_closed_forms(m):
    reference = np.zeros(m)
    assert hypervolume(np.full((1, m), 0.5), reference) == pytest.approx(0.5**m)
    # Boxes that are long in one direction overlap in the cube of their short sides.
    long, short = 0.8, 0.3
    corners = short + (long - short) * np.eye(m)
    expected = short**m + m * (long - short) * short ** (m - 1)
    assert hypervolume(corners, reference) == pytest.approx(expected)


def test_hypervolume_of_a_staircase_nears_the_area_under_the_line():
    steps = np.linspace(0, 1, 1001)
    stairs = np.stack([steps, 1 - steps], axis=1)
    assert hypervolume(stairs, np.zeros(2)) == pytest.approx(0.5 - 0.5 / 1000)


@given(points_of, st.data())
def test_best_gain_is_the_largest_and_below_its_bound(points, data):
    split = data.draw(st.integers(0, len(points) - 1))
    front, offered = points[:split], points[split:]
    reference = np.full(points.shape[1], -0.1)
    before = hypervolume(front, reference)
    added = [hypervolume(np.vstack([front, [p]]), reference) - before for p in offered]
    assert gains(offered, front, reference) == pytest.approx(added, abs=1e-12)
    index, gain = best_gain(offered, front, reference)
    assert gain == pytest.approx(max(added), abs=1e-12)
    assert gain == 0 or added[index] == pytest.approx(gain, abs=1e-12)
    assert (gain_bounds(offered, front, reference) >= np.array(added) - 1e-12).all()


@given(points_of)
def test_depth_is_zero_on_the_front_and_lifts_a_point_onto_it(points):
    depth = domination_depth(points)
    front = non_dominated(points)
    assert (depth[front] == 0).all()
    for index in range(len(points)):
        lifted = points.copy()
        lifted[index] += depth[index] + 1e-9
        assert non_dominated(lifted)[index]
        if depth[index] > 0:
            lowered = points.copy()
            lowered[index] += depth[index] - 1e-9
            assert not non_dominated(lowered)[index]


@given(points_of, st.integers(1, 5))
def test_spread_subset_takes_front_members_that_each_add_volume(points, size):
    reference = np.full(points.shape[1], -0.1)
    chosen = spread_subset(points, reference, size)
    assert len(chosen) == len(set(chosen)) <= size
    volumes = [hypervolume(points[chosen[: k + 1]], reference) for k in range(len(chosen))]
    assert all(a < b for a, b in itertools.pairwise([0.0, *volumes]))
    if len(chosen) < size:
        assert volumes[-1] == pytest.approx(hypervolume(points, reference))


@pytest.mark.parametrize("bad", [[[0.1, float("nan")]], [0.1, 0.2]])
def test_points_with_nan_or_one_axis_are_refused(bad):
    with pytest.raises(ValueError, match=r"NaN|shape"):
        non_dominated(bad)
