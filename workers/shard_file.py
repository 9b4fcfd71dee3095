"""One large file, written once from its start to its end, as fast as its disk takes it.

The bytes go past the page cache (``O_DIRECT``) where the file system can do that: copying them
into it costs a core as much time as the disk needs, and pushes out the checkpoints that a merge
reads. Elsewhere they go through it, and the disk is told to begin after each block.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np

BLOCK_BYTES = 8 * 2**20
_NUM_BLOCKS = 6
MAX_WAITING_BYTES = (_NUM_BLOCKS - 1) * BLOCK_BYTES
"""What may be asked for before it is there; besides, a block is always on its way to the disk."""

# What the memory, the place and the length of a direct write are multiples of, on any disk.
_ALIGNMENT = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)


class ShardFile:
    """A new file of a known size, written by a thread of its own.

    What goes into it is made in the file's own memory, where the disk reads it: one thread asks
    for :meth:`room` and fills it, or has it filled, and :meth:`put` says what is there. Takes
    48 MiB of memory, or the file's size where that is less.

    Args:
        path: There is no such file yet.
        size_bytes: How many bytes will be written; their place on the disk is taken at once.

    Raises:
        OSError: The file cannot be created, or the disk is full.
    """

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._descriptor, self._is_direct = _create(path, is_large=size_bytes > BLOCK_BYTES)
        try:
            _reserve(self._descriptor, size_bytes)
            count = min(_NUM_BLOCKS, max(1, -(-size_bytes // BLOCK_BYTES)))
            # Byte n of the file is made at place n, modulo its size, of the memory.
            self._memory = memoryview(
                _allocate(count * BLOCK_BYTES if count > 1 else max(size_bytes, 1))
            )
        except BaseException:
            os.close(self._descriptor)
            raise
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="shard")
        self._blocks: dict[int, Future[None]] = {}
        self._asked = self._there = 0

    def room(self, wanted: int) -> memoryview:
        """Return memory for the next bytes; waits until what was in it before is on the disk.

        Args:
            wanted: Bytes, at most :data:`MAX_WAITING_BYTES` with those that were asked for and are
                not there yet.

        Returns:
            Of format ``B``: so many bytes, or the fewer that are left to the end of the memory.

        Raises:
            OSError: The disk is full or failed, now or at an earlier part.
            ValueError: More bytes than the file was said to have, or than the memory has room for.
        """
        end = self._asked + wanted
        if end > self._size_bytes:
            raise ValueError(f"{end} bytes for {self._size_bytes}")
        size = len(self._memory)
        begin = self._asked % size
        length = min(wanted, size - begin)
        # The last block of those that were here before.
        last_before = (self._asked + length - 1 - size) // BLOCK_BYTES
        if last_before >= self._there // BLOCK_BYTES:
            raise ValueError(f"no room for {length} bytes: what was asked for before is not there")
        for index in [index for index in list(self._blocks) if index <= last_before]:
            self._blocks.pop(index).result()
        self._asked += length
        return self._memory[begin : begin + length]

    def put(self, count: int) -> None:
        """Say that the next bytes that were asked for are in their place, in the order of asking.

        They belong to the disk from now on. May be called by another thread than :meth:`room`.
        """
        if self._there + count > self._asked:
            raise ValueError(f"{self._there + count} bytes put, {self._asked} asked for")
        there = self._there + count
        for index in range(self._there // BLOCK_BYTES, there // BLOCK_BYTES):
            self._begin_block(index, BLOCK_BYTES)
        if count and there == self._size_bytes and (rest := there % BLOCK_BYTES):
            self._begin_block(there // BLOCK_BYTES, rest)
        # Last: who asks for room looks here first, then for the blocks.
        self._there = there

    def write(self, data: memoryview) -> None:
        """Append a copy of some bytes; they may be changed on return.

        Args:
            data: Of format ``B``.

        Raises:
            OSError: The disk is full or failed, now or at an earlier part.
            ValueError: More bytes than the file was said to have.
        """
        if self._asked + data.nbytes > self._size_bytes:
            raise ValueError(f"{self._asked + data.nbytes} bytes for {self._size_bytes}")
        copy_into(self.room, self.put, data)

    def finish(self) -> None:
        """Wait until everything is on the disk, and close.

        Raises:
            OSError: The disk is full or failed.
            ValueError: Bytes are missing.
        """
        if self._there != self._size_bytes:
            raise ValueError(f"{self._there} bytes of {self._size_bytes} were written")
        for written in list(self._blocks.values()):
            written.result()
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

    def _begin_block(self, index: int, length: int) -> None:
        self._blocks[index] = self._writing.submit(self._write_out, index * BLOCK_BYTES, length)

    def _write_out(self, offset: int, length: int) -> None:
        """Write bytes of a block; the rest of a sector goes through the page cache."""
        place = offset % len(self._memory)
        view = self._memory[place : place + length]
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


def copy_into(
    room: Callable[[int], memoryview], put: Callable[[int], None], data: memoryview
) -> None:
    """Copy bytes into the memory that ``room`` gives, and say so to ``put``, part by part.

    Of no bytes, that is one part.
    """
    source = np.frombuffer(data, dtype=np.uint8)
    while True:
        target = np.frombuffer(room(min(source.nbytes, BLOCK_BYTES)), dtype=np.uint8)
        # Unlike slices of memory views, this lets other threads use Python.
        np.copyto(target, source[: target.nbytes])
        put(target.nbytes)
        source = source[target.nbytes :]
        if not source.nbytes:
            return


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


def _allocate(size_bytes: int) -> mmap.mmap:
    """Return page-aligned memory of this process, in large pages where the system has some."""
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        # Advice: a kernel without large pages refuses it, and nothing is wrong.
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
