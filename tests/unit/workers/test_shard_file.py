"""A file written past the page cache, or through it, is the bytes that were given."""

import errno
import fcntl
import os
import random
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers import shard_file
from workers.shard_file import ShardFile

BLOCK = 8192
"""Of the tests, so that small files have many."""


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "BLOCK_BYTES", BLOCK)


def write(path: Path, content: bytes, cuts: list[int]) -> None:
    file = ShardFile(path, len(content))
    view = memoryview(bytearray(content))
    ends = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    for begin, end in pairwise(ends):
        part = memoryview(bytearray(view[begin:end]))
        file.write(part)
        part[:] = b"\xff" * len(part)  # the writer has taken what it needs
    file.finish()


def open_files() -> list[Path]:
    return [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


def content_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


@pytest.fixture(params=[os.O_DIRECT, 0], ids=["direct", "cached"])
def path(
    tmp_path: Path,
    small_blocks: None,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Path:
    monkeypatch.setattr(shard_file, "_DIRECT", request.param)
    return tmp_path / "file"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.one_of(
        st.integers(1, 6 * BLOCK), st.sampled_from([BLOCK, 2 * BLOCK, 4096, 2 * BLOCK + 4096])
    ),
    cuts=st.lists(st.integers(0, 6 * BLOCK), max_size=9),
)
def test_file_holds_what_was_written(path: Path, size: int, cuts: list[int]) -> None:
    path.unlink(missing_ok=True)
    content = content_of(size)
    write(path, content, cuts)
    assert path.read_bytes() == content


@pytest.mark.parametrize("after", [0, 4096, 1000], ids=["at once", "a sector", "inside a sector"])
def test_direct_write_that_is_refused_goes_through_the_cache(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Of each direct write, so many bytes are taken, then the file system takes no more."""
    real = os.pwrite
    num_refused = 0

    def refuse(descriptor: int, data: memoryview, offset: int) -> int:
        nonlocal num_refused
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            num_refused += 1
            if not after:
                raise OSError(errno.EINVAL, "Invalid argument")
            if after % 4096:
                # What a direct write may not do: taken with the flag off.
                flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags & ~os.O_DIRECT)
                count = real(descriptor, data[:after], offset)
                fcntl.fcntl(descriptor, fcntl.F_SETFL, flags)
                return count
            return real(descriptor, data[:after], offset)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    content = content_of(5 * BLOCK + 77)
    write(tmp_path / "file", content, [BLOCK])
    assert (tmp_path / "file").read_bytes() == content
    assert num_refused


def test_error_of_an_earlier_part_is_raised(
    tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pwrite", fail)
    file = ShardFile(tmp_path / "file", 9 * BLOCK)
    with pytest.raises(OSError, match="Input/output error"):
        file.write(memoryview(bytes(9 * BLOCK)))
    file.abandon()
    file.abandon()


def test_error_of_the_last_part_is_raised_by_the_end_and_the_file_is_closed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def fail(descriptor: int, data: memoryview, offset: int) -> int:
        if offset >= BLOCK:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", fail)
    file = ShardFile(path, BLOCK + 10)
    file.write(memoryview(bytes(BLOCK + 10)))
    with pytest.raises(OSError, match="Input/output error"):
        file.finish()
    file.abandon()
    assert path not in open_files()


def test_neither_more_nor_fewer_bytes_than_said(tmp_path: Path) -> None:
    file = ShardFile(tmp_path / "file", 10)
    file.write(memoryview(b"123456"))
    with pytest.raises(ValueError, match="11 bytes for 10"):
        file.write(memoryview(b"78901"))
    with pytest.raises(ValueError, match="6 bytes of 10"):
        file.finish()
    file.abandon()


def test_existing_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError):
        ShardFile(tmp_path / "file", 10)
    assert (tmp_path / "file").read_text() == "mine"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(size=st.integers(1, 20 * BLOCK), seed=st.integers(0, 2**16))
def test_parts_may_be_made_in_any_order(path: Path, size: int, seed: int) -> None:
    """Several are out at a time, and end anywhere: inside blocks, and where the memory does."""
    path.unlink(missing_ok=True)
    content, draw = content_of(size), random.Random(seed)
    file = ShardFile(path, size)
    asked = there = 0
    while there < size:
        out: list[tuple[int, memoryview]] = []
        waiting = (shard_file._NUM_BLOCKS - 1) * BLOCK
        while asked < size and (room := min(size - asked, waiting - (asked - there))):
            out.append((asked, file.room(draw.randint(1, room))))
            asked += out[-1][1].nbytes
            assert out[-1][1].nbytes
        for begin, memory in draw.sample(out, len(out)):
            memory[:] = content[begin : begin + memory.nbytes]
        for _, memory in out:
            file.put(memory.nbytes)
        there = asked
    file.finish()
    assert path.read_bytes() == content


def test_memory_is_not_given_out_before_the_disk_has_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def slowly(descriptor: int, data: memoryview, offset: int) -> int:
        time.sleep(0.01)
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", slowly)
    content = content_of(20 * BLOCK)
    write(path, content, [])
    assert path.read_bytes() == content


def test_no_more_is_asked_for_than_there_is_memory(path: Path) -> None:
    size = shard_file._NUM_BLOCKS * BLOCK
    file = ShardFile(path, 2 * size)
    file.room(100)
    file.put(100)
    assert file.room(size).nbytes == size - 100, "up to the end of the memory"
    with pytest.raises(ValueError, match="no room for 1 bytes"):
        file.room(1)
    with pytest.raises(ValueError, match=f"{size + 1} bytes put, {size} asked for"):
        file.put(size - 99)
    file.abandon()
