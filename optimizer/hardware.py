"""What this machine has for a search: cores, memory and GPUs."""

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
    import torch  # noqa: PLC0415 - heavy

    memory = psutil.virtual_memory()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(index) for index in range(count)]
    return Hardware(
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=int(memory.total),
        free_bytes=int(memory.available),
        gpus=tuple(Gpu(str(each.name), int(each.total_memory)) for each in found),
    )
