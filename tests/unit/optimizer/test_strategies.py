import numpy as np
import pytest

from configs.errors import ConfigError
from optimizer.candidate import Candidate, Observation
from optimizer.cma_strategy import rank_fitness
from optimizer.strategies import STRATEGIES, make_strategy
from tests.contract.strategy_contract import StrategyContract, score


class TestCma(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "cma"

    def test_starts_at_the_best_baseline_by_preference(self, build):
        strategy, space, names = build()
        good = space.recipe([[0.7]] * 3)
        for index, recipe in enumerate(
            (space.recipe([[1.4]] * 3), good, space.recipe([[0.1]] * 3))
        ):
            genotype = space.encode(recipe.weights, recipe.drop_ratios)
            candidate = Candidate(index, genotype, recipe, "baseline:x", seen=index)
            strategy.tell(Observation(candidate, score(candidate, names)))
        asks = np.array([strategy.ask(100 + i, []).genotype for i in range(400)])
        assert asks[:, :3].mean(axis=0) == pytest.approx([0.7 / 1.5] * 3, abs=0.04)

    def test_finds_a_better_mean_than_random_draws(self, build):
        _, told = self.run(build, order_seed=0, num=120)
        means = [np.mean([s.value for s in seen.scores.values()]) for seen in told if seen.scores]
        assert np.mean(means[-20:]) > np.mean(means[:20]) + 0.05
        assert max(means[-20:]) > 0.93

    def test_step_size_falls_on_a_smooth_landscape(self, build):
        strategy, _, names = build()
        before = strategy.sigma
        for index in range(200):
            candidate = strategy.ask(index, [])
            strategy.tell(Observation(candidate, score(candidate, names)))
        assert strategy.sigma < 0.6 * before


class TestDirichlet(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "dirichlet"

    def test_total_weight_covers_what_merges_need(self, build):
        strategy, _, _ = build()
        totals = [float(np.sum(strategy.ask(index, []).recipe.weights)) for index in range(300)]
        assert min(totals) < 1.0
        assert max(totals) > 1.8


class TestSurrogateCma(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "surrogate_cma"


class TestScalarCma(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "scalar_cma"


class TestNsga2(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "nsga2"


class TestSobol(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "sobol"


def test_every_strategy_is_tested_by_the_contract():
    assert set(STRATEGIES) == {
        "surrogate_cma",
        "cma",
        "scalar_cma",
        "nsga2",
        "dirichlet",
        "sobol",
    }


def test_make_strategy_suggests_the_nearest_name(make_job, make_space):
    job = make_job(search={"strategy": "cmaes"})
    with pytest.raises(ConfigError, match="unknown strategy `cmaes`; did you mean `cma`"):
        make_strategy(job, make_space(job))


def test_rank_fitness_prefers_front_members_then_nearness_to_it():
    points = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.05], [0.5, 0.02]])
    fitness = rank_fitness(points, np.zeros(2), np.array([0.5, 0.5]), preference_share=0.0)
    assert fitness[0] == fitness[1] < fitness[2] < fitness[3]


def test_rank_fitness_is_the_rank_of_the_mean_when_preference_is_all():
    points = np.array([[0.9, 0.0], [0.4, 0.6], [0.5, 0.1]])
    fitness = rank_fitness(points, np.zeros(2), np.array([0.5, 0.5]), preference_share=1.0)
    assert fitness.tolist() == [2.0, 1.0, 3.0]
