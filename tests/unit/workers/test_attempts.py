"""Which evaluations are tried again, and when one counts as hanging."""

from dataclasses import replace

import pytest

from tests.contract.light_runners import request
from workers.attempts import Assignment, Patience, given_up, is_deadly
from workers.outcome import EvaluationKey, Failed, Stage


def failure(stage: Stage, error_class: str) -> Failed:
    return Failed(
        key=EvaluationKey(0, "search"),
        attempt=1,
        worker="w",
        stage=stage,
        error_class=error_class,
        message="",
    )


def test_workers_that_went_with_their_nodes_are_no_kills():
    assignment = Assignment(request(0), died_on=["a", "b", "a"])
    assert assignment.num_kills(lambda node: False) == 3
    assert assignment.num_kills(lambda node: node == "a") == 1


@pytest.mark.parametrize("error_class", ["WorkerLostError", "WorkerTimeoutError"])
def test_recorded_failure_tells_whether_the_recipe_took_workers(error_class):
    assert is_deadly(error_class, given_up(3, 2, "died: of hunger"))
    assert not is_deadly(error_class, given_up(12, 0, "died: of hunger"))
    assert not is_deadly(error_class, "the evaluation outlasted workers.timeout_s = 4 s")
    assert not is_deadly("EvaluationError", given_up(3, 2, "died"))
    assert not is_deadly(None, None)


def test_failures_that_older_versions_recorded_are_understood():
    old = "given up after attempt 2, which took 2 workers (workers.max_attempts): its worker's"
    assert is_deadly("WorkerLostError", old)
    lost = "given up after attempt 12, which took no worker, but lost nodes: its worker's"
    assert not is_deadly("WorkerLostError", lost)


@pytest.mark.parametrize(
    ("stage", "error_class", "again"),
    [
        (Stage.MATERIALIZE, "OSError", True),
        (Stage.MATERIALIZE, "TimeoutError", True),
        (Stage.EVALUATE, "AcceleratorError", True),
        (Stage.EVALUATE, "OSError", False),
        (Stage.EVALUATE, "EvaluationError", False),
        (Stage.MATERIALIZE, "CheckpointError", False),
        (Stage.EVALUATE, "OutOfMemoryError", False),
    ],
)
def test_errors_of_the_machine_are_tried_once_more(stage, error_class, again):
    assignment = Assignment(request(0))
    assert assignment.may_pass(failure(stage, error_class)) is again
    assignment.num_passing += 1
    assert not assignment.may_pass(failure(stage, error_class))


def test_limit_is_a_multiple_of_the_median_of_enough_evaluations():
    patience = Patience(4.0, floor_s=1.0)
    asked = request(0)
    for seconds in (1.0, 2.0, 90.0, 3.0):
        patience.note(asked, seconds)
    assert patience.limit_s(asked, is_first=False) is None
    patience.note(asked, 2.5)
    assert patience.limit_s(asked, is_first=False) == pytest.approx(10.0)
    assert patience.limit_s(asked, is_first=True) == pytest.approx(30.0)


def test_limit_knows_blocks_of_other_sizes_apart():
    patience = Patience(4.0, floor_s=1.0, split_sizes={"search": 10})
    for _ in range(5):
        patience.note(request(0), 5.0)
        patience.note(request(0, items={"task": ("a",)}), 0.1)
    assert patience.limit_s(request(1), is_first=False) == pytest.approx(20.0)
    block = request(1, items={"task": ("b",)})
    assert patience.limit_s(block, is_first=False) == pytest.approx(1.0), "the floor"


def test_limit_of_what_is_not_known_yet_comes_from_others_of_its_signal():
    patience = Patience(4.0, floor_s=0.01)
    for _ in range(5):
        patience.note(request(0, items={"task": ("a",)}), 0.1)
    two = request(1, items={"task": ("a", "b")})
    assert patience.limit_s(two, is_first=False) == pytest.approx(0.8), "twice the items"
    for _ in range(5):
        patience.note(two, 0.5)
    elsewhere = EvaluationKey(1, "select", two.key.block)
    one = request(1, items={"task": ("a",)})
    select = replace(one, key=replace(elsewhere, block=one.key.block))
    # A merge takes its time, however few items follow.
    assert patience.limit_s(select, is_first=False) == pytest.approx(2.0)
    generated = replace(select, key=replace(select.key, signal="companions"))
    assert patience.limit_s(generated, is_first=False) is None


def test_whole_split_has_its_own_number_of_items():
    patience = Patience(4.0, floor_s=0.01, split_sizes={"search": 2, "report": 20})
    for _ in range(5):
        patience.note(request(0), 0.1)
    report = replace(request(1), key=EvaluationKey(1, "report"))
    assert patience.limit_s(report, is_first=False) == pytest.approx(4.0)


def test_no_factor_is_no_limit():
    patience = Patience(None, floor_s=1.0)
    for _ in range(9):
        patience.note(request(0), 1.0)
    assert patience.limit_s(request(0), is_first=False) is None


def test_median_follows_what_came_last():
    patience = Patience(2.0, floor_s=0.1)
    for seconds in [1.0] * 64 + [3.0] * 40:
        patience.note(request(0), seconds)
    assert patience.limit_s(request(0), is_first=False) == pytest.approx(6.0)
