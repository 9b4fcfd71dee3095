"""Names for tensors: digests of merged weights and of source checkpoints.

:func:`weights_digest` is fast and says whether two sets of weights are the same bits: the
worker's live model, an exported directory. :func:`source_digest` is SHA-256, names a source
checkpoint in every recipe for good, and is remembered between runs.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from filelock import FileLock, Timeout

from workers.checkpoint import CheckpointReader
from workers.shard_header import TensorEntry
from workers.user_cache import user_cache

if TYPE_CHECKING:
    from torch import Tensor

# Part of the cache's keys: another way to digest must not find the values of this one.
_SOURCE_DIGEST_VERSION = 1
_LOCK_TIMEOUT_S = 10.0


def tensor_bytes(tensor: "Tensor") -> memoryview:
    """Return the bytes of a tensor in row-major order; no copy where it lies so on the CPU."""
    import torch

    flat = tensor.detach().contiguous().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


class WeightsDigest:
    """xxh3-128 over named tensors, added one at a time in any order.

    Depends on names, dtypes, shapes and bits, and on nothing else: not on the order, on shards,
    or on the device.
    """

    def __init__(self) -> None:
        self._lines: list[str] = []

    def add(self, name: str, dtype: str, shape: tuple[int, ...], data: memoryview) -> None:
        """Add a tensor; ``dtype`` as torch names it, without the prefix."""
        content = xxhash.xxh3_128()
        content.update(data)
        self.add_content(name, dtype, shape, content)

    def add_content(
        self, name: str, dtype: str, shape: tuple[int, ...], content: xxhash.xxh3_128
    ) -> None:
        """Add a tensor whose bytes were given to a hash part by part."""
        self._lines.append(_line(name, dtype, shape, content.hexdigest()))

    def hexdigest(self) -> str:
        """Return the digest of what was added, as 32 hexadecimal digits."""
        return xxhash.xxh3_128_hexdigest("".join(sorted(self._lines)).encode())


def weights_digest(tensors: Iterable[tuple[str, "Tensor"]]) -> str:
    """Return the digest of named tensors, of a live model or of files; each is read once."""
    digest = WeightsDigest()
    for name, tensor in tensors:
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.add(name, dtype, tuple(tensor.shape), tensor_bytes(tensor))
    return digest.hexdigest()


def source_digest(reader: CheckpointReader, *, cache: "DigestCache | None" = None) -> str:
    """Return the SHA-256 that names a checkpoint's tensors, as 64 hexadecimal digits.

    Configuration and tokenizer are not part of it. Reads every byte once, unless the cache
    knows these very files, unchanged.
    """

    def digest() -> str:
        return tensors_digest(reader.entries.values(), reader.tensor)

    return (cache or DigestCache()).find(reader.deciding_files, digest)


def tensors_digest(entries: Collection[TensorEntry], tensor: Callable[[str], "Tensor"]) -> str:
    """Return the SHA-256 that names some tensors, as 64 hexadecimal digits; reads every byte.

    Args:
        entries: Name, dtype and shape of each, in any order.
        tensor: Returns the tensor of a name; called from several threads.
    """

    def line(entry: TensorEntry) -> str:
        sha256 = hashlib.sha256(tensor_bytes(tensor(entry.name))).hexdigest()
        return _line(entry.name, entry.dtype, entry.shape, sha256)

    # Hashing releases the interpreter lock.
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as executor:
        lines = list(executor.map(line, entries))
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def undigested_bytes(readers: Iterable[CheckpointReader]) -> int:
    """Return how many bytes :func:`source_digest` would read: those that no cache knows."""
    cache = DigestCache()
    return sum(reader.size_bytes for reader in readers if cache.get(reader.deciding_files) is None)


def _line(name: str, dtype: str, shape: tuple[int, ...], content: str) -> str:
    return json.dumps([name, dtype, list(shape), content]) + "\n"


class DigestCache:
    """Remembers source digests on disk, for all processes of a user.

    A cache that cannot be read or written is no error: the digest is computed again.

    Args:
        path: The JSON file; None is ``$XDG_CACHE_HOME/mergefront/digests.json``.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or user_cache() / "digests.json"

    def get(self, files: Iterable[Path]) -> str | None:
        """Return the digest recorded for these files as they are now, or None."""
        return self._read().get(_files_key(files))

    def find(self, files: Iterable[Path], compute: Callable[[], str]) -> str:
        """Return the digest of these files, computed and recorded where it is not known.

        Of files that change while it is computed, it is recorded for what they were before.
        """
        key = _files_key(files)
        known = self._read().get(key)
        if known is None:
            known = compute()
            self._put(key, known)
        return known

    def _put(self, key: str, digest: str) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_suffix(".lock"), timeout=_LOCK_TIMEOUT_S):
                content = json.dumps({**self._read(), key: digest}, indent=1, sort_keys=True)
                partial = self.path.with_suffix(f".{secrets.token_hex(4)}")
                partial.write_text(content, encoding="utf-8")
                # Readers do not lock: they see the old file or the new one.
                partial.replace(self.path)
        except (OSError, Timeout):
            return

    def _read(self) -> Mapping[str, str]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}


def _files_key(files: Iterable[Path]) -> str:
    """Name files as they are now.

    Nodes may share the cache and not the files: a copy can have the path, size and time of the
    original, and other bytes. No copy has its inode's number and time of change as well, which
    nobody can set; and of a shared file system every node sees the same, so that one of them reads
    for all.
    """
    stats = [(str(path.resolve()), path.stat()) for path in files]
    facts = [
        [name, stat.st_size, stat.st_mtime_ns, stat.st_ino, stat.st_ctime_ns]
        for name, stat in stats
    ]
    return json.dumps([_SOURCE_DIGEST_VERSION, *facts])
