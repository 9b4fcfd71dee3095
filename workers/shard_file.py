"""One large file, written once from its start to its end, as fast as its disk takes it.

The bytes go past the page cache (``O_DIRECT``) where the file system can do that: copying them
into it costs a core as much time as the disk needs, and pushes out the checkpoints that a merge
reads. Elsewhere they go through it, and the disk is told to begin after each block.
"""

import errno
import fcntl
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_BLOCK_BYTES = 8 * 2**20
_NUM_BLOCKS = 3
# What the memory, the place and the length of a direct write are multiples of, on any disk.
_ALIGNMENT = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)


@dataclass
class _Block:
    """Memory for one write, page-aligned, and the writing of what was in it last."""

    memory: mmap.mmap
    array: NDArray[np.uint8] = field(init=False)
    written: "Future[None] | None" = None

    def __post_init__(self) -> None:
        self.array = np.frombuffer(self.memory, dtype=np.uint8)

    def wait(self) -> None:
        """Wait until the memory is free; raises what came of the write."""
        if self.written is not None:
            written, self.written = self.written, None
            written.result()


class ShardFile:
    """A new file of a known size; one thread of its own writes while the caller goes on.

    Takes 24 MiB of memory, or the file's size where that is less.

    Args:
        path: There is no such file yet.
        size_bytes: How many bytes will be written; their place on the disk is taken at once.

    Raises:
        OSError: The file cannot be created, or the disk is full.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._descriptor, self._is_direct = _create(path, is_large=size_bytes > _BLOCK_BYTES)
        try:
            _reserve(self._descriptor, size_bytes)
            length = min(_BLOCK_BYTES, max(size_bytes, 1))
            count = min(_NUM_BLOCKS, -(-size_bytes // length)) or 1
            self._blocks = [_Block(mmap.mmap(-1, length)) for _ in range(count)]
        except BaseException:
            os.close(self._descriptor)
            raise
        self._block_bytes = length
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="shard")
        self._position = 0

    def write(self, data: memoryview) -> None:
        """Append bytes; they may be changed on return.

        Args:
            data: Of format ``B``.

        Raises:
            OSError: The disk is full or failed, now or at an earlier part.
            ValueError: More bytes than the file was said to have.
        """
        if self._position + data.nbytes > self._size_bytes:
            raise ValueError(f"{self._position + data.nbytes} bytes for {self._size_bytes}")
        taken, source = 0, np.frombuffer(data, dtype=np.uint8)
        while taken < data.nbytes:
            begin = self._position % self._block_bytes
            block = self._blocks[self._position // self._block_bytes % len(self._blocks)]
            if begin == 0:
                block.wait()
            count = min(data.nbytes - taken, self._block_bytes - begin)
            # Unlike slices of memory views, this lets other threads use Python.
            np.copyto(block.array[begin : begin + count], source[taken : taken + count])
            taken += count
            self._position += count
            if begin + count == self._block_bytes or self._position == self._size_bytes:
                first = self._position - begin - count
                block.written = self._writing.submit(
                    self._write_out, block.memory, begin + count, first
                )

    def finish(self) -> None:
        """Wait until everything is on the disk, and close.

        Raises:
            OSError: The disk is full or failed.
            ValueError: Bytes are missing.
        """
        if self._position != self._size_bytes:
            raise ValueError(f"{self._position} bytes of {self._size_bytes} were written")
        for block in self._blocks:
            block.wait()
        os.fsync(self._descriptor)
        self._writing.shutdown()
        os.close(self._descriptor)
        self._descriptor = -1

    def abandon(self) -> None:
        """Close a file that is of no use any more; after :meth:`finish` nothing happens."""
        if self._descriptor < 0:
            return
        self._writing.shutdown(wait=True, cancel_futures=True)
        # Closing can fail like a write did; that error is the one to show.
        with suppress(OSError):
            os.close(self._descriptor)
        self._descriptor = -1

    def _write_out(self, memory: mmap.mmap, length: int, offset: int) -> None:
        """Write the first bytes of a block; the rest of a sector goes through the page cache."""
        view = memoryview(memory)[:length]
        whole = length // _ALIGNMENT * _ALIGNMENT if self._is_direct else length
        position = self._write_at(view[:whole], offset)
        if position < length:
            self._set_indirect()
            self._write_at(view[position:], offset + position)
        if not self._is_direct and hasattr(os, "posix_fadvise"):
            # Linux begins to write dirty pages of which it hears that nobody needs them.
            os.posix_fadvise(self._descriptor, offset, length, os.POSIX_FADV_DONTNEED)

    def _write_at(self, view: memoryview, offset: int) -> int:
        """Write all of it, and return how much that is."""
        position = 0
        while position < view.nbytes:
            try:
                position += os.pwrite(self._descriptor, view[position:], offset + position)
            except OSError as error:
                # Some file systems take the flag and refuse the write.
                if error.errno != errno.EINVAL or not self._is_direct:
                    raise
                self._set_indirect()
            if self._is_direct and position % _ALIGNMENT:
                # A write that stopped inside a sector cannot be continued directly.
                self._set_indirect()
        return position

    def _set_indirect(self) -> None:
        if self._is_direct:
            self._is_direct = False
            flags = fcntl.fcntl(self._descriptor, fcntl.F_GETFL)
            fcntl.fcntl(self._descriptor, fcntl.F_SETFL, flags & ~_DIRECT)


def _create(path: Path, *, is_large: bool) -> tuple[int, bool]:
    """Create a file; returns its descriptor, and whether it is written directly."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    if is_large and _DIRECT:
        try:
            return os.open(path, flags | _DIRECT, 0o666), True
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
            # Some file systems create the file before they refuse.
            path.unlink(missing_ok=True)
    return os.open(path, flags, 0o666), False


def _reserve(descriptor: int, size_bytes: int) -> None:
    """Take a file's place on the disk: a full one shows now, and the file lies in one piece.

    Raises:
        OSError: The disk is full.
    """
    if not hasattr(os, "posix_fallocate") or not size_bytes:
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
