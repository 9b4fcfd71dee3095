import numpy as np
import pytest

from optimizer.surrogate.bowl import MEMBERS, fit_bowls, fit_lines
from optimizer.surrogate.kernel import Features

NOISE = 0.02


def features_of(weights: np.ndarray) -> Features:
    return Features(weights, np.zeros_like(weights))


class Truth:
    """A bowl of two squares in six checkpoints; the base is 5 logits below the top."""

    def __init__(self, groups: int = 1) -> None:
        rng = np.random.default_rng(4)
        self.shape = (6, groups)
        self._slopes = rng.normal(0.5, 0.7, (2, 6 * groups)) / groups
        self._offsets = np.array([1.9, 1.2])

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        roots = weights.reshape(len(weights), -1) @ self._slopes.T - self._offsets
        return 2.0 - (roots**2).sum(axis=1)

    def draw(self, count: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        shares = rng.dirichlet(np.full(6, 0.7), size=count) * rng.uniform(0.5, 2.5, (count, 1))
        return np.repeat(shares[:, :, None], self.shape[1], axis=2)


def error(truth: Truth, bowls) -> float:
    unseen = truth.draw(200, seed=9)
    found = bowls(features_of(unseen)).mean(axis=0)
    return float(np.sqrt(((found - truth(unseen)) ** 2).mean()))


@pytest.mark.parametrize("groups", [1, 3])
def test_bowls_predict_unseen_merges_from_fewer_samples_than_a_quadratic_has_coefficients(groups):
    truth = Truth(groups)
    weights = truth.draw(20, seed=0)
    values = truth(weights) + np.sqrt(NOISE) * np.random.default_rng(1).normal(size=20)
    bowls = fit_bowls(weights, values, np.full(20, NOISE), np.zeros(20, dtype=bool))
    spread = truth(truth.draw(200, seed=9)).std()
    assert error(truth, bowls) < 0.4 * spread


def test_what_is_only_known_to_be_bad_does_not_bend_the_rest():
    truth = Truth()
    weights = truth.draw(40, seed=0)
    # Eight merges that are broken; scores have a floor, which is all that is seen of them.
    weights[:8] *= 4.0
    floor = -6.0
    values = np.maximum(truth(weights), floor)
    is_bound = values <= floor
    assert is_bound.sum() >= 4
    taken, bounded = (
        fit_bowls(weights, values, np.full(40, NOISE), bounds)
        for bounds in (np.zeros(40, dtype=bool), is_bound)
    )
    assert error(truth, bounded) < 0.5 * error(truth, taken)


def test_bowls_agree_on_what_was_seen_and_differ_elsewhere():
    truth = Truth()
    weights = truth.draw(30, seed=0)
    # The last checkpoint was never used.
    weights[:, 5] = 0.0
    bowls = fit_bowls(weights, truth(weights), np.full(30, NOISE), np.zeros(30, dtype=bool))
    elsewhere = np.zeros((1, 6, 1))
    elsewhere[0, 5] = 1.0
    assert len(bowls.tops) == MEMBERS
    assert bowls(features_of(weights)).std(axis=0).mean() < 0.3
    assert bowls(features_of(elsewhere)).std() > 0.6
    # None is above its top anywhere.
    assert (bowls(features_of(truth.draw(500, seed=3))) <= bowls.tops[:, None]).all()


def test_bowls_are_a_function_of_the_samples():
    truth = Truth()
    weights = truth.draw(10, seed=0)
    first, second = (
        fit_bowls(weights, truth(weights), np.full(10, NOISE), np.zeros(10, dtype=bool))
        for _ in range(2)
    )
    assert np.array_equal(first.slopes, second.slopes)


def test_lines_follow_the_companion_and_leave_bounds_below_them():
    smooth = np.linspace(-4.0, 1.0, 30)
    values = np.maximum(3.0 * smooth - 1.0, -5.0)
    lines = fit_lines(smooth, values, np.full(30, NOISE), values <= -5.0)
    weights = np.zeros((30, 2, 1))
    found = lines(Features(weights, weights, smooth)).mean(axis=0)
    assert found[-15:] == pytest.approx(3.0 * smooth[-15:] - 1.0, abs=0.2)
    assert found[0] < -10.0
