"""How an export keeps cores and disk busy: parts of tensors are merged, digested, written.

A few threads merge parts side by side, one digests and writes them in order. Torch's own threads
would wait for each other after every operation, and for the writing thread besides, which on a
busy machine costs more than the work; threads that work on parts of their own wait for nobody.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import torch
import xxhash
from torch import Tensor

from configs.errors import CheckpointError
from workers.block import Block, whole
from workers.checkpoint_writer import CheckpointWriter
from workers.digest import WeightsDigest, tensor_bytes
from workers.shard_header import TensorEntry

PART_BYTES = 8 * 2**20
"""Size of a part. Larger ones leave the cache between merging and writing; for smaller ones the
calls cost more than their work."""

MAX_MERGING_THREADS = 4
"""More would only wait for the disk, and every part that waits takes memory."""

_WAITING_PARTS = 3
# Larger parts may be merged by compiled code, smaller ones never are.
_COMPILED_ELEMENTS = 2**14

MergePart = Callable[[str, Tensor, Block], None]
"""Merges a block of the tensor of a name into memory ``(n,)``; called by several threads."""


def write_parts(
    writer: CheckpointWriter,
    entries: Mapping[str, TensorEntry],
    merge: MergePart,
    *,
    device: torch.device,
) -> str:
    """Merge and write everything that a writer expects.

    Takes at most ``MAX_MERGING_THREADS + 3`` parts of memory.

    Args:
        writer: Where the parts go.
        entries: Name -> tensor, of everything in ``writer.order``.
        merge: What fills a part.
        device: Where the memory of a part is.

    Returns:
        The digest of what was written (``workers.digest.weights_digest``).

    Raises:
        CheckpointError: The disk is full, or a merged element is NaN or infinite.
    """
    with _Pipeline(writer, merge, device) as pipeline:
        for name in writer.order:
            pipeline.add(entries[name])
    return pipeline.weights.hexdigest()


@dataclass
class _Buffer:
    """Memory for one part, ``(PART_BYTES,)`` uint8, and the writing of what was in it last."""

    memory: Tensor
    written: "Future[None] | None" = None

    def wait(self) -> None:
        """Wait until the memory is free; raises what came of the part in it."""
        if self.written is not None:
            written, self.written = self.written, None
            written.result()


class _Pipeline:
    """The threads and the memory of one export; its end waits for the last part."""

    def __init__(self, writer: CheckpointWriter, merge: MergePart, device: torch.device) -> None:
        self.weights = WeightsDigest()
        self._writer = writer
        self._merge = merge
        self._content = xxhash.xxh3_128()
        self._torch_threads = torch.get_num_threads()
        # A GPU is kept busy by one thread.
        num_threads = min(MAX_MERGING_THREADS, self._torch_threads) if device.type == "cpu" else 1
        self._num_threads = num_threads
        self._merging = ThreadPoolExecutor(num_threads, thread_name_prefix="merge")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="write")
        # The same memory for all parts: fresh pages cost more than the merge that fills them.
        self._buffers = [
            _Buffer(torch.empty(PART_BYTES, dtype=torch.uint8, device=device))
            for _ in range(num_threads + _WAITING_PARTS)
        ]
        self._next = 0
        self._is_compiled = False

    def add(self, entry: TensorEntry) -> None:
        """Begin to merge and write the writer's next tensor; waits for free memory."""
        dtype: torch.dtype = getattr(torch, entry.dtype)
        limit = PART_BYTES // dtype.itemsize
        for _, block in whole(entry.numel).pieces(limit, multiple_of=entry.row_length):
            buffer = self._buffers[self._next]
            self._next = (self._next + 1) % len(self._buffers)
            buffer.wait()
            part = buffer.memory[: block.numel * dtype.itemsize].view(dtype)
            merged = self._merging.submit(self._fill, entry, block, part)
            buffer.written = self._writing.submit(self._write, merged, entry, block, part)
            if not self._is_compiled:
                # The threads beside it would compile the same again.
                merged.result()
                self._is_compiled = entry.is_floating and block.numel >= _COMPILED_ELEMENTS

    def _fill(self, entry: TensorEntry, block: Block, part: Tensor) -> None:
        self._merge(entry.name, part, block)
        if entry.is_floating:
            _require_finite(entry.name, block, part)

    def _write(
        self, merged: "Future[None]", entry: TensorEntry, block: Block, part: Tensor
    ) -> None:
        merged.result()
        data = tensor_bytes(part)
        self._content.update(data)
        self._writer.write(entry.name, data)
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
                for buffer in (*self._buffers[self._next :], *self._buffers[: self._next]):
                    buffer.wait()
        finally:
            # After an error, what is not written yet is of no use.
            self._merging.shutdown(wait=True, cancel_futures=True)
            self._writing.shutdown(wait=True, cancel_futures=True)
            torch.set_num_threads(self._torch_threads)


def _require_finite(name: str, block: Block, part: Tensor) -> None:
    """Raise where a merged element is NaN or infinite.

    A sum is not finite if an element is not, and takes a fraction of the time of a test of each.
    """
    if torch.isfinite(part.sum()):
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
