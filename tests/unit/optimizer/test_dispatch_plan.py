"""What a job's settings come to, before anything runs."""

import pytest

from optimizer.dispatch_plan import describe_plan, dispatch_plan
from tests.fault import scripted_search

ITEMS = scripted_search.make_manifest().items("search")


def plan_of(tmp_path, *, can_choose=True, **changes):
    job = scripted_search.make_job(tmp_path / "a.sqlite", **changes)
    return dispatch_plan(job, ITEMS, can_choose=can_choose)


def sizes(plan):
    return [[len(ids) for ids in stage.values()] for stage in plan.stages]


def test_job_without_companions_races_and_does_not_screen(tmp_path):
    plan = plan_of(tmp_path, search={})
    assert plan.races
    assert not plan.screens
    assert plan.preview == {}
    assert sizes(plan) == [[8, 8, 8], [12, 12, 12], [24, 24, 24]]
    assert describe_plan(plan, by_gate=True) == [
        "racing: who has lost after 24 or 36 of 72 items is stopped"
    ]


def test_job_with_companions_screens_if_the_strategy_can_choose(tmp_path):
    plan = plan_of(tmp_path, search={}, objectives=scripted_search.COMPANIONS)
    assert plan.races
    assert plan.screens
    assert plan.group_size == 6
    assert [len(ids) for ids in plan.preview.values()] == [8, 8, 8]
    first, second, _ = describe_plan(plan, by_gate=True)
    assert first == ("screening: of 6 candidates, looked at by 24 references each, one is scored")
    assert second == "gate: those references also tell broken models"


def test_strategy_that_cannot_choose_only_looks_for_broken_models(tmp_path):
    plan = plan_of(tmp_path, can_choose=False, search={}, objectives=scripted_search.COMPANIONS)
    assert not plan.screens
    assert describe_plan(plan, by_gate=True)[0] == (
        "gate: 33 references are looked at before a candidate is scored"
    )


def test_what_a_job_turns_off_is_off(tmp_path):
    off = {"enabled": False}
    search = {"racing": off, "screening": off, "gates": {"likelihood": None}}
    plan = plan_of(tmp_path, search=search, objectives=scripted_search.COMPANIONS)
    assert (plan.races, plan.screens, plan.preview) == (False, False, {})
    assert describe_plan(plan, by_gate=False) == ["every candidate is scored on all items"]


@pytest.mark.parametrize(
    ("batch_size", "first"), [(2, [8, 8, 8]), (16, [16, 16, 16]), (24, None), ("auto", None)]
)
def test_block_on_an_accelerator_is_a_batch_at_least(tmp_path, batch_size, first):
    plan = plan_of(
        tmp_path,
        search={},
        workers={"device": "cuda", "gpus": 1},
        evaluation={"batch_size": batch_size},
    )
    assert sizes(plan)[0] == (first or [24, 24, 24])
    assert plan.races == (first is not None)
