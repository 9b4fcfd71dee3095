"""From a recipe to weights: into a live model, or into a checkpoint directory.

Both go through :meth:`SourcePool.merge`, tensor by tensor, so what is exported is bit for bit
what was scored (D1). Sources stay memory-mapped (D7); memory beyond them and the result is one
tensor at most.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.errors import IncompatibleCheckpointsError, Problem
from configs.recipe import MergeRecipe
from workers.architecture import unused_tensors
from workers.checkpoint import CheckpointReader
from workers.checkpoint_writer import (
    DEFAULT_SHARD_BYTES,
    SIDE_FILES,
    CheckpointWriter,
    config_with_dtype,
    refuse_used,
)
from workers.digest import WeightsDigest, tensor_bytes, weights_digest
from workers.shard_header import TensorEntry
from workers.source_pool import BackendChoice, SourcePool
from workers.sources import Sources
from workers.vocabulary import companion


class Materializer:
    """Writes merged weights into a live model, again and again.

    Keeps the checkpoints open between calls. Every tensor is written whole every time, so
    materializing A, then B, then A gives A's bits.

    Args:
        sources: The pool that recipes are made of.
        backend: How tensors are merged; does not change the bits.
    """

    def __init__(self, sources: Sources, *, backend: BackendChoice = "auto") -> None:
        self._sources = sources
        self._backend: BackendChoice = backend
        self._pool = SourcePool(sources, backend=backend)
        self._recipe: MergeRecipe | None = None

    def into(self, model: nn.Module, recipe: MergeRecipe) -> None:
        """Write the merge that a recipe names into a model's parameters, in place.

        Beyond the model it needs memory for one tensor per contributing checkpoint on a device
        other than the CPU, and for one tensor where the model's dtype is wider than the
        recipe's. After an error the model's weights are those of no recipe.

        Args:
            model: A transformers model of the pool's architecture; parameters of the recipe's
                dtype, or of a wider one that holds the merged values exactly. Tied weights are
                written once.
            recipe: Names sources of the pool.

        Raises:
            IncompatibleCheckpointsError: The model's tensors are not those of the checkpoints.
            CheckpointError: The recipe names a checkpoint that is not in the pool.
        """
        if recipe.vocabulary != self._pool.vocabulary:
            self._pool.close()
            self._pool = SourcePool(
                self._sources, backend=self._backend, vocabulary=recipe.vocabulary
            )
        merged_dtype = getattr(torch, recipe.dtype)
        targets = self._bind(model, merged_dtype)
        self._recipe = None
        with torch.no_grad():
            for name, target in targets.items():
                direct = target.is_contiguous() and (
                    target.dtype == merged_dtype or not target.is_floating_point()
                )
                if direct:
                    self._pool.merge(recipe, name, target.view(-1))
                else:
                    merged = torch.empty(target.numel(), dtype=merged_dtype, device=target.device)
                    self._pool.merge(recipe, name, merged)
                    target.copy_(merged.view(target.shape))
        self._recipe = recipe

    def digest_of(self, model: nn.Module) -> str:
        """Return the digest of the weights that :meth:`into` wrote last.

        Equals what :func:`write_checkpoint` returns for the same recipe.

        Raises:
            ValueError: Nothing was written yet, or the last attempt failed.
        """
        if (recipe := self._recipe) is None:
            raise ValueError("nothing was materialized; call `into` first")
        state: dict[str, Tensor] = model.state_dict()

        def merged(entry: TensorEntry) -> Tensor:
            dtype: torch.dtype = getattr(torch, entry.dtype)
            if entry.name in state:
                # Narrowing back is exact: `into` refuses models that do not hold merged values.
                return state[entry.name].to(dtype)
            tensor = torch.empty(entry.numel, dtype=dtype)
            self._pool.merge(recipe, entry.name, tensor)
            return tensor.view(entry.shape)

        entries = _merged_entries(self._pool.reference, recipe.dtype)
        return weights_digest((entry.name, merged(entry)) for entry in entries)

    def close(self) -> None:
        """Close the checkpoints."""
        self._pool.close()

    def _bind(self, model: nn.Module, merged_dtype: torch.dtype) -> dict[str, Tensor]:
        """Find the live tensor of every tensor of the checkpoints, or say what does not fit."""
        state: dict[str, Tensor] = model.state_dict()
        entries = self._pool.reference.entries
        targets = {name: state[name] for name in entries if name in state}
        unused = unused_tensors(model)
        problems = [
            Problem(name, "is in the checkpoints, but the model has no tensor of that name")
            for name in entries
            if name not in state and not unused.search(name)
        ]
        written: dict[int, str] = {}
        for name, target in targets.items():
            if message := _misfit(entries[name], target, merged_dtype):
                problems.append(Problem(name, message))
            elif (other := written.setdefault(target.data_ptr(), name)) != name and target.numel():
                problems.append(
                    Problem(
                        name,
                        f"the model ties it to `{other}`, the checkpoints hold both; load the "
                        "model with `tie_word_embeddings=False`, or save the checkpoints tied",
                    )
                )
        covered = {target.data_ptr() for target in targets.values()}
        problems += [
            Problem(name, "is in the model, but the checkpoints have no tensor of that name")
            for name, parameter in model.named_parameters()
            if parameter.data_ptr() not in covered and parameter.numel()
        ]
        if problems:
            raise IncompatibleCheckpointsError(
                f"{type(model).__name__} cannot take {self._pool.reference.directory}'s weights",
                problems,
            )
        return targets


def write_checkpoint(
    recipe: MergeRecipe,
    sources: Sources,
    out_dir: Path,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    extra_files: Mapping[str, bytes] | None = None,
    device: str = "cpu",
    backend: BackendChoice = "auto",
) -> str:
    """Write the merge that a recipe names as a Hugging Face checkpoint directory.

    Streams: never holds more than one merged tensor. Configuration, tokenizer and chat template
    are those of the base, or of the first checkpoint; where vocabularies differ, tokenizer and
    template are those that the recipe names. The same arguments give the same bytes.

    Args:
        recipe: Names sources of the pool.
        sources: The pool.
        out_dir: Must not exist, or be empty; appears whole or not at all.
        max_shard_bytes: Largest size of a shard's tensors.
        extra_files: Name -> content of further files; they replace copied ones.
        device: Where tensors are merged: the one that scored, where its bits differ.
        backend: How tensors are merged; does not change the bits.

    Returns:
        The digest of the written weights (``workers.digest.weights_digest``).

    Raises:
        CheckpointError: The target is in use, the disk is full, or a source is not usable.
    """
    refuse_used(out_dir)
    extra = dict(extra_files or {})
    digest = WeightsDigest()
    home = companion(sources, recipe.vocabulary).directory
    with SourcePool(sources, backend=backend, vocabulary=recipe.vocabulary) as pool:
        reference = pool.reference
        extra.setdefault("config.json", config_with_dtype(reference.config, recipe.dtype))
        for name in SIDE_FILES:
            if name not in extra and (home / name).is_file():
                extra[name] = (home / name).read_bytes()
        entries = {entry.name: entry for entry in _merged_entries(reference, recipe.dtype)}
        with CheckpointWriter(
            out_dir, list(entries.values()), max_shard_bytes=max_shard_bytes
        ) as writer:
            buffers: dict[str, Tensor] = {}
            for name in writer.order:
                entry = entries[name]
                merged = _buffer(buffers, entry, entries, device)
                pool.merge(recipe, name, merged)
                data = tensor_bytes(merged)
                digest.add(name, entry.dtype, entry.shape, data)
                writer.write(name, data)
            for name, content in sorted(extra.items()):
                writer.add_file(name, content)
    return digest.hexdigest()


def _buffer(
    buffers: dict[str, Tensor], entry: TensorEntry, entries: Mapping[str, TensorEntry], device: str
) -> Tensor:
    """Return an ``(n,)`` view of the one buffer of the tensor's dtype.

    One buffer for all tensors: fresh pages cost more than the merge that fills them.
    """
    if entry.dtype not in buffers:
        largest = max(other.numel for other in entries.values() if other.dtype == entry.dtype)
        buffers[entry.dtype] = torch.empty(
            largest, dtype=getattr(torch, entry.dtype), device=device
        )
    return buffers[entry.dtype][: entry.numel]


def _merged_entries(reference: CheckpointReader, dtype: str) -> list[TensorEntry]:
    """Return the tensors of a merge: those of the reference, floating ones in another dtype."""
    element_bytes = getattr(torch, dtype).itemsize
    return [
        TensorEntry(entry.name, dtype, entry.shape, "", entry.numel * element_bytes)
        if entry.is_floating
        else entry
        for entry in reference.entries.values()
    ]


def _misfit(entry: TensorEntry, target: Tensor, merged_dtype: torch.dtype) -> str | None:
    """Say why a live tensor cannot take a merged one, or None."""
    if tuple(target.shape) != entry.shape:
        return f"the model expects {tuple(target.shape)}, the checkpoints hold {entry.shape}"
    if target.device.type == "meta":
        return "the model was loaded without memory for it (offloaded); load it onto one device"
    if not entry.is_floating:
        exact = target.dtype == getattr(torch, entry.dtype)
    else:
        exact = torch.promote_types(target.dtype, merged_dtype) == target.dtype
    if not exact:
        found = str(target.dtype).removeprefix("torch.")
        wanted = str(merged_dtype).removeprefix("torch.") if entry.is_floating else entry.dtype
        return f"the model holds it in {found}, which cannot hold {wanted} exactly; load it so"
    return None
