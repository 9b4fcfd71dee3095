"""From a recipe to a checkpoint directory; ``workers.materialize`` writes into a live model.

Both go through :meth:`SourcePool.merge`, part by part, so what is exported is bit for bit what was
scored (D1).
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from configs.recipe import MergeRecipe
from workers.checkpoint import CheckpointReader
from workers.checkpoint_writer import (
    DEFAULT_SHARD_BYTES,
    CheckpointWriter,
    config_with_dtype,
    refuse_used,
)
from workers.merge_backend import BackendChoice
from workers.part_stream import write_parts
from workers.residency import TensorStore, measure_memory
from workers.shard_header import TensorEntry
from workers.side_files import side_files
from workers.source_pool import SourcePool
from workers.sources import Sources
from workers.vocabulary import companion


def write_checkpoint(
    recipe: MergeRecipe,
    sources: Sources,
    out_dir: Path,
    *,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
    extra_files: Mapping[str, bytes] | None = None,
    device: str = "cpu",
    backend: BackendChoice = "auto",
    finish: Callable[[str], Mapping[str, bytes]] | None = None,
) -> str:
    """Write the merge that a recipe names as a Hugging Face checkpoint directory.

    Streams: tensors are merged in parts of 8 MiB, several at a time, in the memory from which the
    parts before are digested and written. Configuration, tokenizer and chat template are those of
    the base, or of the first checkpoint; where vocabularies differ, tokenizer and template are
    those that the recipe names. The same arguments give the same bytes.

    Beyond what torch needs (a compiler's memory among it), the process's own memory grows by the
    48 MiB in which a shard is made, twice that where the next one begins; DELLA, which ranks, needs
    some 40 bytes per element of a part and checkpoint besides, and TIES 32 MiB for what it knows of
    tensors. Checkpoints larger than the memory that is free leave it as they are read.

    Args:
        recipe: Names sources of the pool.
        sources: The pool.
        out_dir: Must not exist, or be empty; appears whole or not at all.
        max_shard_bytes: Largest size of a shard's tensors.
        extra_files: Name -> content of further files; they replace copied ones.
        device: Where tensors are merged: the one that scored, where its bits differ.
        backend: How tensors are merged; does not change the bits.
        finish: Called with the digest before the directory appears, returns files that need it;
            what it raises prevents that.

    Returns:
        The digest of the written weights (``workers.digest.weights_digest``).

    Raises:
        CheckpointError: The target is in use, the disk is full, a source is not usable, or a
            merged element is not finite.
    """
    refuse_used(out_dir)
    extra = dict(extra_files or {})
    home = companion(sources, recipe.vocabulary).directory
    with SourcePool(sources, backend=backend, vocabulary=recipe.vocabulary) as pool:
        available = measure_memory(torch.device("cpu")).host_available
        pool.store = TensorStore("streamed" if pool.size_bytes > available else "mapped")
        reference = pool.reference
        extra.setdefault("config.json", config_with_dtype(reference.config, recipe.dtype))
        for name, path in side_files(home).items():
            if name not in extra:
                extra[name] = path.read_bytes()
        entries = {entry.name: entry for entry in merged_entries(reference, recipe.dtype)}
        with CheckpointWriter(
            out_dir, list(entries.values()), max_shard_bytes=max_shard_bytes
        ) as writer:
            digest = write_parts(
                writer,
                entries,
                lambda name, part, block: pool.prepare(recipe, name, part, block),
                device=torch.device(device),
                # To take gigabytes of files out of this process takes as long as a block's write.
                merged=pool.close,
            )
            if finish is not None:
                extra |= finish(digest)
            for name, content in sorted(extra.items()):
                writer.add_file(name, content)
    return digest


def merged_entries(reference: CheckpointReader, dtype: str) -> list[TensorEntry]:
    """Return the tensors of a merge: those of the reference, floating ones in another dtype."""
    element_bytes = getattr(torch, dtype).itemsize
    return [
        TensorEntry(entry.name, dtype, entry.shape, "", entry.numel * element_bytes)
        if entry.is_floating
        else entry
        for entry in reference.entries.values()
    ]
