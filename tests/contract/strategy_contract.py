"""What every strategy must do, as tests that each implementation inherits."""

from dataclasses import replace

import numpy as np
import pytest

from configs.schema import JobConfig
from evaluators.scores import ObjectiveScore, Scores
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace
from optimizer.strategy import Strategy


def score(candidate: Candidate, names: tuple[str, ...]) -> Scores:
    """A smooth landscape: each objective likes another checkpoint, all dislike drops."""
    weights = np.array(candidate.recipe.weights)[:, 0]
    drops = np.array(candidate.recipe.drop_ratios)[:, 0]
    values = np.exp(-((weights - 0.7) ** 2)) * (1 - 0.3 * drops)
    return {
        name: ObjectiveScore(round(float(values[i % len(values)]), 3), 0.02, 64)
        for i, name in enumerate(names)
    }


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
        from optimizer.strategies import make_strategy

        def build(**changes) -> tuple[Strategy, SearchSpace, tuple[str, ...]]:
            changed = job.model_copy(update=changes)
            space = make_space(changed)
            return make_strategy(changed, space), space, tuple(changed.objectives)

        return build

    def run(self, build, order_seed: int, num: int = 40, **changes):
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
            failed = rng.random() < 0.1
            told.append(Observation(done, None if failed else score(done, names)))
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
