"""How many workers fit on nodes."""

import os

import pytest

from configs.worker_settings import WorkerSettings
from workers.pool_size import local_count, workers_that_fit

GPU_NODE = {"CPU": 16.0, "GPU": 4.0}
CPU_NODE = {"CPU": 8.0}


@pytest.mark.parametrize(
    ("settings", "nodes", "count"),
    [
        ({"cpus": 2}, [CPU_NODE, CPU_NODE], 8),
        ({"cpus": 3}, [CPU_NODE], 2),
        ({"cpus": 0.1}, [{"CPU": 0.3}], 3),
        ({"device": "cuda", "gpus": 1, "cpus": 1}, [GPU_NODE, CPU_NODE], 4),
        ({"device": "cuda", "gpus": 2, "cpus": 1}, [GPU_NODE, {"CPU": 4.0, "GPU": 3.0}], 3),
        ({"device": "cuda", "gpus": 1 / 3, "cpus": 1}, [GPU_NODE], 12),
        ({"device": "cuda", "gpus": 0.5, "cpus": 4}, [GPU_NODE], 4),
        ({"device": "cuda", "gpus": 1}, [CPU_NODE], 0),
        ({"cpus": 0}, [CPU_NODE, CPU_NODE], 2),
        ({}, [], 0),
    ],
)
def test_workers_fit_by_what_is_scarcest_on_each_node(settings, nodes, count):
    assert workers_that_fit(WorkerSettings.model_validate(settings), nodes) == count


def test_local_count_is_that_of_the_job_or_what_the_cores_allow():
    assert local_count(WorkerSettings(count=7)) == 7
    cores = len(os.sched_getaffinity(0))
    assert local_count(WorkerSettings(count="auto", cpus=0.5)) == 2 * cores
    assert local_count(WorkerSettings(count="auto", cpus=10_000)) == 1


def test_a_gpu_job_gets_one_worker_per_gpu_unless_it_says_otherwise():
    default = WorkerSettings.model_validate({"device": "cuda"})
    assert (default.count, default.gpus) == ("auto", 1.0)
    named = WorkerSettings.model_validate({"device": "cuda", "count": 3, "gpus": 0.25})
    assert (named.count, named.gpus) == (3, 0.25)
    assert (WorkerSettings().count, WorkerSettings().gpus) == (1, 0.0)
