"""Writing a Hugging Face checkpoint directory, part by part, whole or not at all.

:class:`CheckpointWriter` streams tensors into preallocated safetensors shards, in whose memory they
may be made: nothing is copied. Equal tensors and files give equal bytes, whoever writes them.
"""

import errno
import json
import os
import re
import shutil
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from configs.errors import CheckpointError
from workers.checkpoint import INDEX_FILE, SINGLE_FILE
from workers.shard_file import ShardFile, copy_into
from workers.shard_header import DTYPES, SAFETENSORS_DTYPES, TensorEntry
from workers.work_directory import WorkDirectory, remove_leftovers, sync_directory

DEFAULT_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True, slots=True)
class _Shard:
    file_name: str
    entries: tuple[TensorEntry, ...]


class CheckpointWriter:
    """Writes one checkpoint directory; use as a context manager.

    Everything goes into a hidden directory beside the target, which is synced to disk and
    renamed when the block ends without an error, and removed otherwise. A killed process leaves
    at most the hidden directory, never a half-written target, and the next writer to the same
    target removes that.

    Args:
        out_dir: The target; must not exist, or be an empty directory.
        tensors: Name, dtype, shape and size of every tensor; at least one.
        max_shard_bytes: Largest size of a shard's tensors; a larger tensor gets its own shard.

    Attributes:
        order: Names in the order in which they must be written.

    Raises:
        CheckpointError: The target is in use, or there is no room for the tensors.
    """

    def __init__(
        self,
        out_dir: Path,
        tensors: Sequence[TensorEntry],
        *,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    ) -> None:
        refuse_used(out_dir)
        self.out_dir = out_dir
        self._shards = _plan_shards(tensors, max_shard_bytes)
        self._plan = [(shard, entry) for shard in self._shards for entry in shard.entries]
        self.order = tuple(entry.name for _, entry in self._plan)
        # Of the tensors in this order: what room was asked for, and what is there.
        self._num_asked = self._asked_bytes = 0
        self._num_written = self._written_bytes = 0
        # The shard in which there is room, after those that are not there yet.
        self._files: deque[ShardFile] = deque()
        self._total_bytes = sum(entry.size_bytes for entry in tensors)
        try:
            out_dir.parent.mkdir(parents=True, exist_ok=True)
            # First, since what killed exports left takes space.
            remove_leftovers(out_dir)
            self._require_space()
            self._hidden = WorkDirectory(out_dir)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_error(error) from error
            raise CheckpointError(
                f"{out_dir}: cannot be created: {error.strerror or error}"
                f"{f' ({error.filename})' if error.filename else ''}; choose a directory that you "
                "may write to",
                path=str(out_dir),
            ) from error
        self._work_dir = self._hidden.path

    def room(self, name: str, wanted: int) -> memoryview:
        """Return memory for bytes of the next tensor of :attr:`order`: of all of it, or of a part.

        It is to be filled, and :meth:`put` called, by whoever and whenever: several may be out at
        a time, of at most ``MAX_WAITING_BYTES`` of ``workers.shard_file`` together.

        Args:
            name: Of the tensor.
            wanted: Bytes.

        Returns:
            Of format ``B``: so many bytes or fewer, at least 1 where any were wanted.

        Raises:
            ValueError: Another tensor's turn, or more bytes than it has left.
            CheckpointError: The disk is full or failed.
        """
        shard, entry = self._expect(name, wanted)
        try:
            if entry is shard.entries[0] and not self._asked_bytes:
                self._files.append(self._begin_shard(shard))
            memory = self._files[-1].room(wanted) if wanted else memoryview(bytearray())
        except OSError as error:
            raise self._disk_error(error) from error
        self._asked_bytes += memory.nbytes
        if self._asked_bytes == entry.size_bytes:
            self._num_asked, self._asked_bytes = self._num_asked + 1, 0
        return memory

    def put(self, count: int) -> None:
        """Say that so many bytes are there: all that :meth:`room` returned, in the order of asking.

        Another thread may call it than that one.

        Raises:
            CheckpointError: The disk is full or failed.
        """
        shard, entry = self._plan[self._num_written]
        try:
            self._files[0].put(count)
            self._written_bytes += count
            if self._written_bytes < entry.size_bytes:
                return
            self._num_written, self._written_bytes = self._num_written + 1, 0
            if entry is shard.entries[-1]:
                self._files[0].finish()
                self._files.popleft()
        except OSError as error:
            raise self._disk_error(error) from error

    def write(self, name: str, data: memoryview) -> None:
        """Append bytes of the next tensor of :attr:`order`: all of them, or the next part.

        Raises:
            ValueError: Another tensor's turn, or more bytes than it has left.
            CheckpointError: The disk is full or failed.
        """
        self._expect(name, data.nbytes)
        copy_into(partial(self.room, name), self.put, data)

    def _expect(self, name: str, wanted: int) -> tuple[_Shard, TensorEntry]:
        """Return the next tensor, and raise unless so many bytes of it may come."""
        shard, entry = self._plan[self._num_asked]
        left = entry.size_bytes - self._asked_bytes
        if name != entry.name or wanted > left or (left and not wanted):
            raise ValueError(
                f"`{entry.name}`, {left} bytes of it, comes next, found `{name}`, {wanted}"
            )
        return shard, entry

    def _begin_shard(self, shard: _Shard) -> ShardFile:
        """Create a shard, reserve its place on the disk, and write its header."""
        header = _header(shard.entries)
        size_bytes = len(header) + sum(entry.size_bytes for entry in shard.entries)
        file = ShardFile(self._work_dir / shard.file_name, size_bytes)
        try:
            file.write(memoryview(header))
        except BaseException:
            file.abandon()
            raise
        return file

    def add_file(self, name: str, content: bytes) -> None:
        """Write a file beside the weights, or in a directory there.

        Raises:
            ValueError: The name is no plain file name (``directory/file``), or is taken.
            CheckpointError: The disk is full or failed.
        """
        path = self._work_dir / name
        taken = {SINGLE_FILE, INDEX_FILE, *(shard.file_name for shard in self._shards)}
        if (
            not re.fullmatch(r"([\w-][\w.-]*/)?[\w-][\w.-]*", name)
            or name in taken
            or path.exists()
        ):
            raise ValueError(f"`{name}` is not a free file name for {self.out_dir}")
        try:
            if path.parent != self._work_dir:
                path.parent.mkdir(exist_ok=True)
                sync_directory(self._work_dir)
            _write_file(path, content)
            if path.parent != self._work_dir:
                sync_directory(path.parent)
        except OSError as error:
            raise self._disk_error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, error_type: type[BaseException] | None, *_: object) -> None:
        try:
            if error_type is None:
                self._finish()
        finally:
            for file in self._files:
                file.abandon()
            self._hidden.close()

    def _finish(self) -> None:
        if self._num_written != len(self._plan):
            raise ValueError(f"{len(self._plan) - self._num_written} tensors were not written")
        try:
            if len(self._shards) > 1:
                _write_file(self._work_dir / INDEX_FILE, self._index())
            # Replaces an empty directory, and fails where someone filled it meanwhile.
            self._hidden.publish()
        except OSError as error:
            if self._hidden.is_published:
                raise self._unconfirmed(error) from error
            raise self._disk_error(error) from error

    def _index(self) -> bytes:
        weight_map = {entry.name: shard.file_name for shard, entry in self._plan}
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        return (json.dumps(index, indent=2) + "\n").encode()

    def _require_space(self) -> None:
        free_bytes = shutil.disk_usage(self.out_dir.parent).free
        if free_bytes < self._total_bytes:
            raise CheckpointError(
                f"{self.out_dir}: the checkpoint needs {self._total_bytes} bytes, the disk has "
                f"{free_bytes} free; free space or choose another disk",
                path=str(self.out_dir),
            )

    def _unconfirmed(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.out_dir}: the checkpoint is there and whole, but the disk did not confirm its "
            f"name ({error.strerror or error}), which a power failure could take back; check the "
            "disk, then run `sync` and keep it, or remove it and repeat",
            path=str(self.out_dir),
        )

    def _disk_error(self, error: OSError) -> CheckpointError:
        return CheckpointError(
            f"{self.out_dir}: writing failed: {error.strerror or error}; nothing was left under "
            f"that name. The tensors need {self._total_bytes} bytes; check the disk and repeat",
            path=str(self.out_dir),
        )


def refuse_used(out_dir: Path) -> None:
    """Raise unless a checkpoint can be created at a path.

    Raises:
        CheckpointError: Something other than an empty directory is there.
    """
    if out_dir.is_dir() and (out_dir.is_symlink() or out_dir.is_mount()):
        # What is written beside it gets its name at the end, which these two keep.
        raise CheckpointError(
            f"{out_dir}: is a link or a mount point, which no export can take the place of; "
            "choose a new directory within it",
            path=str(out_dir),
        )
    if out_dir.is_dir() and not any(out_dir.iterdir()):
        return
    if out_dir.exists() or out_dir.is_symlink():
        raise CheckpointError(
            f"{out_dir}: already exists and is not an empty directory; choose another path or "
            "remove it",
            path=str(out_dir),
        )


def config_with_dtype(config: Mapping[str, object], dtype: str) -> bytes:
    """Return the text of a ``config.json`` whose weights are of another floating dtype.

    transformers wrote ``torch_dtype`` before version 4.56 and writes ``dtype`` since; whichever
    is there is set, in nested configs too.
    """
    updated = _replace_dtype(config, dtype)
    if not {"dtype", "torch_dtype"} & updated.keys():
        updated["dtype"] = dtype
    return (json.dumps(updated, indent=2, sort_keys=True) + "\n").encode()


def _replace_dtype(config: Mapping[str, object], dtype: str) -> dict[str, object]:
    updated: dict[str, object] = {}
    for key, value in config.items():
        if key in {"dtype", "torch_dtype"} and isinstance(value, str):
            updated[key] = dtype
        else:
            updated[key] = _replace_dtype(value, dtype) if isinstance(value, dict) else value
    return updated


def _plan_shards(tensors: Sequence[TensorEntry], max_shard_bytes: int) -> list[_Shard]:
    """Fill shards in the order of names; inside a shard wide dtypes come first.

    That keeps every tensor aligned to its elements, as the format's own writer does.
    """
    if max_shard_bytes < 1 or not tensors:
        raise ValueError(f"needs a tensor and max_shard_bytes >= 1 (got {max_shard_bytes})")
    filled: list[list[TensorEntry]] = [[]]
    room = max_shard_bytes
    for entry in sorted(tensors, key=lambda entry: entry.name):
        if filled[-1] and entry.size_bytes > room:
            filled.append([])
            room = max_shard_bytes
        filled[-1].append(entry)
        room -= entry.size_bytes
    count = len(filled)
    return [
        _Shard(
            SINGLE_FILE if count == 1 else f"model-{index:05d}-of-{count:05d}.safetensors",
            tuple(sorted(entries, key=lambda entry: -_element_bytes(entry))),
        )
        for index, entries in enumerate(filled, start=1)
    ]


def _element_bytes(entry: TensorEntry) -> int:
    return DTYPES[SAFETENSORS_DTYPES[entry.dtype]][1]


def _header(entries: Sequence[TensorEntry]) -> bytes:
    content: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for entry in entries:
        content[entry.name] = {
            "dtype": SAFETENSORS_DTYPES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [position, position + entry.size_bytes],
        }
        position += entry.size_bytes
    text = json.dumps(content, separators=(",", ":")).encode()
    # Spaces up to a multiple of 8 align the data, as the format recommends.
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _write_file(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
