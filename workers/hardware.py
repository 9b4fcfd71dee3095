"""What this machine has for a search: cores, memory and GPUs. The one place that asks for them."""

import os
from dataclasses import dataclass

import psutil


@dataclass(frozen=True, slots=True)
class Gpu:
    """A CUDA device; ``memory_bytes`` is all of its memory."""

    name: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Hardware:
    """What was found.

    Attributes:
        cores: That this process may use.
        memory_bytes: All of it.
        free_bytes: What is free of it now, pages of files that can go included.
        gpus: In the order of CUDA.
    """

    cores: int
    memory_bytes: int
    free_bytes: int
    gpus: tuple[Gpu, ...]


def find_hardware() -> Hardware:
    """Look at this machine; imports torch, which knows the GPUs."""
    memory_bytes, free_bytes = find_memory()
    return Hardware(
        cores=count_cores(), memory_bytes=memory_bytes, free_bytes=free_bytes, gpus=find_gpus()
    )


def count_cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0))


def find_memory() -> tuple[int, int]:
    """Return all bytes of memory, and those that are free, pages of files that can go included."""
    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def count_gpus() -> int:
    """Return how many CUDA devices torch can use; nothing is set up on them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_gpus() -> tuple[Gpu, ...]:
    """Return the CUDA devices that torch can use, in its order."""
    import torch

    found = [torch.cuda.get_device_properties(index) for index in range(count_gpus())]
    return tuple(Gpu(str(each.name), int(each.total_memory)) for each in found)
