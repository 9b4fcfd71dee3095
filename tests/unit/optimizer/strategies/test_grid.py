import itertools
from collections.abc import Callable

import numpy as np
import pytest

from configs.schema import JobConfig
from optimizer.baselines import BaselinePlan
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace
from optimizer.strategies.grid import GridStrategy, grid_points
from tests.contract.strategy_contract import StrategyContract

NAMES = ("instruct", "code", "math")


class TestGrid(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "grid"

    def test_ask_is_reproducible_from_the_seed(self, build):
        first, second = (self.run(build, order_seed=1)[0] for _ in range(2))
        assert all(a.same_proposal(b) for a, b in zip(first, second, strict=True))
        # Another seed has the same points in another order.
        other, _ = self.run(build, order_seed=1, seed=5)
        assert not all(a.same_proposal(b) for a, b in zip(first, other, strict=True))


def test_grids_become_finer_and_repeat_nothing() -> None:
    points = list(itertools.islice(grid_points(3, seed=0), 22))
    assert len(set(points)) == 22
    assert all(sum(point) == pytest.approx(1.0) for point in points)
    assert set(points[:3]) == {(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)}
    assert set(points[3:6]) == {(0.5, 0.5, 0.0), (0.5, 0.0, 0.5), (0.0, 0.5, 0.5)}
    # Of the 10 points in thirds 3 are vertices; of the 15 in quarters 6 are halves or vertices.
    assert {round(3 * part, 9) for part in itertools.chain(*points[6:13])} == {0.0, 1.0, 2.0}
    assert {round(4 * part, 9) for part in itertools.chain(*points[13:])} == {0.0, 1.0, 2.0, 3.0}


def test_order_is_the_seeds() -> None:
    first, again, other = (list(itertools.islice(grid_points(4, seed), 40)) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_of_one_checkpoint_there_is_one_interpolation() -> None:
    assert list(grid_points(1, seed=0)) == [(1.0,)]


def test_what_baselines_scored_is_not_scored_again(
    make_job: Callable[..., JobConfig], make_space: Callable[[JobConfig], SearchSpace]
) -> None:
    job = make_job(search={"strategy": "grid"})
    space = make_space(job)
    strategy = GridStrategy(job, space)
    plan = BaselinePlan(space, NAMES, dict.fromkeys(NAMES, 1 / 3))
    for index, baseline in enumerate(plan.fixed):
        genotype = space.encode(baseline.recipe.weights)
        candidate = Candidate(index, genotype, baseline.recipe, baseline.origin, index)
        strategy.tell(Observation(candidate, None))
    asked: list[Candidate] = []
    for index in range(9):
        asked.append(strategy.ask(100 + index, asked))
    weights = np.array([one.recipe.weights for one in asked])[:, :, 0]
    # No vertex, and not the middle, which is the uniform soup: halves, then thirds.
    assert np.sort(weights[:3], axis=1) == pytest.approx(np.tile([0.0, 0.5, 0.5], (3, 1)))
    assert np.sort(weights[3:], axis=1) == pytest.approx(np.tile([0.0, 1 / 3, 2 / 3], (6, 1)))
    assert not any(any(map(any, one.recipe.drop_ratios)) for one in asked)


def test_bounds_that_leave_one_merge_end_nothing(
    make_job: Callable[..., JobConfig], make_space: Callable[[JobConfig], SearchSpace]
) -> None:
    job = make_job(
        search={"strategy": "grid"},
        merge={"weight": {"low": 0.5, "high": 0.5}, "drop_ratio": {"low": 0.2, "high": 0.4}},
    )
    strategy = GridStrategy(job, make_space(job))
    first = strategy.ask(0, [])
    assert strategy.ask(1, [first]).recipe == first.recipe


def test_merges_that_bounds_make_equal_are_scored_once(
    make_job: Callable[..., JobConfig], make_space: Callable[[JobConfig], SearchSpace]
) -> None:
    job = make_job(
        search={"strategy": "grid"},
        merge={"weight": {"low": 0.3, "high": 1.0}, "drop_ratio": {"low": 0.2, "high": 0.4}},
    )
    strategy = GridStrategy(job, make_space(job))
    asked: list[Candidate] = []
    for index in range(60):
        asked.append(strategy.ask(index, asked))
    assert len({one.recipe.recipe_id for one in asked}) == 60
