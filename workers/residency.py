"""Where the tensors of the checkpoints are kept between candidates (D7).

:func:`choose_placement` decides from numbers alone; :class:`TensorStore` keeps what was decided.
"""

import ctypes
import logging
import mmap
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast

import psutil
import torch
from torch import Tensor

from configs.errors import ConfigError
from configs.worker_settings import Residency
from workers.block import Block, whole
from workers.checkpoint import CheckpointReader

logger = logging.getLogger(__name__)

Placement = Literal["gpu", "pinned", "mapped", "streamed"]
"""``gpu``: copies on the model's device. ``pinned``: copies in page-locked memory of this process,
which a GPU reads at the speed of the bus. ``mapped``: memory-mapped, and left in the page cache,
which all processes of a machine share. ``streamed``: memory-mapped, and taken out of the page cache
after use."""

# A share of the device that stays free for activations and key-value caches.
_SPARED_GPU_SHARE = 0.25
# Every worker of a machine has pinned copies of its own, and others need memory too.
_PINNED_HOST_SHARE = 0.5
_MAPPED_HOST_SHARE = 0.8
# So much of the host no page-locked copy takes, whatever was decided: all workers decide before
# any of them copies, and torch makes each copy as large as the next power of two.
_SPARED_HOST_SHARE = 0.1

# linux/mman.h. Unlike MADV_DONTNEED it cannot lose what is in a page.
_MADV_PAGEOUT = 21


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that are free: of the host, of the device (0 without one), and the device's total."""

    host_available: int
    gpu_free: int = 0
    gpu_total: int = 0


def measure_memory(device: torch.device, gpu_share: float = 1.0) -> Memory:
    """Ask the system, and the device where it is a CUDA device.

    The page cache counts as available: what it holds is given up when others need memory. Of a
    device that several processes share, ``gpu_share`` is what belongs to this one.
    """
    available = psutil.virtual_memory().available
    if device.type != "cuda":
        return Memory(available)
    free, total = torch.cuda.mem_get_info(device)
    if gpu_share < 1:
        total = int(gpu_share * total)
        free = min(free, total - torch.cuda.memory_reserved(device))
    return Memory(available, free, total)


def choose_placement(
    wanted: Residency, *, device_type: str, source_bytes: int, memory: Memory
) -> Placement:
    """Decide where the checkpoints are kept.

    ``auto`` is ``gpu`` if the model is on a CUDA device whose free memory holds everything and a
    quarter of its total besides; else ``host`` if everything fits into the available memory (half
    of it for page-locked copies, which every worker makes for itself); else ``disk``.

    Args:
        wanted: ``workers.residency`` of the job.
        device_type: Of the model.
        source_bytes: What this process reads for one candidate, of all checkpoints and the base.
        memory: What is free.

    Raises:
        ConfigError: What is wanted by name is not possible here.
    """
    is_cuda = device_type == "cuda"
    gpu_room = memory.gpu_free - int(_SPARED_GPU_SHARE * memory.gpu_total) if is_cuda else 0
    host_share = _PINNED_HOST_SHARE if is_cuda else _MAPPED_HOST_SHARE
    host_room = int(host_share * memory.host_available)
    if wanted == "auto":
        if is_cuda and source_bytes <= gpu_room:
            return "gpu"
        wanted = "host" if source_bytes <= host_room else "disk"
    if wanted == "gpu":
        if not is_cuda:
            raise ConfigError.single(
                "workers.residency", f"`gpu` needs `workers.device: cuda`, found {device_type}"
            )
        _require_room("gpu", source_bytes, gpu_room, "the GPU")
        return "gpu"
    if wanted == "host":
        _require_room("host", source_bytes, host_room, "the memory of this machine")
        return "pinned" if is_cuda else "mapped"
    return "streamed"


def _require_room(wanted: str, source_bytes: int, room: int, where: str) -> None:
    if source_bytes > room:
        raise ConfigError.single(
            "workers.residency",
            f"`{wanted}` needs {source_bytes / 1e9:.1f} GB for the checkpoints, {where} has room "
            f"for {max(room, 0) / 1e9:.1f} GB of them; use `auto`",
        )


class TensorStore:
    """Gives blocks of the tensors of checkpoints, and keeps them where a placement says.

    Args:
        placement: From :func:`choose_placement`.
    """

    def __init__(self, placement: Placement = "mapped") -> None:
        self.placement = placement
        self._kept: dict[tuple[str, str, Block, torch.device], Tensor] = {}
        # Asking a file for a tensor takes as long as merging a small one.
        self._mapped: dict[tuple[str, str], Tensor] = {}

    def block(
        self, digest: str, reader: CheckpointReader, name: str, block: Block, device: torch.device
    ) -> Tensor:
        """Return a block of a tensor: ``(width,)`` or ``(rows, width)``, not to be written.

        It is on ``device`` where the placement is ``gpu``, else on the CPU. Copies that are kept
        hold the block and nothing else, and are made on its first use.
        """
        key = (digest, name, block, device)
        if (kept := self._kept.get(key)) is not None:
            return kept
        mapped = block.of(self._flat(digest, reader, name))
        if self.placement == "gpu":
            self._kept[key] = mapped.to(device)
        elif self.placement == "pinned":
            self._kept[key] = _page_locked(mapped)
        else:
            return mapped
        return self._kept[key]

    def read(
        self, digest: str, reader: CheckpointReader, name: str, block: Block, device: torch.device
    ) -> Tensor:
        """Return consecutive elements, ``(width,)`` on ``device``, without keeping them.

        They are part of a kept tensor where that is kept whole.
        """
        flat = self._kept.get((digest, name, whole(reader.entries[name].numel), device))
        return block.of(self._flat(digest, reader, name) if flat is None else flat).to(device)

    def _flat(self, digest: str, reader: CheckpointReader, name: str) -> Tensor:
        if (known := self._mapped.get((digest, name))) is not None:
            return known
        flat = reader.tensor(name).reshape(-1)
        if reader.is_mapped(name):
            self._mapped[digest, name] = flat
        return flat

    def keeps(self, reader: CheckpointReader, name: str) -> bool:
        """Say whether a tensor's blocks lie where they are until the next merge."""
        is_copied = self.placement in ("gpu", "pinned")
        return is_copied or (self.placement == "mapped" and reader.is_mapped(name))

    def release(self, tensor: Tensor) -> None:
        """Say that a tensor from :meth:`block`, or a part of it, was used."""
        if self.placement == "streamed":
            page_out(tensor)

    def clear(self) -> None:
        """Forget all copies."""
        self._kept.clear()
        self._mapped.clear()


def _page_locked(tensor: Tensor) -> Tensor:
    """Return a page-locked copy, or the tensor itself where there is no room for one."""
    memory = psutil.virtual_memory()
    if memory.available - 2 * tensor.nbytes < _SPARED_HOST_SHARE * memory.total:
        return tensor
    try:
        return tensor.contiguous().pin_memory()
    except RuntimeError as error:  # of the driver, which may have a limit of its own
        logger.warning("%d bytes of a checkpoint are not page-locked: %s", tensor.nbytes, error)
        return tensor


def page_out(tensor: Tensor) -> None:
    """Take the pages of a memory-mapped tensor out of memory, those between its rows too.

    Pages that other processes use stay. Nothing can be lost: a page that is not a file's is
    swapped or kept.
    """
    if tensor.device.type != "cpu" or not tensor.numel():
        return
    # Of columns of a matrix, from the first element to the last: its strides are ascending.
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    begin = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    end = tensor.data_ptr() + (last + 1) * tensor.itemsize
    end = end // mmap.PAGESIZE * mmap.PAGESIZE
    if begin < end and (madvise := _madvise()) is not None:
        # It is advice: a kernel that does not know it says so, and nothing is wrong.
        madvise(begin, end - begin, _MADV_PAGEOUT)


@cache
def _madvise() -> Callable[[int, int, int], int] | None:
    try:
        function = ctypes.CDLL(None, use_errno=True).madvise
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return cast("Callable[[int, int, int], int]", function)
