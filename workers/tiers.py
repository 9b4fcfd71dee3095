"""Where the bytes of one candidate come from, and how long they take.

Checkpoints are read whole for every candidate. Between candidates they lie in the memory of the
GPU, in that of the host (as pages that the kernel keeps of memory-mapped files, D7), or on disk
only: the pages of a pool that is larger than the memory are gone before they are read again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import psutil

from configs.worker_settings import Residency, WorkerSettings
from workers.pool_size import local_count

Tier = Literal["gpu", "host", "disk"]
Lane = Literal["gpu", "host", "pcie", "disk"]

# GB/s where nothing was measured: reading an A100's memory, one core reading DDR5, pageable memory
# over PCIe 4 x16, an NVMe disk read in order.
ASSUMED_RATES: dict[Lane, float] = {"gpu": 1500.0, "host": 10.0, "pcie": 10.0, "disk": 2.0}

# Larger than the caches of any processor.
_PROBE_BYTES = 64 * 2**20
_PROBES = 2


@dataclass(frozen=True, slots=True)
class Machine:
    """Memory and speed of what workers run on.

    Sizes in bytes: ``host_bytes`` is what is free for models and for pages of files,
    ``gpu_bytes`` the share of GPU memory that one worker has; None where it is not known, as of
    a cluster. ``measured`` holds rates in GB/s (10^9 bytes); the others are ASSUMED_RATES.
    """

    host_bytes: int | None
    gpu_bytes: int | None
    measured: dict[Lane, float]

    def rate(self, lane: Lane) -> float:
        """Return GB/s, measured or assumed."""
        return self.measured.get(lane, ASSUMED_RATES[lane])


@dataclass(frozen=True, slots=True)
class TierCost:
    """What it takes to keep a pool in one tier.

    ``needed_bytes`` counts models too, ``available_bytes`` is None where it is not known.
    ``read_gb_per_s`` is the rate at which checkpoints reach where they are merged, and ``seconds``
    is one candidate: all checkpoints read once at it, the result written at the rate of the
    model's memory, by one worker that has the machine for itself.
    """

    tier: Tier
    needed_bytes: int
    available_bytes: int | None
    read_gb_per_s: float
    is_measured: bool
    seconds: float

    @property
    def fits(self) -> bool | None:
        """Whether there is room; None where that is not known."""
        if self.tier == "disk":
            return True
        return None if self.available_bytes is None else self.needed_bytes <= self.available_bytes


@dataclass(frozen=True, slots=True)
class TierPlan:
    """Where a pool is kept: ``tier`` is None where that depends on machines not known here.

    ``costs`` has every tier that workers of the job can use, fastest first.
    """

    policy: Residency
    tier: Tier | None
    bytes_read: int
    bytes_written: int
    costs: tuple[TierCost, ...]
    warning: str | None

    @property
    def chosen(self) -> TierCost | None:
        """The cost of the tier that is used, where it is known."""
        return next((cost for cost in self.costs if cost.tier == self.tier), None)


def plan_tiers(
    workers: WorkerSettings,
    machine: Machine,
    *,
    bytes_read: int,
    bytes_written: int,
    worker_bytes: int,
) -> TierPlan:
    """Say where a pool is kept under ``workers.residency``, and what one candidate costs.

    Args:
        workers: Policy, device and number of workers.
        machine: From :func:`machine_of`.
        bytes_read: Of all checkpoints that a candidate reads.
        bytes_written: Of a merged model.
        worker_bytes: Memory of a worker with its live model.
    """
    on_gpu = workers.device == "cuda"
    lanes: dict[Tier, Lane] = {"gpu": "gpu", "host": "pcie" if on_gpu else "host", "disk": "disk"}
    models = bytes_written if on_gpu else local_count(workers) * worker_bytes
    needed: dict[Tier, int] = {
        "gpu": bytes_read + bytes_written,
        "host": bytes_read + (0 if on_gpu else models),
        "disk": 0,
    }
    available: dict[Tier, int | None] = {
        "gpu": machine.gpu_bytes,
        "host": machine.host_bytes,
        "disk": None,
    }
    write_s = bytes_written / 1e9 / machine.rate("gpu" if on_gpu else "host")
    tiers: list[Tier] = [tier for tier in get_args(Tier) if on_gpu or tier != "gpu"]
    costs = tuple(
        TierCost(
            tier=tier,
            needed_bytes=needed[tier],
            available_bytes=available[tier],
            read_gb_per_s=machine.rate(lanes[tier]),
            is_measured=lanes[tier] in machine.measured,
            seconds=bytes_read / 1e9 / machine.rate(lanes[tier]) + write_s,
        )
        for tier in tiers
    )
    tier = _choose(workers.residency, costs)
    warning = _warning(workers.residency, costs)
    return TierPlan(workers.residency, tier, bytes_read, bytes_written, costs, warning)


def _choose(policy: Residency, costs: tuple[TierCost, ...]) -> Tier | None:
    if policy != "auto":
        return policy
    for cost in costs:
        if cost.fits is None:
            return None
        if cost.fits:
            return cost.tier
    return "disk"


def _warning(policy: Residency, costs: tuple[TierCost, ...]) -> str | None:
    if policy == "auto":
        return None
    cost = next(cost for cost in costs if cost.tier == policy)
    if cost.fits is not False:
        return None
    return (
        f"workers.residency is `{policy}`, which needs {cost.needed_bytes / 1e9:.3g} GB, but "
        f"{(cost.available_bytes or 0) / 1e9:.3g} GB are there; take `auto`"
    )


def machine_of(workers: WorkerSettings) -> Machine:
    """Look at this machine, or at nothing where workers run on a cluster.

    Measures in some tenths of a second how fast memory is copied: of the host, and of the first
    GPU where workers use one. Disks are not measured: what was read once is in memory. A process of
    its own looks at the GPU: whoever does keeps some of its memory, and the whole of a GPU that
    serves one process at a time, until it ends.
    """
    if workers.address is not None:
        return Machine(host_bytes=None, gpu_bytes=None, measured={})
    host_bytes = int(psutil.virtual_memory().available)
    if workers.device == "cpu":
        return Machine(host_bytes, None, {"host": _host_rate()})
    command = [sys.executable, "-c", f"import {__name__} as tiers; tiers.print_gpu()"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        # None is there, or nothing of it is free.
        return Machine(host_bytes, None, {})
    found = json.loads(done.stdout.splitlines()[-1])
    return Machine(host_bytes, int(found["free_bytes"] * workers.gpus), found["rates"])


def print_gpu() -> None:
    """Print what is free of the first GPU, in bytes, and its rates, as JSON."""
    import torch

    print(json.dumps({"free_bytes": torch.cuda.mem_get_info(0)[0], "rates": _gpu_rates()}))


def _host_rate() -> float:
    source = np.ones(_PROBE_BYTES, dtype=np.uint8)
    target = np.empty_like(source)
    # A merge reads and writes, as a copy does.
    return 2 * _rate(lambda: np.copyto(target, source))


def _gpu_rates() -> dict[Lane, float]:
    import torch

    def probe(target: torch.Tensor, origin: torch.Tensor) -> float:
        def copy() -> None:
            target.copy_(origin)
            torch.cuda.synchronize()

        return _rate(copy)

    host = torch.ones(_PROBE_BYTES, dtype=torch.uint8)
    device = host.to("cuda")
    return {"gpu": 2 * probe(torch.empty_like(device), device), "pcie": probe(device, host)}


def _rate(copy: Callable[[], object]) -> float:
    """Return GB/s of the fastest of some copies, after one that warms up."""
    copy()
    seconds = []
    for _ in range(_PROBES):
        start = time.perf_counter()
        copy()
        seconds.append(time.perf_counter() - start)
    return _PROBE_BYTES / 1e9 / max(min(seconds), 1e-9)
