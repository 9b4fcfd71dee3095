"""Replays of races on made-up searches."""

import numpy as np
import pytest
from scipy.special import expit

from scripts.bench.item_order import (
    ORDERS,
    Recorded,
    by_information,
    by_variance,
    fit_two_parameter,
    replay,
)

HARD = np.linspace(-3, 3, 64)


def answers(rng, abilities) -> np.ndarray:
    chance = expit(np.asarray(abilities)[:, None, None] - HARD)
    return (rng.random((len(abilities), 3, 64)) < chance).astype(float)


def search(abilities) -> Recorded:
    scores = answers(np.random.default_rng(0), abilities)
    is_baseline = [index < 12 for index in range(len(abilities))]
    return Recorded("zoo3", 0, scores, is_baseline, np.zeros(3))


@pytest.mark.parametrize("order", ORDERS)
def test_bad_candidates_are_stopped_and_the_front_is_kept(order):
    found = replay(search([*np.linspace(-2, 1, 12), *[-2.0] * 20, 2.5]), order, "model", 0.95)
    assert 0.3 < found.saved < 0.48, "at the most 20 of 33 save three quarters"
    assert (found.lost, found.mean_lost) == (0.0, 0.0)


@pytest.mark.parametrize("test", ["block", "model"])
def test_search_that_only_gets_better_saves_nothing(test):
    found = replay(search([*np.linspace(-2, 0, 12), 1.5, 2.5, 3.5]), "variance", test, 0.98)
    assert (found.saved, found.lost) == (0.0, 0.0)


def test_items_that_tell_candidates_apart_come_first():
    known = answers(np.random.default_rng(1), np.linspace(-0.5, 0.5, 60))[:, 0]
    for order in (by_variance, by_information):
        first = HARD[order(known, 0)[:16]]
        assert np.abs(first).mean() < 1.0 < np.abs(HARD).mean()


def test_two_parameter_fit_finds_ability_and_location():
    abilities = np.linspace(-2, 2, 80)
    ability, slope, location = fit_two_parameter(answers(np.random.default_rng(2), abilities)[:, 0])
    assert np.corrcoef(ability, abilities)[0, 1] > 0.9
    assert np.corrcoef(location, HARD)[0, 1] > 0.9
    assert (slope > 0).all()
