"""PEFT LoRA adapters as checkpoints: merged onto their base once, into an ordinary directory.

Start at :class:`Adapter`. A layer with an adapter is W_i = W_0 + s_i B_i A_i (Hu et al.,
arXiv:2106.09685; s = alpha / r). Its task vector is s_i B_i A_i, so task arithmetic of
adapters is W = W_0 + sum_i w_i s_i B_i A_i.

The result is streamed to disk, tensor by tensor, and kept under a name made of everything that it
depends on, so that it is made once.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from configs.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from workers.architecture import tied_weights, vocabulary_size
from workers.checkpoint import ADAPTER_CACHE, INDEX_FILE, SINGLE_FILE, CheckpointReader
from workers.checkpoint_writer import CheckpointWriter
from workers.digest import DigestCache, source_digest, tensor_bytes
from workers.lora_config import CONFIG_FILE, LoraConfig
from workers.shard_header import FLOATING, TensorEntry, read_header
from workers.side_files import SIDE_FILES
from workers.tokenizer_match import has_tokenizer
from workers.user_cache import user_cache

if TYPE_CHECKING:
    import torch
    from torch import Tensor

logger = logging.getLogger(__name__)

WEIGHTS_FILE = "adapter_model.safetensors"

# Part of the names of merged directories: another way to merge must not find those of this one.
_MERGE_VERSION = 1
_PREFIX = "base_model.model."
_FACTORS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
}
# Elements that are computed at once in float64, which stay in the processor's cache: twice
# as fast as 2^22 of them.
_CHUNK_ELEMENTS = 2**17
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Update:
    """How one tensor of the base changes; the strings are names in the adapter's file.

    ``factors``: names of left and right, whose product is added; each is transposed where
    ``transposed``. ``replaced``: what takes the place of the base's values, before that.
    """

    factors: tuple[str, str] | None = None
    transposed: bool = False
    scaling: float = 0.0
    replaced: str | None = None


class Adapter:
    """A LoRA adapter that fits a base: checked by headers, no tensor is read.

    Args:
        directory: Holds ``adapter_config.json`` and ``adapter_model.safetensors``.
        base: What it is merged onto.

    Raises:
        CheckpointNotFoundError: There are no safetensors weights.
        CorruptCheckpointError: A file is damaged.
        CheckpointError: It changes more than low-rank updates say, or belongs to another base.
    """

    def __init__(self, directory: Path, base: CheckpointReader) -> None:
        self.directory = directory
        self._base = base
        self._config = LoraConfig.read(directory)
        self._path = directory / WEIGHTS_FILE
        if not self._path.is_file():
            raise CheckpointNotFoundError(
                f"{directory}: {CONFIG_FILE} without {WEIGHTS_FILE}; only safetensors are read: "
                "load the adapter with `peft` and call save_pretrained",
                path=str(directory),
            )
        try:
            entries = read_header(self._path)
        except ValueError as error:
            raise CorruptCheckpointError(
                f"{self._path}: damaged adapter: {error}", path=str(self._path)
            ) from error
        self._entries = {entry.name: entry for entry in entries}
        # Of the longest table of tokens that it holds for one of the base.
        self._table_rows = 0
        self._updates, problems = self._plan()
        if problems:
            rest = len(problems) - _SHOWN
            shown = "; ".join(problems[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")
            raise CheckpointError(
                f"{directory}: this adapter cannot be merged onto {base.directory}: {shown}. "
                f"{self._advice()}",
                path=str(directory),
            )

    def merge(self, cache: Path | None = None) -> Path:
        """Return the directory of the base with this adapter, which is written if it is missing.

        It computes base + scaling * B A in float64 and rounds once to the dtype of the base.
        Memory: one tensor of the result. The directory appears whole or not at all, and processes
        that want the same one wait for the first.

        Args:
            cache: Holds the directories; None is ``$XDG_CACHE_HOME/mergefront/adapters``.

        Raises:
            CheckpointError: The disk is full, or the cache cannot be written.
        """
        root = cache or user_cache() / ADAPTER_CACHE[-1]
        files = self._side_files()
        target = root / self._digest(files)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with FileLock(root / f"{target.name}.lock"):
                if not target.is_dir():
                    logger.info("merging the adapter %s into %s", self.directory, target)
                    self._write_once(target, files)
        except OSError as error:
            raise CheckpointError(
                f"{self.directory}: the adapter is merged into {root}, which cannot be written: "
                f"{error.strerror or error}; set XDG_CACHE_HOME to a directory with room",
                path=str(root),
            ) from error
        return target

    def _plan(self) -> tuple[dict[str, _Update], list[str]]:
        """Say what happens to which tensor of the base, and what cannot be."""
        factors: dict[str, dict[str, str]] = {}
        replaced: dict[str, str] = {}
        problems: list[str] = []
        for name in self._entries:
            suffix = next((suffix for suffix in _FACTORS if name.endswith(suffix)), None)
            layer = name.removeprefix(_PREFIX).removesuffix(suffix or "")
            if not name.startswith(_PREFIX) or (suffix is None and "lora_" in name):
                problems.append(f"`{name}` is nothing that LoRA adapters of linear layers hold")
            elif suffix is not None:
                factors.setdefault(layer, {})[_FACTORS[suffix]] = name
            else:
                replaced[re.sub(r"\.base_layer(\.\w+)$", r"\1", layer)] = name
        updates: dict[str, _Update] = {}
        for target, name in replaced.items():
            if (entry := self._target(target, problems)) is None:
                continue
            found = self._entries[name]
            self._see_table(entry, found.shape[0] if found.shape else 0)
            if found.shape != entry.shape or found.dtype not in FLOATING:
                problems.append(
                    f"`{name}` is {found.dtype} {found.shape}, the base has {entry.shape}"
                )
            updates[entry.name] = _Update(replaced=name)
        for layer, pair in factors.items():
            if (entry := self._target(f"{layer}.weight", problems)) is None:
                continue
            known = updates.get(entry.name, _Update())
            update = self._low_rank(layer, pair, entry, problems)
            updates[entry.name] = _Update(
                update.factors, update.transposed, update.scaling, known.replaced
            )
        return updates, problems + self._tied_problems(updates)

    def _see_table(self, entry: TensorEntry, rows: int) -> None:
        """Notice how many tokens an update of a table of tokens is for."""
        if entry.shape[0] == vocabulary_size(self._base.config):
            self._table_rows = max(self._table_rows, rows)

    def _advice(self) -> str:
        """Say what to do about an adapter that does not fit."""
        rows = vocabulary_size(self._base.config)
        if rows is None or self._table_rows <= rows:
            return "Name the base that it was trained on in models.base"
        return (
            f"It brings new tokens ({self._table_rows} rows, the base has {rows}): load the base, "
            f"resize_token_embeddings({self._table_rows}), merge the adapter into it with `peft` "
            "(`merge_and_unload`), save the model with the adapter's tokenizer, and name that, "
            "with `models.vocabulary: pad`"
        )

    def _target(self, name: str, problems: list[str]) -> TensorEntry | None:
        """Find a tensor of the base by the name that the adapter's model gave it.

        A checkpoint of the body of a model has its names without the body's prefix.
        """
        entries = self._base.entries
        for candidate in (name, name.partition(".")[2]):
            if candidate in entries and entries[candidate].is_floating:
                return entries[candidate]
        if (kept := tied_weights(self._base.config).get(name)) in entries:
            problems.append(f"it changes `{name}`, which the base ties to `{kept}`")
        else:
            problems.append(f"it changes `{name}`, which the base does not have")
        return None

    def _low_rank(
        self, layer: str, pair: Mapping[str, str], entry: TensorEntry, problems: list[str]
    ) -> _Update:
        if len(pair) < 2:
            problems.append(f"of `{layer}` it holds only `{next(iter(pair.values()))}`")
            return _Update()
        a, b = (self._entries[pair[side]] for side in ("a", "b"))
        if {len(a.shape), len(b.shape), len(entry.shape)} != {2} or not {
            a.dtype,
            b.dtype,
        } <= FLOATING:
            problems.append(f"`{layer}` is no linear layer: {a.name} is {a.dtype} {a.shape}")
            return _Update()
        rank = self._config.rank_of(layer)
        if a.shape[0] != rank or b.shape[1] != rank:
            problems.append(
                f"`{layer}` has rank {rank} by {CONFIG_FILE}, but matrices {b.shape} x {a.shape}"
            )
        is_embedding = a.name.endswith("lora_embedding_A")
        self._see_table(entry, a.shape[1] if is_embedding else b.shape[0])
        out_by_in = (b.shape[0], a.shape[1])
        transposed = is_embedding or (
            entry.shape != out_by_in
            if out_by_in[0] != out_by_in[1]
            else self._config.fan_in_fan_out
        )
        if entry.shape != (out_by_in[::-1] if transposed else out_by_in):
            problems.append(
                f"`{layer}` is changed by {b.shape} x {a.shape}, the base has {entry.shape}"
            )
        names = (a.name, b.name) if transposed else (b.name, a.name)
        return _Update(names, transposed, self._config.scaling_of(layer))

    def _tied_problems(self, updates: Mapping[str, _Update]) -> list[str]:
        """Embeddings that are also the output head: changing one would change the other."""
        return [
            f"it changes `{kept}` and not `{other}`, which the base ties to it; untie the base "
            "first (`tie_word_embeddings` false, both stored)"
            for other, kept in tied_weights(self._base.config).items()
            if kept in updates
        ]

    def _side_files(self) -> dict[str, bytes]:
        """Configuration of the base; tokenizer of the adapter where it brings one."""
        own = self.directory if has_tokenizer(self.directory) else self._base.directory
        files = {"config.json": self._base.directory / "config.json"}
        for name in SIDE_FILES:
            home = self._base.directory if name == "generation_config.json" else own
            files[name] = home / name
        return {name: path.read_bytes() for name, path in files.items() if path.is_file()}

    def _digest(self, files: Mapping[str, bytes]) -> str:
        parts = {
            "version": _MERGE_VERSION,
            "base": source_digest(self._base),
            "weights": _file_digest(self._path),
            "config": hashlib.sha256((self.directory / CONFIG_FILE).read_bytes()).hexdigest(),
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in files.items()},
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _write_once(self, target: Path, files: Mapping[str, bytes]) -> None:
        try:
            self._write(target, files)
        except CheckpointError:
            # Another machine was faster that shares the cache, but not its locks: equal bytes.
            if not target.is_dir():
                raise

    def _write(self, target: Path, files: Mapping[str, bytes]) -> None:
        from safetensors import safe_open

        entries = self._base.entries
        with (
            safe_open(str(self._path), framework="pt") as weights,
            CheckpointWriter(target, list(entries.values())) as writer,
        ):
            for name in writer.order:
                tensor = self._base.tensor(name)
                update = self._updates.get(name)
                if update is not None:
                    if update.replaced is not None:
                        tensor = weights.get_tensor(update.replaced).to(tensor.dtype)
                    if update.factors is not None:
                        left, right = (weights.get_tensor(factor) for factor in update.factors)
                        if update.transposed:
                            left, right = left.T, right.T
                        tensor = add_low_rank(tensor, left, right, update.scaling)
                writer.write(name, tensor_bytes(tensor))
            for name, content in sorted(files.items()):
                writer.add_file(name, content)


def is_adapter(directory: Path) -> bool:
    """Say whether a directory holds an adapter, and no weights of a whole model."""
    weights: Iterable[str] = (SINGLE_FILE, INDEX_FILE)
    return (directory / CONFIG_FILE).is_file() and not any(
        (directory / name).is_file() for name in weights
    )


def is_merged_adapter(directory: Path) -> bool:
    """Say whether a directory is one that :meth:`Adapter.merge` made in a user's cache."""
    return directory.parts[-3:-1] == ADAPTER_CACHE


def add_low_rank(base: "Tensor", left: "Tensor", right: "Tensor", scaling: float) -> "Tensor":
    """Return base + scaling * left @ right, computed in float64 and rounded once.

    Sums of products are off by some 1e-16, far below a unit of the result, so that it does not
    matter which BLAS computed them.

    Args:
        base: ``(m, n)``, float32, bfloat16 or float16.
        left: ``(m, r)``.
        right: ``(r, n)``.
        scaling: Dimensionless.

    Returns:
        ``(m, n)``, of the dtype of ``base``.
    """
    import torch

    merged = torch.empty(base.shape, dtype=base.dtype)
    wide = right.double()
    rows = max(1, _CHUNK_ELEMENTS // max(base.shape[1], 1))
    for begin in range(0, base.shape[0], rows):
        part = slice(begin, begin + rows)
        total = torch.addmm(base[part].double(), left[part].double(), wide, alpha=scaling)
        merged[part] = _round_once(total, base.dtype)
    return merged


def _round_once(values: "Tensor", dtype: "torch.dtype") -> "Tensor":
    """Round float64 to a dtype; torch would round half precision twice, by way of float32."""
    import torch

    if dtype == torch.float32:
        return values.float()
    # Rounding to odd in between keeps what the second rounding needs (Boldo and Melquiond 2008).
    near = values.float()
    back, bits = near.double(), near.view(torch.int32)
    toward_zero = bits - (back.abs() > values.abs()).int()
    odd = toward_zero | (back != values).int()
    return odd.view(torch.float32).to(dtype)


def _file_digest(path: Path) -> str:
    def digest() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return DigestCache().find([path], digest)
