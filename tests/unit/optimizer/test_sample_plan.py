"""What samples a job asks for: which items, of whom, and where none are taken."""

from collections import Counter

import pytest
from pydantic import ValidationError

from optimizer.dispatch_plan import describe_plan, dispatch_plan
from optimizer.stages import sample_of
from tests.fault import scripted_search

ITEMS = scripted_search.make_manifest().items("search")


def plan_of(tmp_path, **changes):
    job = scripted_search.make_job(tmp_path / "a.sqlite", **changes)
    return dispatch_plan(job, ITEMS, can_choose=True, can_sample=True)


@pytest.mark.parametrize("count", [8, 6, 5])
def test_turns_use_all_items_alike(count):
    first = {task: ids[:count] for task, ids in ITEMS.items()}
    size = 24 // count
    uses, samples = Counter(), []
    for turn in range(6 * size):
        for task, ids in sample_of(ITEMS, first, 3, turn).items():
            assert len(set(ids)) == count
            assert list(ids) == [item for item in ITEMS[task] if item in ids]
            uses.update(ids)
            samples.append(ids)
    assert set(uses.values()) == {6} if 24 % count == 0 else max(uses.values()) <= 6
    assert len(set(samples)) == len(samples)
    assert sample_of(ITEMS, first, 3, 0) != sample_of(ITEMS, first, 4, 0)


def test_undivided_task_is_in_every_sample():
    first = {task: ids if task == "zoo_code" else ids[:8] for task, ids in ITEMS.items()}
    for turn in range(4):
        assert sample_of(ITEMS, first, 3, turn)["zoo_code"] == ITEMS["zoo_code"]


def test_plan_races_where_a_sample_would_be_most_of_the_items(tmp_path):
    few = {task: ids[:11] for task, ids in ITEMS.items()}
    job = scripted_search.make_job(tmp_path / "a.sqlite", search={})
    plan = dispatch_plan(job, few, can_choose=True, can_sample=True)
    assert not plan.samples
    assert plan.per_score == 1
    assert plan.races


def test_samples_have_companions_without_a_gate(tmp_path):
    off = {"screening": {"enabled": False}, "gates": {"likelihood": None}}
    plan = plan_of(tmp_path, search=off, objectives=scripted_search.COMPANIONS)
    assert plan.samples
    assert [len(ids) for ids in plan.preview.values()] == [8, 8, 8]


def test_samples_without_a_race_are_refused(tmp_path):
    racing = {"enabled": False, "sampling": True}
    with pytest.raises(ValidationError, match=r"take out `enabled: false`"):
        plan_of(tmp_path, search={"racing": racing})


def test_plan_samples_where_the_strategy_learns_from_it(tmp_path):
    plan = plan_of(tmp_path, search={})
    assert plan.samples
    assert not plan.races
    assert plan.per_score == 3
    assert describe_plan(plan, by_gate=False) == [
        "sampling: a candidate is scored on 24 of 72 items, others in turn"
    ]


@pytest.mark.parametrize(
    ("changes", "sample"),
    [
        ({}, 16),
        ({"sample_items": 40}, 40),
        ({"sample_items": 400}, 60),
        ({"sample_items": None}, 60),
        ({"sample_items": 3}, 8),
        ({"first_share": 0.05}, 12),
    ],
)
def test_sample_of_a_large_split_is_a_number_of_items_not_a_share(tmp_path, changes, sample):
    items = {task: tuple(f"{task}-{i}" for i in range(240)) for task in ITEMS}
    job = scripted_search.make_job(tmp_path / "a.sqlite", search={"racing": changes})
    plan = dispatch_plan(job, items, can_choose=True, can_sample=True)
    assert [[len(ids) for ids in stage.values()] for stage in plan.stages] == [
        [sample] * 3,
        [240] * 3,
    ]
    assert plan.per_score == 240 // sample
    races = dispatch_plan(job, items, can_choose=True, can_sample=False)
    assert len(races.stages[0]["zoo_math"]) == 240 * job.search.racing.first_share


def test_sample_has_a_batch_on_an_accelerator(tmp_path):
    items = {task: tuple(f"{task}-{i}" for i in range(240)) for task in ITEMS}
    job = scripted_search.make_job(
        tmp_path / "a.sqlite",
        search={},
        workers={"device": "cuda", "gpus": 1},
        evaluation={"splits": {}, "batch_size": 24},
    )
    plan = dispatch_plan(job, items, can_choose=True, can_sample=True)
    assert [len(ids) for ids in plan.stages[0].values()] == [24, 24, 24]


def test_sample_has_all_items_of_what_is_not_divided(tmp_path):
    scorer = {"scorer": "metrics.py:f", "items": "x.jsonl", "name": "own"}
    objectives = {"own": [scorer], "math": [{"task": "zoo_math"}]}
    job = scripted_search.make_job(tmp_path / "a.sqlite", search={}, objectives=objectives)
    items = {task: tuple(f"{task}-{i}" for i in range(240)) for task in ("own", "zoo_math")}
    plan = dispatch_plan(job, items, can_choose=True, can_sample=True)
    assert [len(ids) for ids in plan.stages[0].values()] == [240, 16]
    assert plan.samples


def test_job_with_companions_samples_and_screens_nobody(tmp_path):
    for screening in ({}, {"enabled": False}):
        search = {"screening": screening}
        plan = plan_of(tmp_path, search=search, objectives=scripted_search.COMPANIONS)
        assert not plan.screens
        assert plan.group_size == 1
        assert (plan.samples, plan.samples_baselines, plan.per_score) == (True, True, 3)
        assert [len(ids) for ids in plan.preview.values()] == [8, 8, 8]
        lines = describe_plan(plan, by_gate=True)
        assert lines[0] == "companions: of every candidate 24 references are read"
        assert lines[1] == "gate: those references also tell broken models"
    # What a search from before has: the references of its gate.
    search = {"screening": {"enabled": False, "sampling": False}}
    plan = plan_of(tmp_path, search=search, objectives=scripted_search.COMPANIONS)
    assert (plan.samples, plan.samples_baselines) == (True, True)
    assert [len(ids) for ids in plan.preview.values()] == [11, 11, 11]


@pytest.mark.parametrize(
    ("search", "samples", "samples_baselines"),
    [
        ({"screening": {"enabled": True}}, True, True),
        ({"racing": {"sampling": False}}, False, False),
        ({"racing": {"enabled": False}}, False, False),
        # What a search from before has, which leaves it open, or was to sample although it screens.
        ({"screening": {"sampling": False}}, False, False),
        ({"racing": {"sampling": True}, "screening": {"sampling": False}}, True, False),
    ],
)
def test_job_that_screens_samples_who_is_chosen(tmp_path, search, samples, samples_baselines):
    plan = plan_of(tmp_path, search=search, objectives=scripted_search.COMPANIONS)
    assert plan.screens
    assert plan.group_size == 6
    assert (plan.samples, plan.samples_baselines) == (samples, samples_baselines)
    assert plan.per_score == (3 if samples else 1)


@pytest.mark.parametrize("racing", [{"sampling": False}, {"enabled": False}])
def test_nothing_is_sampled_where_a_job_says_so(tmp_path, racing):
    plan = plan_of(tmp_path, search={"racing": racing})
    assert not plan.samples
    assert plan.per_score == 1


def test_nothing_is_sampled_where_nothing_can_be_divided(tmp_path):
    plan = plan_of(tmp_path, search={}, workers={"device": "cuda", "gpus": 1})
    assert (plan.samples, plan.races) == (False, False)
