import numpy as np
import pytest

from evaluators.scores import ObjectiveScore
from optimizer.candidate import Candidate, Observation
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.surrogate.surrogate import (
    Surrogate,
    SurrogateMemory,
    posterior_candidates,
    usable_observations,
)
from scripts.bench.landscapes import OBJECTIVES, Landscape


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return Landscape("N4")


@pytest.fixture(scope="module")
def space(landscape):
    return landscape.space(landscape.job("dirichlet"))


@pytest.fixture(scope="module")
def draw(landscape, space):
    strategy = DirichletStrategy(landscape.job("dirichlet"), space)

    def draw(count: int, first: int = 0, **how) -> list[Observation]:
        rng = np.random.default_rng(first)
        candidates = [strategy.ask(first + i, []) for i in range(count)]
        return [landscape.observe(candidate, rng, **how) for candidate in candidates]

    return draw


def truth_of(landscape: Landscape, observations: list[Observation]) -> np.ndarray:
    return np.array([landscape.truth(seen.candidate.recipe) for seen in observations])


def error(surrogate: Surrogate, landscape: Landscape, unseen: list[Observation]) -> float:
    found = surrogate.predict_recipes([seen.candidate.recipe for seen in unseen]).mean
    return float(np.sqrt(((found - truth_of(landscape, unseen)) ** 2).mean()))


def test_posterior_predicts_unseen_merges_and_says_how_well(landscape, space, draw):
    surrogate = Surrogate(space, OBJECTIVES, draw(120))
    unseen = draw(80, first=1000)
    found = surrogate.predict_recipes([seen.candidate.recipe for seen in unseen])
    truth = truth_of(landscape, unseen)
    assert np.sqrt(((found.mean - truth) ** 2).mean()) < 0.05
    assert 0.6 < np.sqrt((((found.mean - truth) / found.stderr) ** 2).mean()) < 1.7


def test_posterior_of_noisy_scores_is_nearer_to_the_truth_than_they_are(landscape, space, draw):
    observations = draw(100, items=32)
    candidates, posterior = posterior_candidates(space, OBJECTIVES, observations)
    truth = truth_of(landscape, observations)
    raw = np.array([[seen.scores[name].value for name in OBJECTIVES] for seen in observations])
    assert [c.index for c in candidates] == [seen.candidate.index for seen in observations]
    assert ((posterior.mean - truth) ** 2).mean() < 0.7 * ((raw - truth) ** 2).mean()


def test_companions_help_where_items_are_few(landscape, space, draw):
    unseen = draw(80, first=1000)
    plain = Surrogate(space, OBJECTIVES, draw(40, items=16))
    with_companions = Surrogate(space, OBJECTIVES, draw(40, items=16, companions=True))
    assert error(with_companions, landscape, unseen) < 0.8 * error(plain, landscape, unseen)


def test_screened_candidates_teach_through_their_companions(landscape, space, draw):
    unseen = draw(80, first=1000)
    scored = draw(16, companions=True)
    screened = draw(60, first=500, items=0, companions=True)
    assert all(seen.scores == {} for seen in screened)
    alone = Surrogate(space, OBJECTIVES, scored)
    taught = Surrogate(space, OBJECTIVES, [*scored, *screened])
    assert error(taught, landscape, unseen) < 0.8 * error(alone, landscape, unseen)


def test_outlook_is_the_middle_and_moves_less_the_noisier_scores_are(space, draw):
    features = None
    moves = {}
    for items in (512, 8):
        observations = draw(30, items=items)
        surrogate = Surrogate(space, OBJECTIVES, observations)
        features = surrogate.features_of_recipes([seen.candidate.recipe for seen in observations])
        outlook = surrogate.outlook(features)
        middle, above = outlook(np.array([[0.0] * 3, [1.0] * 3]))
        assert middle == pytest.approx(surrogate.observed_middle(), abs=1e-4)
        posterior = surrogate.predict(features)
        # One more score of what was scored moves the mean by a part of what is not known.
        assert (above > middle).all()
        moves[items] = float(((above - middle) / posterior.stderr).mean())
        assert moves[items] < 0.85
    assert moves[8] < moves[512]


def test_fewer_items_leave_more_doubt(space, draw):
    recipes = [seen.candidate.recipe for seen in draw(30)]
    doubts = [
        Surrogate(space, OBJECTIVES, draw(30, items=items)).predict_recipes(recipes).stderr.mean()
        for items in (512, 8)
    ]
    assert doubts[1] > 1.5 * doubts[0]


@pytest.mark.slow
def test_a_growing_search_believes_what_a_fresh_one_does(space, draw):
    observations = draw(830)
    memory = SurrogateMemory(space, OBJECTIVES)
    recipes = [seen.candidate.recipe for seen in observations[:5]]
    for count in (5, 30, 31, 100, 810, 830):
        grown = Surrogate(space, OBJECTIVES, observations[:count], memory=memory)
        fresh = Surrogate(space, OBJECTIVES, observations[:count])
        assert np.array_equal(
            grown.predict_recipes(recipes).mean, fresh.predict_recipes(recipes).mean
        )
    assert len(grown.observations) <= 630


def test_what_cannot_be_learned_from_is_left_out(space, draw):
    good, nan, failed, empty = draw(4)
    broken = {name: ObjectiveScore(float("nan"), 0.1, 4) for name in OBJECTIVES}
    other = space.recipe(good.candidate.recipe.weights, method="ties", options={"normalize": 1.0})
    ties = Candidate(9, good.candidate.genotype, other, "baseline:TIES", seen=0)
    told = [
        Observation(nan.candidate, broken),
        Observation(failed.candidate, None),
        Observation(empty.candidate, {}, broken),
        Observation(ties, good.scores),
        good,
    ]
    assert [seen.candidate.index for seen in usable_observations(space, told)] == [
        good.candidate.index
    ]
    with pytest.raises(ValueError, match="no observation of this space has scores"):
        Surrogate(space, OBJECTIVES, told[:-1])


def test_scores_that_are_no_shares_keep_their_units(landscape, space, draw):
    def in_nats(seen: Observation) -> Observation:
        scores = {
            name: ObjectiveScore(-8.0 + 5.0 * score.value, 0.1, 64)
            for name, score in seen.scores.items()
        }
        return Observation(seen.candidate, scores)

    surrogate = Surrogate(space, OBJECTIVES, [in_nats(seen) for seen in draw(100)])
    unseen = draw(50, first=1000)
    found = surrogate.predict_recipes([seen.candidate.recipe for seen in unseen]).mean
    wanted = -8.0 + 5.0 * truth_of(landscape, unseen)
    assert np.sqrt(((found - wanted) ** 2).mean()) < 0.4
    assert found.min() < -5.0
