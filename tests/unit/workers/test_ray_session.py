"""Starting Ray when the machine does not let it; no Ray is started here."""

import contextlib
import subprocess
from pathlib import Path

import pytest
import ray

from configs.errors import ClusterError, WorkerError
from configs.worker_settings import WorkerSettings
from workers import ray_session as ray_session_module
from workers.ray_session import ray_session


@pytest.fixture
def failing_ray(monkeypatch):
    """A ray.init that leaves a process behind and fails as often as told."""
    left, options = [], []

    def prepare(times):
        def init(**given):
            options.append(given)
            if len(options) <= times:
                with Path(given["_temp_dir"]).open("w") as log:
                    left.append(subprocess.Popen(["sleep", "600"], stdout=log))
                raise Exception("The current node timed out during startup")  # noqa: TRY002 - as Ray

        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        monkeypatch.setattr(ray, "shutdown", lambda: None)
        monkeypatch.setattr(ray, "init", init)
        return left, options

    yield prepare
    for process in left:
        process.kill()
        process.wait()


def test_ray_session_starts_again_when_ray_was_too_slow(failing_ray):
    left, options = failing_ray(times=1)
    with ray_session(WorkerSettings(count=3, cpus=2.0)):
        assert len(options) == 2
        assert left[0].wait(timeout=5) != 0, "what the first start left behind is still there"
    assert options[1]["address"] == "local"
    assert options[1]["num_cpus"] >= 6
    assert options[0]["_temp_dir"] != options[1]["_temp_dir"]


def test_ray_session_says_why_when_ray_does_not_start(failing_ray):
    left, options = failing_ray(times=9)
    with (
        pytest.raises(WorkerError, match="cannot start Ray on this machine: The current node"),
        ray_session(WorkerSettings()),
    ):
        pass
    assert len(options) == 2
    assert all(process.wait(timeout=5) != 0 for process in left)


def test_ray_session_says_which_cluster_does_not_answer(monkeypatch):
    # Another test of this process may have a Ray running, which a session would use.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(ClusterError, match=r"nobody answers at `127.0.0.1:1`: .*refused"),
        ray_session(WorkerSettings(address="127.0.0.1:1")),
    ):
        pass


@pytest.mark.parametrize(("times", "is_joined"), [(1, True), (9, False)])
def test_ray_session_knocks_again_where_the_server_of_a_client_died(monkeypatch, times, is_joined):
    tried = []

    def init(**given):
        tried.append(given)
        if len(tried) <= times:
            raise ConnectionAbortedError("Starting Ray client server failed.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray_session_module, "knock", lambda address: None)
    address = "ray://somewhere:10001"
    refusal = pytest.raises(WorkerError, match=r"cannot join Ray at .*Starting Ray client")
    with (
        contextlib.nullcontext() if is_joined else refusal,
        ray_session(WorkerSettings(address=address)),
    ):
        pass
    assert [given["address"] for given in tried] == [address, address]
