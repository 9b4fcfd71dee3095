"""Whether this machine can run a job: its sandbox, devices, memory, disk and cores.

Of a cluster that a job joins only the disk is looked at, which is still the one here.
"""

import os
import shutil
from pathlib import Path

from configs.errors import ConfigError
from configs.place import read_place
from configs.schema import JobConfig
from optimizer.preflight.estimate import Estimate, format_bytes
from workers.hardware import count_cores, find_gpus, find_memory
from workers.pool_size import local_count


def check_sandbox(job: JobConfig) -> None:
    """Run a program in the sandbox, where the workers of this machine will need it."""
    from evaluators.sandbox import Sandbox

    if job.evaluation.allow_code_execution and job.workers.address is None:
        with Sandbox(job.evaluation.sandbox) as sandbox:
            sandbox.run(["pass"])


def sandbox_warnings(job: JobConfig) -> list[str]:
    """Say what a weak sandbox does not hide, where generated code runs in one."""
    evaluation = job.evaluation
    if not evaluation.allow_code_execution or evaluation.sandbox == "strict":
        return []
    return [
        "evaluation.sandbox is `weak`: generated code can see which files exist on this machine "
        "and fill its disk for a while; install bubblewrap and use `strict` where you can"
    ]


def check_device(job: JobConfig) -> None:
    """Refuse a GPU job on a machine without; a cluster is asked when it is joined."""
    workers = job.workers
    if workers.device != "cuda" or workers.address is not None:
        return
    gpus = find_gpus()
    if not gpus:
        import torch

        raise ConfigError.single(
            "workers.device",
            "is `cuda`, but torch finds no CUDA device here; use `cpu`, install a build of torch "
            f"with CUDA (this one is {torch.__version__}), or name a cluster in workers.address",
        )
    count = local_count(workers)
    if count * workers.gpus > len(gpus):
        raise ConfigError.single(
            "workers.gpus",
            f"{count} workers x {workers.gpus:g} GPUs do not fit on {len(gpus)}; lower "
            "workers.count or workers.gpus",
        )


def check_memory(job: JobConfig, cost: Estimate) -> list[str]:
    """Refuse workers that cannot fit, warn of those that may not.

    Raises:
        ConfigError: Their models alone are larger than the memory.
    """
    workers = job.workers
    if workers.address is not None:
        return []
    count = local_count(workers)
    if workers.device == "cuda":
        gpus = find_gpus()
        if not gpus:
            return []  # check_device has said so
        total = gpus[0].memory_bytes
        per_device = int(cost.model_bytes / max(1.0, workers.gpus)) * max(1, int(1 / workers.gpus))
        free, kind, needed = total, "GPU memory", per_device
    else:
        (total, free), kind = find_memory(), "memory"
        needed = count * cost.worker_bytes
    text = f"{count} workers need {format_bytes(needed)} of {kind} for their models"
    if needed > total:
        raise ConfigError.single(
            "workers.count",
            f"{text}, this machine has {format_bytes(total)}; lower workers.count or merge.dtype",
        )
    if needed > 0.9 * free:
        return [f"{text} and more for forward passes; {format_bytes(free)} are free"]
    return []


def disk_warnings(job: JobConfig, cost: Estimate) -> list[str]:
    """Say so where an export would not fit beside the archive."""
    output = read_place(job.archive).output("export").absolute()
    parent = next(folder for folder in output.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free > cost.model_bytes:
        return []
    return [
        f"an export takes {format_bytes(cost.model_bytes)}, the disk of {parent} has "
        f"{format_bytes(free)} free; export to another disk"
    ]


def core_warnings(job: JobConfig) -> list[str]:
    """Say so where the threads of all workers are more than the cores of this machine."""
    cores, count = count_cores(), local_count(job.workers)
    wanted = count * job.workers.threads
    if job.workers.address is not None or job.workers.device != "cpu" or wanted <= cores:
        return []
    return [
        f"{count} workers x {job.workers.threads} threads share {cores} cores; "
        "lower workers.count or workers.threads"
    ]


def why_not_writable(path: Path) -> str:
    """Say why a file or directory cannot be made or written; empty where it can."""
    here = path.absolute()
    nearest = next(place for place in (here, *here.parents) if place.exists())
    if nearest != here and not nearest.is_dir():
        return f"{nearest} is no directory"
    rights = os.W_OK | os.X_OK if nearest.is_dir() else os.W_OK
    return "" if os.access(nearest, rights) else f"{nearest} is not writable"
