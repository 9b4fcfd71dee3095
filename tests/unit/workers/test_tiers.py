"""Where a candidate's bytes come from, by what has room for them."""

import pytest

from configs.worker_settings import WorkerSettings
from workers.tiers import ASSUMED_RATES, Machine, TierPlan, machine_of, plan_tiers

TB, GB = 10**12, 10**9
GPU = {"device": "cuda", "gpus": 1}


def plan(
    machine: Machine, *, read: int = 100 * GB, written: int = 20 * GB, **settings: object
) -> TierPlan:
    workers = WorkerSettings.model_validate(settings)
    return plan_tiers(
        workers, machine, bytes_read=read, bytes_written=written, worker_bytes=written + GB
    )


def machine(host: int | None, gpu: int | None = None, /, **measured: float) -> Machine:
    return Machine(host, gpu, dict(measured))


@pytest.mark.parametrize(
    ("host", "gpu", "settings", "tier"),
    [
        (200 * GB, None, {}, "host"),
        (121 * GB, None, {}, "host"),  # 100 of checkpoints, 21 of a worker
        (120 * GB, None, {}, "disk"),
        (121 * GB, None, {"count": 2}, "disk"),
        (142 * GB, None, {"count": 2}, "host"),
        (200 * GB, 120 * GB, GPU, "gpu"),
        (200 * GB, 119 * GB, GPU, "host"),
        (100 * GB, 80 * GB, GPU, "host"),
        (99 * GB, 80 * GB, GPU, "disk"),
        (200 * GB, 120 * GB, {**GPU, "residency": "host"}, "host"),
        (200 * GB, 120 * GB, {**GPU, "residency": "disk"}, "disk"),
        (None, None, {"address": "auto"}, None),
        (None, None, {**GPU, "address": "auto"}, None),
        (None, None, {"address": "auto", "residency": "host"}, "host"),
    ],
)
def test_pool_is_kept_in_the_fastest_memory_with_room(host, gpu, settings, tier) -> None:
    assert plan(machine(host, gpu), **settings).tier == tier


def test_time_is_that_of_reading_all_and_writing_one() -> None:
    found = plan(machine(200 * GB, None, host=20.0))
    assert found.chosen is not None
    assert found.chosen.is_measured
    assert found.chosen.seconds == pytest.approx(100 / 20 + 20 / 20)
    disk = found.costs[-1]
    assert (disk.tier, disk.is_measured, disk.fits) == ("disk", False, True)
    assert disk.seconds == pytest.approx(100 / ASSUMED_RATES["disk"] + 20 / 20)


def test_checkpoints_in_host_memory_reach_a_gpu_over_the_bus() -> None:
    found = plan(machine(200 * GB, 80 * GB, gpu=2000.0, pcie=25.0), **GPU)
    assert [cost.tier for cost in found.costs] == ["gpu", "host", "disk"]
    seconds = {cost.tier: cost.seconds for cost in found.costs}
    assert seconds["gpu"] == pytest.approx(120 / 2000)
    assert seconds["host"] == pytest.approx(100 / 25 + 20 / 2000)


def test_sixteen_checkpoints_of_a_hundred_billion_come_from_disk() -> None:
    found = plan(machine(TB), read=17 * 200 * GB, written=200 * GB)
    assert found.tier == "disk"
    assert found.bytes_read == 3400 * GB
    assert found.chosen is not None
    assert found.chosen.seconds == pytest.approx(3400 / 2 + 200 / 10)
    # On a machine with memory for all of it, it is the memory.
    assert plan(machine(4 * TB), read=17 * 200 * GB, written=200 * GB).tier == "host"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({**GPU, "residency": "gpu"}, "needs 120 GB, but 80 GB are there; take `auto`"),
        ({"residency": "host", "count": 9}, "`host`, which needs 289 GB, but 200 GB are there"),
    ],
)
def test_residency_without_room_is_a_warning(settings, message) -> None:
    assert message in (plan(machine(200 * GB, 80 * GB), **settings).warning or "")


@pytest.mark.parametrize("settings", [{}, {"residency": "disk"}, {"residency": "host"}])
def test_residency_with_room_is_none(settings) -> None:
    assert plan(machine(200 * GB), **settings).warning is None


def test_this_machine_is_measured_and_a_cluster_is_not() -> None:
    here = machine_of(WorkerSettings())
    assert here.host_bytes is not None
    assert here.host_bytes > 10**8
    assert 0.1 < here.measured["host"] < 10_000
    assert machine_of(WorkerSettings(address="auto")) == Machine(None, None, {})


def test_gpu_that_cannot_be_looked_at_is_none(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    here = machine_of(WorkerSettings.model_validate({"device": "cuda", "gpus": 1}))
    assert (here.gpu_bytes, here.measured) == (None, {})
    assert here.host_bytes > 0


@pytest.mark.gpu
def test_memory_of_the_gpu_is_measured() -> None:
    here = machine_of(WorkerSettings.model_validate({"device": "cuda", "gpus": 0.5}))
    assert here.gpu_bytes is not None
    assert here.measured["gpu"] > here.measured["pcie"] > 0.1
