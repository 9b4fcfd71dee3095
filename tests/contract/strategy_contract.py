"""What every strategy must do, as tests that each implementation inherits."""

from dataclasses import replace

import numpy as np
import pytest

from configs.schema import JobConfig
from evaluators.scores import ObjectiveScore, Scores
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace
from optimizer.strategies.strategy import Strategy


def score(candidate: Candidate, names: tuple[str, ...]) -> Scores:
    """A smooth landscape: each objective likes another checkpoint, all dislike drops."""
    weights = np.array(candidate.recipe.weights)[:, 0]
    drops = np.array(candidate.recipe.drop_ratios)[:, 0]
    values = np.exp(-((weights - 0.7) ** 2)) * (1 - 0.3 * drops)
    return {
        name: ObjectiveScore(round(float(values[i % len(values)]), 3), 0.02, 64)
        for i, name in enumerate(names)
    }


def companions(candidate: Candidate, names: tuple[str, ...]) -> Scores:
    """A smooth signal beside the scores, in units of its own."""
    return {
        name: ObjectiveScore(3.0 * value.value - 5.0, 0.01, 64)
        for name, value in score(candidate, names).items()
    }


def plain(candidate: Candidate, names: tuple[str, ...], rng: np.random.Generator) -> Observation:
    """One in ten fails."""
    return Observation(candidate, None if rng.random() < 0.1 else score(candidate, names))


def raced(candidate: Candidate, names: tuple[str, ...], rng: np.random.Generator) -> Observation:
    """Some fail, some are screened by companions only, some are stopped after a few items."""
    kind = rng.random()
    smooth = companions(candidate, names)
    if kind < 0.1:
        return Observation(candidate, None)
    if kind < 0.4:
        return Observation(candidate, {}, smooth)
    if kind < 0.7:
        scores = {
            name: ObjectiveScore(min(1.1, full.value + float(rng.normal(0, 0.1))), 0.1, 8)
            for name, full in score(candidate, names).items()
        }
        return Observation(candidate, scores, smooth if kind < 0.6 else {})
    return Observation(candidate, score(candidate, names), smooth)


class StrategyContract:
    """Inherit and give a ``job`` fixture that names the strategy."""

    @pytest.fixture
    def strategy_name(self) -> str:
        raise NotImplementedError

    @pytest.fixture
    def job(self, make_job, strategy_name: str) -> JobConfig:
        return make_job(search={"strategy": strategy_name, "population_size": 5})

    @pytest.fixture
    def build(self, job: JobConfig, make_space):
        from optimizer.strategies.registry import make_strategy

        def build(**changes) -> tuple[Strategy, SearchSpace, tuple[str, ...]]:
            changed = job.model_copy(update=changes)
            space = make_space(changed)
            return make_strategy(changed, space), space, tuple(changed.objectives)

        return build

    def run(self, build, order_seed: int, num: int = 40, observe=None, **changes):
        """Ask and tell with up to 4 pending, finishing in a random order; returns the record."""
        strategy, _, names = build(**changes)
        rng = np.random.default_rng(order_seed)
        pending: list[Candidate] = []
        proposals: list[Candidate] = []
        told: list[Observation] = []
        while len(told) < num:
            while len(pending) < 4 and len(proposals) < num:
                candidate = strategy.ask(len(proposals), pending)
                proposals.append(candidate)
                pending.append(candidate)
            done = pending.pop(int(rng.integers(len(pending))))
            told.append(observe(done, names, rng) if observe else plain(done, names, rng))
            strategy.tell(told[-1])
        return proposals, told

    def test_ask_is_reproducible_from_the_seed(self, build):
        first, _ = self.run(build, order_seed=1)
        second, _ = self.run(build, order_seed=1)
        assert all(a.same_proposal(b) for a, b in zip(first, second, strict=True))
        other, _ = self.run(build, order_seed=1, seed=5)
        # A start design may be the same for every seed.
        assert not any(
            np.array_equal(a.genotype, b.genotype)
            for a, b in zip(first[-10:], other[-10:], strict=True)
        )

    def test_ask_does_not_depend_on_global_random_state(self, build):
        first, _ = self.run(build, order_seed=1)
        np.random.random(7)  # noqa: NPY002 - what must not be drawn from - moves the state that must not matter
        state = np.random.get_state()  # noqa: NPY002 - what must not be drawn from
        second, _ = self.run(build, order_seed=1)
        after = np.random.get_state()  # noqa: NPY002 - what must not be drawn from
        assert all(a.same_proposal(b) for a, b in zip(first, second, strict=True))
        assert np.array_equal(state[1], after[1])

    def test_ask_changes_nothing(self, build):
        strategy, _, names = build()
        once = strategy.ask(0, [])
        for _ in range(3):
            assert strategy.ask(0, []).same_proposal(once)
        strategy.tell(Observation(once, score(once, names)))
        again = strategy.ask(1, [])
        assert strategy.ask(1, []).same_proposal(again)

    @pytest.mark.parametrize("cut", [0, 1, 7, 23, 39])
    def test_fresh_strategy_told_the_record_proposes_the_same(self, build, cut):
        proposals, told = self.run(build, order_seed=2)
        strategy, _, _ = build()
        for observation in told[:cut]:
            strategy.tell(observation)
        for candidate in proposals:
            if candidate.seen != cut:
                continue
            done = {seen.candidate.index for seen in told[:cut]}
            pending = [c for c in proposals[: candidate.index] if c.index not in done]
            assert strategy.ask(candidate.index, pending).same_proposal(candidate)

    def test_proposals_are_inside_the_cube_and_decode_to_their_recipe(self, build):
        proposals, _ = self.run(build, order_seed=3)
        _, space, _ = build()
        for candidate in proposals:
            assert candidate.genotype.shape == (space.size,)
            assert ((candidate.genotype >= 0) & (candidate.genotype <= 1)).all()
            assert space.decode(candidate.genotype).recipe_id == candidate.recipe.recipe_id

    def test_seen_counts_what_was_told(self, build):
        proposals, _ = self.run(build, order_seed=4)
        assert [c.seen for c in proposals] == [max(0, i - 3) for i in range(40)]

    def test_survives_when_everything_fails(self, build):
        strategy, _, _ = build()
        for index in range(25):
            strategy.tell(Observation(strategy.ask(index, []), None))
        assert np.isfinite(strategy.ask(25, []).genotype).all()

    def test_survives_duplicates_and_constant_scores(self, build):
        strategy, _, names = build()
        constant = {name: ObjectiveScore(0.0, 0.0, 64) for name in names}
        first = strategy.ask(0, [])
        for index in range(25):
            strategy.tell(Observation(replace(first, index=index), constant))
        assert np.isfinite(strategy.ask(25, []).genotype).all()

    @pytest.mark.parametrize("count", [1, 2, 5])
    def test_works_for_any_number_of_objectives(self, build, job, count):
        objective = next(iter(job.objectives.values()))
        proposals, told = self.run(
            build, order_seed=5, objectives={f"o{i}": objective for i in range(count)}
        )
        assert len(told) == len(proposals) == 40

    def test_learns_from_partial_and_screened_candidates(self, build):
        proposals, told = self.run(build, order_seed=6, observe=raced)
        strategy, _, _ = build()
        for observation in told[:30]:
            strategy.tell(observation)
        done = {seen.candidate.index for seen in told[:30]}
        for candidate in (c for c in proposals if c.seen == 30):
            pending = [c for c in proposals[: candidate.index] if c.index not in done]
            assert strategy.ask(candidate.index, pending).same_proposal(candidate)

    def test_survives_when_everything_is_only_screened(self, build):
        strategy, _, names = build()
        for index in range(30):
            candidate = strategy.ask(index, [])
            strategy.tell(Observation(candidate, {}, companions(candidate, names)))
        assert np.isfinite(strategy.ask(30, []).genotype).all()

    @pytest.mark.parametrize("value", [0.0, 1.0, 0.37])
    def test_survives_an_objective_that_never_changes(self, build, value):
        def observe(candidate, names, rng):
            scores = score(candidate, names)
            return Observation(candidate, scores | {names[0]: ObjectiveScore(value, 0.0, 64)})

        proposals, _ = self.run(build, order_seed=7, observe=observe)
        assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)

    def test_a_score_that_is_not_finite_counts_as_a_failure(self, build):
        def observe_with(scores_of):
            def observe(candidate, names, rng):
                if candidate.index % 5:
                    return Observation(candidate, score(candidate, names))
                return Observation(candidate, scores_of(candidate, names))

            return observe

        def broken(candidate, names):
            nan = ObjectiveScore(float("nan"), 0.1, 64)
            return score(candidate, names) | {names[-1]: nan}

        with_nan, _ = self.run(build, order_seed=8, observe=observe_with(broken))
        failed, _ = self.run(build, order_seed=8, observe=observe_with(lambda c, n: None))
        assert all(a.same_proposal(b) for a, b in zip(with_nan, failed, strict=True))

    @pytest.mark.parametrize("names", [("alone",), ("one", "other")])
    def test_works_for_one_checkpoint_and_for_two(self, make_job, strategy_name, build, names):
        models = make_job(
            models={"base": "zoo/base", "checkpoints": dict.fromkeys(names, "zoo/same")}
        ).models
        proposals, _ = self.run(build, order_seed=9, models=models)
        assert all(len(candidate.recipe.weights) == len(names) for candidate in proposals)

    @pytest.mark.parametrize(
        "merge",
        [
            {"parametrization": "softmax"},
            {"parametrization": "simplex", "scale": {"low": 0.5, "high": 2.5}},
            {"method": "task_arithmetic", "weight": {"low": -0.5, "high": 1.5}},
            {"groups": {"lower": [{"layers": "0-1"}], "upper": ["rest"]}},
        ],
        ids=["softmax", "scaled simplex", "negative weights", "groups"],
    )
    def test_works_for_every_kind_of_space(self, make_job, build, merge):
        proposals, _ = self.run(build, order_seed=10, merge=make_job(merge=merge).merge)
        assert all(np.isfinite(candidate.genotype).all() for candidate in proposals)
