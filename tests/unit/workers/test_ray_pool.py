"""RayPool with a light runner on a real Ray: the contract, resources, settings and errors."""

import os

import pytest

from configs.errors import WorkerError
from configs.worker_settings import WorkerSettings
from tests.contract.light_runners import (
    DyingRunner,
    LightRunner,
    RefusingRunner,
    light_spec,
    request,
)
from tests.contract.pool_contract import PoolContract, drain, warm_up
from workers.ray_pool import RayPool
from workers.ray_session import ray_session

pytestmark = pytest.mark.slow


@pytest.mark.usefixtures("local_ray")
class TestRayPool(PoolContract):
    @pytest.fixture
    def pool(self):
        with RayPool(light_spec(), LightRunner) as pool:
            yield pool


@pytest.fixture
def make_pool(local_ray):
    pools = []

    def make(runner=LightRunner, **workers):
        pools.append(RayPool(light_spec(**workers), runner))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def test_ray_pool_names_the_process_of_an_outcome(make_pool):
    pool = make_pool(count=1)
    pool.submit(request(0))
    (outcome,) = drain(pool)
    assert outcome.worker.endswith(f":{pool.worker_pids()['worker-1']}")
    assert outcome.worker.startswith("worker-1@")


def test_ray_pool_runs_workers_in_processes_of_their_own(make_pool):
    pool = make_pool(count=2)
    warm_up(pool)
    pids = set(pool.worker_pids().values())
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_ray_pool_gives_workers_the_threads_of_the_job(make_pool):
    pool = make_pool(count=1, cpus=1.0, threads=3)
    pool.submit(request(0, "environment OMP_NUM_THREADS"))
    assert drain(pool)[0].texts == {"task": ("3",)}


def test_next_block_goes_to_the_worker_that_holds_the_recipe(make_pool):
    pool = make_pool(count=2)
    warm_up(pool)
    methods = ("environment A", "environment B")
    for candidate, method in enumerate(methods):
        pool.submit(request(candidate, method, {"task": ("a",)}))
    home = {outcome.key.candidate: outcome.worker for outcome in drain(pool)}
    assert len(set(home.values())) == 2
    for candidate in (1, 0):
        pool.submit(request(candidate, methods[candidate], {"task": ("b",)}))
        (outcome,) = drain(pool)
        assert outcome.worker == home[candidate]


def test_ray_pool_shows_workers_as_starting_at_first(make_pool):
    assert make_pool(count=2).worker_states() == {"worker-1": "starting", "worker-2": "starting"}


def test_ray_pool_says_why_a_worker_cannot_be_built(make_pool):
    pool = make_pool(RefusingRunner, count=2)
    pool.submit(request(0))
    message = "cannot be made from this job: RuntimeError: the model is not"
    with pytest.raises(WorkerError, match=message):
        pool.next_outcome(timeout_s=180)


def test_ray_pool_gives_up_when_every_worker_dies_at_the_start(make_pool):
    pool = make_pool(DyingRunner, count=1)
    pool.submit(request(0))
    with pytest.raises(WorkerError, match="no worker is left: each failed 3 times to start"):
        pool.next_outcome(timeout_s=60)
    assert pool.worker_states() == {"worker-1": "lost"}
    assert pool.num_free == 0


def test_ray_pool_refuses_resources_that_are_not_there(make_pool):
    with pytest.raises(WorkerError, match=r"2 x \(0.5 CPUs, 64 GPUs\) do not fit here, found"):
        make_pool(device="cuda", gpus=64)


def test_ray_session_uses_the_ray_that_is_there_and_leaves_it_running(local_ray):
    import ray

    with ray_session(WorkerSettings()):
        pass
    assert ray.is_initialized()
