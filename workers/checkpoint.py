"""Reading the weights of Hugging Face checkpoint directories, lazily and suspiciously.

:class:`CheckpointReader` checks the headers of all shards against their files when it opens a
directory, without loading a tensor. ``workers.checkpoint_writer`` writes new ones.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Self, get_args

from configs.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    Problem,
)
from configs.schema import DtypeName
from workers.shard_header import REFUSED_BITS, SAFETENSORS_DTYPES, TensorEntry, read_header
from workers.tied_weights import unify_names

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Below the user's cache: where adapters that were merged onto their base are kept.
ADAPTER_CACHE = ("mergefront", "adapters")

# Weights of these are quantized; older models carry their causal mask in them.
_BYTES = ("uint8", "int8")
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth")


class CheckpointReader:
    """Read-only view of the safetensors weights of a directory.

    Opening checks everything that can be told without reading a tensor. Tensors are
    memory-mapped: processes that read the same checkpoint share one copy in the page cache.

    Attributes:
        directory: Where the checkpoint is.
        config: Content of ``config.json``.
        entries: Name -> tensor, sorted by name; a tied tensor is there once.

    Raises:
        CheckpointNotFoundError: No such directory, or no safetensors weights in it.
        CorruptCheckpointError: Truncated shards, headers that lie, an index that does not fit.
        CheckpointError: Weights that cannot be merged: quantized, LoRA adapters.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        shard_names, indexed = _find_shards(directory)
        self.config = _read_config(directory)
        problems: list[Problem] = []
        entries: dict[str, TensorEntry] = {}
        self._headers: dict[str, list[TensorEntry]] = {}
        for shard in shard_names:
            try:
                found = self._headers[shard] = read_header(directory / shard)
            except ValueError as error:
                problems.append(Problem(shard, str(error)))
                continue
            problems += [
                Problem(shard, f"`{e.name}` is also in {entries[e.name].shard}; keep one of them")
                for e in found
                if e.name in entries
            ]
            entries.update((entry.name, entry) for entry in found)
        complete = not problems
        if complete:
            problems += _check_index(indexed, entries)
        if problems:
            raise CorruptCheckpointError(
                "\n".join([f"{directory}: damaged checkpoint", *(f"  {p}" for p in problems)]),
                problems=problems,
            )
        _refuse_quantized(directory, self.config, entries)
        self._stored_entries = entries
        unified, self._tied = unify_names(self.config, entries)
        self.entries = dict(sorted(unified.items()))
        self._open_shards: dict[str, Tensor] = {}
        self._lock = Lock()

    def tensor(self, name: str) -> "Tensor":
        """Return a tensor as a read-only memory map on the CPU.

        Writing into it would copy pages into this process; nothing here does. It stays valid
        after :meth:`close`.

        Raises:
            KeyError: There is no tensor of that name.
            CorruptCheckpointError: Its file has changed since this was opened.
            CheckpointError: Its file is larger than the memory of this machine.
        """
        if name not in self.entries:
            raise KeyError(name)
        return self.stored_tensor(self._tied.stored.get(name, name))

    def stored_tensor(self, name: str) -> "Tensor":
        """Return a tensor by its name in the files, which may be a second one of a tied tensor.

        Raises:
            KeyError: There is no tensor of that name.
        """
        import torch

        entry = self._stored_entries[name]
        shard, dtype = self._shard(entry.shard), getattr(torch, entry.dtype)
        place = slice(entry.begin, entry.begin + entry.size_bytes)
        if entry.begin % dtype.itemsize:
            # A header of an odd length. A view must begin at a whole element of its storage, so
            # this has a storage of its own, of the same mapped memory.
            data = torch.asarray(shard.untyped_storage()[place], dtype=torch.uint8)
        else:
            data = shard[place]
        return data.view(dtype).view(entry.shape)

    @property
    def duplicates(self) -> Mapping[str, str]:
        """Name in the files -> name of the tensor that it repeats."""
        return self._tied.duplicates

    def is_mapped(self, name: str) -> bool:  # noqa: ARG002 - of this class, all are
        """Say whether :meth:`tensor` gives a memory map, which takes no memory to keep."""
        return True

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, sorted."""
        return tuple(self.directory / shard for shard in self._headers)

    @property
    def deciding_files(self) -> tuple[Path, ...]:
        """All that decides the tensors: the weight files, and the config, which ties some."""
        return (*self.files, self.directory / "config.json")

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size_bytes for entry in self.entries.values())

    @property
    def dtype(self) -> DtypeName:
        """The floating dtype that most elements have."""
        counts: dict[DtypeName, int] = dict.fromkeys(get_args(DtypeName), 0)
        for entry in self.entries.values():
            if entry.dtype in counts:
                counts[entry.dtype] += entry.numel
        return max(counts, key=lambda dtype: counts[dtype])

    def close(self) -> None:
        """Close the files; reading a tensor opens them again."""
        with self._lock:
            self._open_shards.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _shard(self, shard: str) -> "Tensor":
        """Return the bytes of a file, mapped into memory: ``(n,)`` uint8."""
        with self._lock:
            if shard not in self._open_shards:
                path = self.directory / shard
                _require_unchanged(path, self._headers[shard])
                self._open_shards[shard] = _map(path)
            return self._open_shards[shard]


def _require_unchanged(path: Path, header: list[TensorEntry]) -> None:
    """Raise where tensors are no longer where a file's header said: others would be read there."""
    try:
        found = read_header(path)
    except ValueError as error:
        raise CorruptCheckpointError(f"{path}: {error}", path=str(path)) from error
    if found != header:
        raise CorruptCheckpointError(
            f"{path}: holds other tensors than a moment ago; leave checkpoints alone while they "
            "are in use, and run this again",
            path=str(path),
        )


def _map(path: Path) -> "Tensor":
    # Whoever only asks for names does not need torch.
    import torch

    try:
        # As safetensors does it; that makes a storage per tensor, which takes longer than to merge
        # a small one.
        return torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    except RuntimeError as error:
        raise _mapping_error(path, error) from error


def _mapping_error(path: Path, error: RuntimeError) -> CheckpointError:
    """Say why a file whose header is right cannot be mapped: it is larger than the memory."""
    # torch maps files as if they could be written to, which the kernel grants up to the memory.
    return CheckpointError(
        f"{path}: this file of {path.stat().st_size / 1e9:.1f} GB cannot be mapped into the memory "
        f"of this machine ({error}). Split it into smaller shards where there is more memory: "
        '`save_pretrained(..., max_shard_size="5GB")`, or `--max-shard-size 5GB` if it is an '
        "export. Or let Linux map it: `sysctl vm.overcommit_memory=1`",
        path=str(path),
    )


def _find_shards(directory: Path) -> tuple[list[str], Mapping[str, str]]:
    """Return the names of the weight files, and the index's tensor -> shard (may be empty)."""
    if not directory.is_dir():
        was_made = directory.parts[-3:-1] == ADAPTER_CACHE
        advice = (
            "it was made from a LoRA adapter; `mergefront check` on the job makes it again"
            if was_made
            else "check the path"
        )
        raise CheckpointNotFoundError(
            f"{directory}: no such directory; {advice}", path=str(directory)
        )
    if (directory / SINGLE_FILE).is_file():
        return [SINGLE_FILE], {}
    if (directory / INDEX_FILE).is_file():
        indexed = _read_index(directory / INDEX_FILE)
        return sorted(set(indexed.values())), indexed
    found = sorted(path.name for path in directory.iterdir() if path.is_file())
    if "adapter_config.json" in found:
        advice = "it holds a LoRA adapter; merge the adapter into its base and name the result"
    elif pickled := [name for name in found if name in _PICKLED_WEIGHTS]:
        advice = (
            f"it holds {pickled[0]}, a pickle, which is never loaded; convert it: load it with "
            "transformers and call save_pretrained"
        )
    else:
        advice = f"found {', '.join(found[:5]) or 'an empty directory'}; copy the weights there"
    raise CheckpointNotFoundError(
        f"{directory}: neither {SINGLE_FILE} nor {INDEX_FILE}; {advice}", path=str(directory)
    )


def _read_json(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(
            f"{path}: not readable as JSON ({error}); copy it again", path=str(path)
        ) from error
    if not isinstance(content, dict):
        raise CorruptCheckpointError(
            f"{path}: must hold a JSON object, found {type(content).__name__}; copy it again"
        )
    return content


def _read_config(directory: Path) -> dict[str, object]:
    if not (directory / "config.json").is_file():
        raise CheckpointNotFoundError(
            f"{directory}: no config.json beside the weights; copy it there", path=str(directory)
        )
    return _read_json(directory / "config.json")


def _read_index(path: Path) -> dict[str, str]:
    weight_map = _read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CorruptCheckpointError(f"{path}: has no `weight_map`; copy it again", path=str(path))
    for name, shard in weight_map.items():
        # A name such as ../x would read outside the directory.
        if not isinstance(shard, str) or not re.fullmatch(r"[\w.-]+\.safetensors", shard):
            raise CorruptCheckpointError(
                f"{path}: `{name}` is in `{shard}`, which is no file name of a shard; copy it again"
            )
    return weight_map


def _check_index(indexed: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> list[Problem]:
    if not indexed:
        return []
    problems = [
        Problem(INDEX_FILE, f"puts `{name}` into {shard}, which does not hold it; copy both again")
        for name, shard in indexed.items()
        if name not in entries or entries[name].shard != shard
    ]
    problems += [
        Problem(INDEX_FILE, f"does not name `{name}`, which is in {entry.shard}; copy it again")
        for name, entry in entries.items()
        if name not in indexed
    ]
    return problems


def _is_mask(shape: tuple[int, ...]) -> bool:
    """Say whether a tensor has the shape of the causal mask that older models carry."""
    return len(shape) == 4 and shape[:2] == (1, 1) and shape[2] == shape[3]


def _refuse_quantized(
    directory: Path, config: Mapping[str, object], entries: Mapping[str, TensorEntry]
) -> None:
    found = [
        f"{entry.name} ({SAFETENSORS_DTYPES.get(entry.dtype, entry.dtype)})"
        for entry in entries.values()
        if entry.dtype in REFUSED_BITS or (entry.dtype in _BYTES and not _is_mask(entry.shape))
    ]
    method = config.get("quantization_config")
    if method is None and not found:
        return
    if isinstance(method, dict):
        found.insert(0, f"quantization_config {method.get('quant_method', 'in config.json')}")
    raise CheckpointError(
        f"{directory}: quantized or unsupported weights: {', '.join(found[:3])}"
        f"{f' and {len(found) - 3} more' if len(found) > 3 else ''}; "
        "merge the float32, bfloat16 or float16 originals",
        path=str(directory),
    )
