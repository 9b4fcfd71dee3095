"""How an export keeps cores and disk busy: parts of tensors are merged, digested, written.

A few threads merge parts side by side, one digests and writes them in order. Torch's own threads
would wait for each other after every operation, and for the writing thread besides, which on a
busy machine costs more than the work; threads that work on parts of their own wait for nobody.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Self

import torch
import xxhash
from torch import Tensor

from configs.errors import CheckpointError
from workers.block import Block
from workers.checkpoint_writer import CheckpointWriter
from workers.compiled import Step
from workers.digest import WeightsDigest
from workers.shard_file import MAX_WAITING_BYTES
from workers.shard_header import TensorEntry

PART_BYTES = 8 * 2**20
"""Size of a part. Larger ones leave the cache between merging and writing; for smaller ones the
calls cost more than their work."""

MAX_MERGING_THREADS = 4
"""More would only wait for the disk."""

# Larger parts may be merged by compiled code, smaller ones never are.
_COMPILED_ELEMENTS = 2**14

PreparePart = Callable[[str, Tensor, Block], Step]
"""Prepares the merge of a block of the tensor of a name into memory ``(n,)``, without gradients;
called by one thread. What it returns is called by another one."""


def write_parts(
    writer: CheckpointWriter,
    entries: Mapping[str, TensorEntry],
    prepare: PreparePart,
    *,
    device: torch.device,
    merged: Callable[[], object] = lambda: None,
) -> str:
    """Merge and write everything that a writer expects.

    Parts are merged in the memory of the file that the disk reads, and copied nowhere.

    Args:
        writer: Where the parts go.
        entries: Name -> tensor, of everything in ``writer.order``.
        prepare: What fills a part.
        device: Where parts are merged.
        merged: Called once everything is merged, while the disk still writes.

    Returns:
        The digest of what was written (``workers.digest.weights_digest``).

    Raises:
        CheckpointError: The disk is full, or a merged element is NaN or infinite.
    """
    with _Pipeline(writer, prepare, device) as pipeline, torch.no_grad():
        for name in writer.order:
            pipeline.add(entries[name])
        pipeline.wait_for_merges()
        merged()
    return pipeline.weights.hexdigest()


class _Pipeline:
    """The threads of one export; its end waits for the last part."""

    def __init__(
        self, writer: CheckpointWriter, prepare: PreparePart, device: torch.device
    ) -> None:
        self.weights = WeightsDigest()
        self._writer = writer
        self._prepare = prepare
        self._device = device
        self._content = xxhash.xxh3_128()
        self._torch_threads = torch.get_num_threads()
        # A GPU is kept busy by one thread.
        num_threads = min(MAX_MERGING_THREADS, self._torch_threads) if device.type == "cpu" else 1
        self._num_threads = num_threads
        self._merging = ThreadPoolExecutor(num_threads, thread_name_prefix="merge")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        # Parts in the order of the file, and their bytes together.
        self._waiting: deque[tuple[Future[None], int]] = deque()
        self._waiting_bytes = 0
        self._is_compiled = False

    def add(self, entry: TensorEntry) -> None:
        """Begin to merge and write the writer's next tensor; waits for free memory."""
        dtype: torch.dtype = getattr(torch, entry.dtype)
        begin = 0
        while True:
            wanted = _end_of_part(begin, entry, PART_BYTES // dtype.itemsize) - begin
            self._wait_for_room(wanted * dtype.itemsize)
            memory = self._writer.room(entry.name, wanted * dtype.itemsize)
            block = Block(begin, memory.nbytes // dtype.itemsize)
            merged = self._begin(entry, block, memory)
            written = self._writing.submit(self._put, merged, entry, block, memory)
            self._waiting.append((written, memory.nbytes))
            self._waiting_bytes += memory.nbytes
            if not self._is_compiled:
                # The threads beside it would compile the same again.
                merged.result()
                self._is_compiled = entry.is_floating and block.numel >= _COMPILED_ELEMENTS
            if block.end == entry.numel:
                return
            begin = block.end

    def wait_for_merges(self) -> None:
        """Wait until nothing is merged any more; the first error is raised at the end."""
        self._merging.shutdown(wait=True)

    def _wait_for_room(self, wanted: int) -> None:
        """Wait until a part fits beside those that wait; raises what came of the ones before."""
        while self._waiting and self._waiting_bytes + wanted > MAX_WAITING_BYTES:
            written, num_bytes = self._waiting.popleft()
            self._waiting_bytes -= num_bytes
            written.result()

    def _begin(self, entry: TensorEntry, block: Block, memory: memoryview) -> "Future[None]":
        """Prepare the merge of a part, and have it done."""
        dtype = getattr(torch, entry.dtype)
        # Of an empty buffer torch makes no tensor.
        place = torch.frombuffer(memory, dtype=dtype) if memory else torch.empty(0, dtype=dtype)
        is_here = self._device.type == "cpu"
        part = place if is_here else torch.empty_like(place, device=self._device)
        # Here, so that the threads that merge hardly need Python: they would wait for each other
        # after every one of some hundred calls.
        step = self._prepare(entry.name, part, block)

        def fill() -> None:
            with torch.no_grad():
                step()
                if entry.is_floating:
                    _require_finite(entry.name, block, part)
                if not is_here:
                    place.copy_(part)

        return self._merging.submit(fill)

    def _put(
        self, merged: "Future[None]", entry: TensorEntry, block: Block, memory: memoryview
    ) -> None:
        merged.result()
        self._content.update(memory)
        self._writer.put(memory.nbytes)
        if block.end == entry.numel:
            self.weights.add_content(entry.name, entry.dtype, entry.shape, self._content)
            self._content.reset()

    def __enter__(self) -> Self:
        torch.set_num_threads(max(1, self._torch_threads // self._num_threads))
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                # In the order of the parts: the first error is the one to show.
                for written, _size in self._waiting:
                    written.result()
        finally:
            # After an error, what is not written yet is of no use.
            self._merging.shutdown(wait=True, cancel_futures=True)
            self._writing.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._torch_threads)


def _end_of_part(begin: int, entry: TensorEntry, limit: int) -> int:
    """Say where a part that begins at an element ends: where a row does, if one fits."""
    if begin + limit >= entry.numel:
        return entry.numel
    row_end: int = (begin + limit) // entry.row_length * entry.row_length
    return row_end if row_end > begin else begin + limit


def _require_finite(name: str, block: Block, part: Tensor) -> None:
    """Raise where a merged element is NaN or infinite.

    A sum is not finite if an element is not, and takes a fraction of the time of a test of each.
    """
    if math.isfinite(part.sum().item()):
        return
    wrong = (~torch.isfinite(part)).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise CheckpointError(
            f"`{name}`: the merge is not finite: element {block.start + first} is "
            f"{float(part[first])}, as are {len(wrong) - 1} more of the {block.numel} around it; "
            "nothing was exported. Look for NaN in the checkpoints that contribute, or choose "
            "another merge",
            tensor=name,
        )
