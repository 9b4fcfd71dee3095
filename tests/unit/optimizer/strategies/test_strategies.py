import numpy as np
import pytest

from configs.errors import ConfigError
from configs.schema import JobConfig
from evaluators.scores import ObjectiveScore
from optimizer.candidate import Candidate, Observation
from optimizer.strategies import surrogate
from optimizer.strategies.cma import Evolution, rank_fitness
from optimizer.strategies.registry import STRATEGIES, check_strategy, make_strategy
from optimizer.strategies.scalar_cma import l1_penalty
from optimizer.surrogate.surrogate import Surrogate
from scripts.bench.landscapes import Landscape
from scripts.bench.search_closed import run_search
from tests.contract.strategy_contract import StrategyContract, plain, score


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


@pytest.mark.slow  # beliefs are fitted all the time
class TestSurrogateCma(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "surrogate_cma"

    def test_starts_with_soups_and_checkpoints_that_drop_nothing(self, build):
        strategy, _, _ = build()
        proposals = [strategy.ask(0, [])]
        while len(proposals) < 9:
            proposals.append(strategy.ask(len(proposals), proposals))
        weights = np.array([candidate.recipe.weights for candidate in proposals])[:, :, 0]
        assert weights[:3].sum(axis=1) == pytest.approx([1.0, 1.5, 2.1])
        assert weights[3:6] == pytest.approx(np.eye(3))
        assert (weights[6:9] > 0).sum(axis=1).tolist() == [2, 2, 2]
        assert not np.array([candidate.recipe.drop_ratios for candidate in proposals]).any()

    def test_start_does_not_repeat_baselines(self, build):
        strategy, space, names = build()
        soup = space.recipe([[1 / 3]] * 3)
        genotype = space.encode(soup.weights)
        strategy.tell(
            Observation(
                baseline := Candidate(0, genotype, soup, "baseline:s", 0), score(baseline, names)
            )
        )
        assert strategy.ask(1, []).recipe.recipe_id != soup.recipe_id

    @pytest.mark.parametrize(("workers", "beliefs"), [(4, 9), (64, 4)])
    def test_one_belief_serves_the_asks_of_many_workers(self, build, monkeypatch, workers, beliefs):
        """And a strategy that was told all at once asks as the one that grew does."""
        grown, _, names = build()
        rng = np.random.default_rng(2)
        known = [plain(grown.ask(index, []), names, rng) for index in range(200)]
        told, pending = known[:100], [seen.candidate for seen in known[-workers:]]
        for seen in told[:-8]:
            grown.tell(seen)
        made = []

        def counted(*arguments, **options):
            made.append(1)
            return Surrogate(*arguments, **options)

        monkeypatch.setattr(surrogate, "Surrogate", counted)
        last = grown.ask(200, pending)
        for seen in told[-8:]:
            grown.tell(seen)
            last = grown.ask(200, pending)
        assert len(made) <= beliefs
        fresh, _, _ = build()
        for seen in told:
            fresh.tell(seen)
        assert last.same_proposal(fresh.ask(200, pending))

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_finds_what_the_landscape_hides(self, share):
        """At 60 evaluations: more hypervolume, and a better mean, than random search finds."""
        landscape = Landscape("N4")
        ours = run_search(landscape, f"surrogate_cma[preference_share={share}]", 0, 60).trace[-1]
        random = run_search(landscape, "dirichlet", 0, 60).trace[-1]
        assert ours.best_mean > random.best_mean
        assert ours.hypervolume > random.hypervolume

    def test_drawn_merges_split_groups_only_where_the_model_leads(self, build, make_job):
        groups = {"lower": [{"layers": "0-1"}], "upper": ["rest"]}
        merge = make_job(merge={"groups": groups}).merge
        proposals, _ = self.run(build, order_seed=11, merge=merge)
        weights = np.array([candidate.recipe.weights for candidate in proposals])
        split = np.abs(weights[:, :, 0] - weights[:, :, 1]).max(axis=1) > 1e-9
        assert not split[:12].any()
        assert split[20:].any()


class TestScalarCma(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "scalar_cma"

    def test_starts_where_mergekit_does(self, build):
        strategy, _, _ = build()
        asks = [strategy.ask(index, []).recipe for index in range(1500)]
        weights = np.array([recipe.weights for recipe in asks])
        drops = np.array([recipe.drop_ratios for recipe in asks])
        # |N(1/3, 1/6)| and 1 - min(|N(1, 1/6)|, 1)
        assert weights.mean() == pytest.approx(1 / 3, abs=0.02)
        assert weights.std() == pytest.approx(1 / 6, abs=0.01)
        assert (drops == 0).mean() == pytest.approx(0.5, abs=0.03)

    @pytest.mark.parametrize("scalarization", ["weighted_sum", "tchebycheff"])
    def test_finds_a_better_mean_than_it_starts_with(self, build, job, scalarization):
        search = job.search.model_copy(update={"scalarization": scalarization})
        _, told = self.run(build, order_seed=0, num=150, search=search)
        means = [np.mean([s.value for s in seen.scores.values()]) for seen in told if seen.scores]
        assert np.mean(means[-20:]) > np.mean(means[:20]) + 0.05

    def test_tchebycheff_looks_at_the_objective_that_is_furthest_behind(self, build, job):
        def observe(candidate, names, rng):
            low = float(np.array(candidate.recipe.weights)[0, 0])
            values = dict.fromkeys(names, ObjectiveScore(low, 0.01, 64))
            return Observation(candidate, values | {names[0]: ObjectiveScore(1 - low, 0.01, 64)})

        def first_weight(scalarization):
            search = job.search.model_copy(update={"scalarization": scalarization})
            proposals, _ = self.run(build, order_seed=0, num=150, observe=observe, search=search)
            return np.mean([candidate.recipe.weights[0][0] for candidate in proposals[-20:]])

        assert first_weight("weighted_sum") > 0.8
        # Between the ideals that were seen: 1 for the one, the largest weight drawn for the others.
        assert 0.1 < first_weight("tchebycheff") < 0.6


class TestScalarCmaWithL1(StrategyContract):
    """LoRAHub's setting: weights of both signs, and a penalty on their size."""

    @pytest.fixture
    def strategy_name(self) -> str:
        return "scalar_cma"

    @pytest.fixture
    def job(self, make_job, strategy_name: str) -> JobConfig:
        return make_job(
            search={"strategy": strategy_name, "population_size": 5, "l1": 0.3},
            merge={"method": "task_arithmetic", "weight": {"low": -1.5, "high": 1.5}},
        )

    def test_penalty_by_hand(self, make_job, make_space):
        space = make_space(make_job(merge={"weight": {"low": -1.5, "high": 1.5}}))
        recipe = space.recipe([[1.0], [-1.5], [0.5]])
        # Their absolute values add up to 3, of three weights.
        assert l1_penalty(0.05, recipe) == pytest.approx(0.05)
        assert l1_penalty(0.0, recipe) == 0.0

    @pytest.mark.parametrize("scalarization", ["weighted_sum", "tchebycheff"])
    def test_what_is_minimized_by_hand(self, build, job, monkeypatch, scalarization):
        """A population of four, one of them failed, told with weights of its own."""
        search = {"population_size": 4, "l1": 0.3, "scalarization": scalarization}
        strategy, space, names = build(search=job.search.model_copy(update=search))
        minimized = []
        monkeypatch.setattr(
            Evolution, "update", lambda _self, _points, fitness: minimized.append(fitness)
        )
        weights = ([0.0, 0.0, 0.0], [1.5, 0.0, 0.0], [-1.5, 1.5, 0.0], [0.3, 0.3, 0.3])
        values = (0.5, 0.8, 0.8, None)
        for index, (line, value) in enumerate(zip(weights, values, strict=True)):
            recipe = space.recipe([[weight] for weight in line])
            genotype = space.encode(recipe.weights)
            candidate = Candidate(index, genotype, recipe, "strategy:scalar_cma", seen=index)
            scores = value and dict.fromkeys(names, ObjectiveScore(value, 0.01, 64))
            strategy.tell(Observation(candidate, scores))
        # 0.3 times the mean of |w|: 0, 0.5 and 1.0; what failed is one worse than the worst.
        if scalarization == "weighted_sum":
            wanted = [-0.5, -0.8 + 0.15, -0.8 + 0.3, -0.5 + 1.0]
        else:  # a third of the distance to the best seen, 0.8
            wanted = [0.1, 0.15, 0.3, 1.3]
        assert minimized[0] == pytest.approx(wanted)

    def test_weights_that_gain_nothing_vanish(self, build):
        def observe(candidate, names, _rng):
            first = candidate.recipe.weights[0][0]
            value = 1.0 - (first - 1.0) ** 2
            return Observation(candidate, dict.fromkeys(names, ObjectiveScore(value, 0.0, 64)))

        proposals, told = self.run(build, order_seed=0, num=200, observe=observe)
        weights = np.array([candidate.recipe.weights for candidate in proposals[-30:]])[:, :, 0]
        # The first where 2 (1 - w) = 0.3 / 3; the others cost, and give nothing.
        assert weights.mean(axis=0) == pytest.approx([0.95, 0.0, 0.0], abs=0.03)
        # What was told, and goes to the archive, is the score alone.
        best = max(seen.scores["math"].value for seen in told)
        assert best == pytest.approx(1.0, abs=0.01)


class TestNsga2(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "nsga2"

    def test_population_moves_towards_the_front(self, build):
        _, told = self.run(build, order_seed=0, num=200)
        means = [np.mean([s.value for s in seen.scores.values()]) for seen in told if seen.scores]
        assert np.mean(means[-40:]) > np.mean(means[:40]) + 0.05


class TestSobol(StrategyContract):
    @pytest.fixture
    def strategy_name(self) -> str:
        return "sobol"

    def test_covers_the_box_evenly(self, build):
        strategy, _, _ = build()
        genes = np.array([strategy.ask(index, []).genotype for index in range(64)])
        counts = [np.histogram(column, bins=8, range=(0, 1))[0] for column in genes.T]
        assert (np.array(counts) == 8).all()


def test_every_strategy_is_tested_by_the_contract():
    assert set(STRATEGIES) == {
        "surrogate_cma",
        "cma",
        "scalar_cma",
        "nsga2",
        "dirichlet",
        "sobol",
        "grid",
    }


def test_make_strategy_suggests_the_nearest_name(make_job, make_space):
    job = make_job(search={"strategy": "cmaes"})
    with pytest.raises(ConfigError, match="`cmaes` is no strategy; did you mean `cma`"):
        make_strategy(job, make_space(job))


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"scalar_cma"}))
def test_l1_is_refused_where_no_one_number_is_maximized(make_job, make_space, name):
    job = make_job(search={"strategy": name, "l1": 0.05})
    with pytest.raises(ConfigError, match="take `l1` out, or use strategy `scalar_cma`") as raised:
        make_strategy(job, make_space(job))
    assert [problem.path for problem in raised.value.problems] == ["search.l1"]


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {"surrogate_cma"}))
def test_end_by_expected_gain_is_refused_where_none_is_expected(make_job, make_space, name):
    job = make_job(search={"strategy": name}, budget={"min_gain_per_hour": 0.1})
    with pytest.raises(ConfigError, match="take it out, or use strategy `surrogate_cma`") as raised:
        check_strategy(job)
    assert [problem.path for problem in raised.value.problems] == ["budget.min_gain_per_hour"]
    # What was recorded before it was refused can be read.
    assert make_strategy(job, make_space(job)).stop() == {}


def test_all_that_a_strategy_has_no_use_for_is_said_at_once(make_job):
    job = make_job(search={"strategy": "sobol", "l1": 0.1}, budget={"min_gain_per_hour": 0.1})
    with pytest.raises(ConfigError, match="2 problems with strategy `sobol`") as raised:
        check_strategy(job)
    paths = [problem.path for problem in raised.value.problems]
    assert paths == ["search.l1", "budget.min_gain_per_hour"]
    check_strategy(make_job(budget={"min_gain_per_hour": 0.1}))


def test_l1_zero_is_every_strategys_default(make_job, make_space):
    job = make_job(search={"strategy": "sobol", "l1": 0})
    assert make_strategy(job, make_space(job)).stop() == {}


def test_rank_fitness_prefers_front_members_then_nearness_to_it():
    points = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.05], [0.5, 0.02]])
    fitness = rank_fitness(points, np.zeros(2), np.array([0.5, 0.5]), preference_share=0.0)
    assert fitness[0] == fitness[1] < fitness[2] < fitness[3]


def test_rank_fitness_is_the_rank_of_the_mean_when_preference_is_all():
    points = np.array([[0.9, 0.0], [0.4, 0.6], [0.5, 0.1]])
    fitness = rank_fitness(points, np.zeros(2), np.array([0.5, 0.5]), preference_share=1.0)
    assert fitness.tolist() == [2.0, 1.0, 3.0]
