import itertools

import pytest

from evaluators.scores import ObjectiveScore
from optimizer.baselines import SCALES, Baseline, BaselinePlan, label_of
from optimizer.candidate import Candidate, Observation

NAMES = ("instruct", "code", "math")


@pytest.fixture
def space(make_job, make_space):
    return make_space(make_job())


@pytest.fixture
def plan(space):
    return BaselinePlan(space, NAMES, dict.fromkeys(NAMES, 1 / 3))


def walk(plan, space, value_of):
    """Score baselines as they come, by a function of the weights; returns the observations."""
    proposed, observed = [], []
    while (baseline := plan.next(proposed, observed)) is not None:
        genotype = space.encode(baseline.recipe.weights)
        candidate = Candidate(
            len(proposed), genotype, baseline.recipe, baseline.origin, len(observed)
        )
        value = value_of([row[0] for row in baseline.recipe.weights])
        scores = value and {name: ObjectiveScore(value, 0.0, 64) for name in NAMES}
        proposed.append(candidate)
        observed.append(Observation(candidate, scores))
    return observed


def test_plan_holds_base_singles_soup_and_scales_once_each(plan):
    labels = [baseline.label for baseline in plan.fixed]
    assert labels[:5] == [
        "base", "checkpoint instruct", "checkpoint code", "checkpoint math", "uniform soup",
    ]  # fmt: skip
    assert labels[5:-3] == [f"task arithmetic {scale}" for scale in SCALES]
    assert labels[-3:] == ["TIES", "DARE-TIES", "delta-guided fusion"]


def test_greedy_soup_keeps_what_does_not_hurt(plan, space):
    # math is best alone; code helps it, instruct hurts.
    values = {
        (0, 0, 1): 0.6, (0, 1, 0): 0.5, (1, 0, 0): 0.4, (0, 0.5, 0.5): 0.7,
    }  # fmt: skip
    observed = walk(plan, space, lambda w: values.get(tuple(w), 0.1))
    assert label_of(observed[-1].candidate) == "soup of math + code"
    soup = plan.greedy_soup(observed)
    assert soup is not None
    assert [row[0] for row in soup.weights] == [0.0, 0.5, 0.5]


def test_greedy_soup_of_all_is_the_uniform_soup_and_not_scored_twice(plan, space):
    observed = walk(plan, space, lambda w: 0.1 + 0.1 * sum(v > 0 for v in w))
    ids = [seen.candidate.recipe.recipe_id for seen in observed]
    assert len(ids) == len(set(ids))
    soup = plan.greedy_soup(observed)
    assert soup is not None
    assert soup.weights == ((1 / 3,),) * 3


def test_greedy_soup_waits_for_the_single_checkpoints(plan, space):
    proposed = [
        Candidate(i, space.encode(b.recipe.weights), b.recipe, b.origin, 0)
        for i, b in enumerate(plan.fixed)
    ]
    assert plan.next(proposed, []) is None
    assert plan.greedy_soup([]) is None


def test_greedy_soup_leaves_out_a_checkpoint_that_failed(plan, space):
    observed = walk(plan, space, lambda w: None if w[2] == 1 and sum(w) == 1 else 0.5)
    soup = plan.greedy_soup(observed)
    assert soup is not None
    assert soup.weights[2] == (0.0,)


def test_baselines_without_a_base_are_singles_and_soup(make_job, make_space):
    job = make_job(
        models={"checkpoints": {name: f"zoo/{name}" for name in NAMES}},
        merge={"method": "linear", "parametrization": "simplex"},
    )
    plan = BaselinePlan(make_space(job), NAMES, dict.fromkeys(NAMES, 1 / 3))
    assert [baseline.label for baseline in plan.fixed] == [
        "checkpoint instruct", "checkpoint code", "checkpoint math", "uniform soup",
    ]  # fmt: skip


def origins_of_a_search(plan, space, budget):
    """Propose baselines where they are due and something else where not; returns what was."""
    proposed, observed = [], []
    while len(proposed) < budget:
        num_own = sum(not candidate.is_baseline for candidate in proposed)
        baseline = plan.next(proposed, observed, left=budget - len(proposed), num_own=num_own)
        recipe = space.recipe([[0.001 * len(proposed)]] * 3)
        origin = "strategy:x"
        if baseline is not None:
            recipe, origin = baseline.recipe, baseline.origin
        proposed.append(
            Candidate(len(proposed), space.encode([[0.1]] * 3), recipe, origin, len(observed))
        )
        scores = {name: ObjectiveScore(0.5, 0.0, 64) for name in NAMES}
        observed.append(Observation(proposed[-1], scores))
    return [candidate.origin.partition(":")[2] for candidate in proposed]


def test_what_a_search_learns_from_comes_first_and_the_rest_takes_turns(plan, space):
    found = origins_of_a_search(plan, space, 200)
    assert found[:8] == [
        "base", "checkpoint instruct", "checkpoint code", "checkpoint math", "uniform soup",
        "task arithmetic 0.4", "task arithmetic 0.7", "task arithmetic 1.0",
    ]  # fmt: skip
    late = [index for index, origin in enumerate(found) if origin != "x"][8:]
    assert late[0] == 20
    assert all(b - a == 13 for a, b in itertools.pairwise(late))
    assert set(found) >= {
        "TIES",
        "DARE-TIES",
        "delta-guided fusion",
        *(f"task arithmetic {scale}" for scale in SCALES),
    }


@pytest.mark.parametrize("budget", [17, 18, 20, 24, 40])
def test_all_baselines_fit_into_a_budget_that_has_room_for_them(plan, space, budget):
    found = origins_of_a_search(plan, space, budget)
    everything = {baseline.label for baseline in plan.fixed} | {"soup of instruct + code"}
    assert set(found) - {"x"} == everything
    assert found.count("x") == budget - len(everything)


def test_budget_that_is_too_small_is_spent_on_baselines(plan, space):
    assert "x" not in origins_of_a_search(plan, space, 10)


def test_delta_guided_fusion_takes_all_checkpoints_alike(plan):
    (found,) = [each for each in plan.fixed if each.label == "delta-guided fusion"]
    assert found.recipe.method == "delta_guided"
    assert found.recipe.weights == ((1.0,),) * 3
    assert found.recipe.options == {"power": 1.0, "scale": 1.0}
    assert not found.is_early


def test_one_checkpoint_has_no_fusion(make_job, make_space):
    job = make_job(models={"base": "zoo/base", "checkpoints": {"math": "zoo/math"}})
    plan = BaselinePlan(make_space(job), ("math",), dict.fromkeys(NAMES, 1 / 3))
    assert "delta-guided fusion" not in {each.label for each in plan.fixed}


def test_baselines_of_the_job_come_before_its_own_proposals_and_once(space):
    twice = space.recipe([[1 / 3]] * 3)
    own = space.recipe([[0.25]] * 3)
    given = [Baseline("mine", own, is_given=True), Baseline("soup", twice, is_given=True)]
    plan = BaselinePlan(space, NAMES, dict.fromkeys(NAMES, 1 / 3), given)
    found = origins_of_a_search(plan, space, 40)
    assert found[8:10] == ["mine", "x"]
    # It is the uniform soup, which every search has.
    assert "soup" not in found
