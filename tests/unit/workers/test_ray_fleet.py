"""What the pool makes of the news of workers, in whatever order they come."""

import itertools

import pytest

from tests.contract.light_runners import LightRunner, light_spec
from workers.ray_fleet import Fleet
from workers.ray_slot import Arrived, Slot
from workers.worker_process import Started

NEWS = (Arrived(host="host", pid=7, node="n1"), Started(name="worker-1@host:7", pid=7))


@pytest.mark.parametrize("order", list(itertools.permutations(NEWS)))
def test_worker_that_has_started_is_idle_whatever_is_told_last(order):
    fleet, slot = Fleet(light_spec(), LightRunner), Slot("worker-1")
    for news in order:
        fleet.welcome(slot, news)
    assert slot.state == "idle"
    assert slot.node == "n1"
