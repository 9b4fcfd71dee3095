"""Evaluations that take workers, counted over the lives of drivers."""

import pytest

from configs.errors import WorkerLostError
from tests.contract.light_runners import request
from workers import toll
from workers.toll import Loss, Past, Toll


@pytest.fixture
def kept():
    return []


@pytest.fixture
def gone():
    """Nodes that are lost."""
    return set()


@pytest.fixture
def begin(kept, gone, monkeypatch):
    """Begin another life of a driver, which knows what was kept of the others."""
    monkeypatch.setattr(toll, "_LOOK_EVERY_S", 0.0)

    def life(max_attempts=2):
        return Toll(Past(losses=tuple(kept), keep=kept.append), gone.__contains__, max_attempts)

    return life


def lose(now, assignment, node="a", *, why="it died", keep=True):
    """Lose a worker; returns the message where that was enough."""
    assignment.attempt += 1
    error = WorkerLostError(why)
    now.charge(assignment, node, error, keep=keep)
    return now.verdict(assignment, error)


def test_second_loss_fails_an_evaluation_be_it_in_another_life(begin, kept):
    first = begin()
    assert lose(first, first.assignment(request(0, "0"))) is None
    assert kept == [Loss(request(0).key, 1, "a", "WorkerLostError", "it died")]

    second = begin()
    assignment, other = (second.assignment(request(index, str(index))) for index in (0, 1))
    assert second.refusal(assignment) is None
    message = lose(second, assignment, "b")
    assert message == (
        "given up after attempt 2, which took 2 workers (workers.max_attempts): it died"
    )
    assert second.refusal(assignment) == message
    assert lose(second, other) is None, "another evaluation has its own count"


def test_evaluation_that_took_enough_is_not_begun_by_the_next_driver(begin):
    """The last one was killed between the second loss and the outcome."""
    for _ in range(2):
        life = begin()
        lose(life, life.assignment(request(0)))
    third = begin()
    assert "took 2 workers (workers.max_attempts): it died" in third.refusal(
        third.assignment(request(0))
    )
    assert third.refusal(third.assignment(request(1, "another recipe"))) is None
    # Whoever raises the limit has it tried again.
    fourth = begin(max_attempts=3)
    assert fourth.refusal(fourth.assignment(request(0))) is None


def test_evaluation_that_was_under_way_when_drivers_were_killed_is_charged_nothing(begin, kept):
    for _ in range(5):
        life = begin()
        assert life.refusal(life.assignment(request(0))) is None
    assert kept == []
    assert lose(life, life.assignment(request(0))) is None


def test_loss_with_its_node_is_forgiven_for_good(begin, kept, gone):
    first = begin()
    assert lose(first, first.assignment(request(0)), "spot") is None
    first.forgive()
    assert len(kept) == 1, "the node is still there"
    gone.add("spot")
    first.forgive()
    first.forgive()
    assert [loss.is_forgiven for loss in kept] == [False, True]

    second = begin()
    assert lose(second, second.assignment(request(0)), "b") is None


def test_loss_that_is_forgiven_is_the_one_that_went_with_its_node(begin, gone):
    first = begin()
    assignment = first.assignment(request(0))
    assert lose(first, assignment, "spot", why="it went away") is None
    assert lose(first, assignment, "a", why="no memory") is not None
    gone.add("spot")
    first.forgive()

    second = begin(max_attempts=1)
    refusal = second.refusal(second.assignment(request(0)))
    assert refusal.endswith("took 1 workers (workers.max_attempts): no memory")


def test_loss_while_the_driver_is_being_ended_is_not_kept(begin, kept):
    life = begin()
    assert lose(life, life.assignment(request(0)), keep=False) is None
    assert kept == []
