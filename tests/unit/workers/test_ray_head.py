"""The loss of a cluster's head, of which Ray itself tells nobody in time; no Ray is started."""

import threading
import time

import pytest

from configs.errors import ClusterError
from tests.unit.workers.cluster_ports import serving
from workers import ray_head
from workers.ray_head import watching_head


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(ray_head, "_LOOK_S", 0.2)
    monkeypatch.setenv("RAY_gcs_rpc_server_reconnect_timeout_s", "2")


def wait_for_loss(check):
    end = time.monotonic() + 30
    while time.monotonic() < end:
        check()
        time.sleep(0.05)


def test_lost_head_is_an_error_between_two_steps():
    with serving("") as address, watching_head(address) as check:
        time.sleep(2.5)  # longer than a lost head is waited for
        check()
    with serving("") as address:
        pass
    refusal = rf"head of the cluster at `{address}` is lost: nobody has answered"
    with pytest.raises(ClusterError, match=refusal), watching_head(address) as check:
        wait_for_loss(check)
    assert "head watch" not in {thread.name for thread in threading.enumerate()}


def test_search_that_hangs_in_ray_is_ended_from_outside():
    told = threading.Event()
    with serving("") as address:
        pass
    with watching_head(address, lambda error: told.set()):
        assert told.wait(30)
    told.clear()
    with pytest.raises(ClusterError), watching_head(address, lambda error: told.set()) as check:
        wait_for_loss(check)
    assert not told.wait(1), "it had ended in time"


def test_lost_connection_of_a_client_is_said_in_our_words():
    with (
        pytest.raises(ClusterError, match=r"the cluster at `ray://head:10001` is lost \(Client is"),
        watching_head("ray://head:10001"),
    ):
        raise ConnectionError("Client is shutting down.")


def test_ray_of_our_own_is_not_watched():
    with pytest.raises(ConnectionError), watching_head(None):
        raise ConnectionError("of something else")
