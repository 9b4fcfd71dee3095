"""The open checkpoints of a search, and the one place that merges a tensor of theirs."""

import logging
from typing import Literal, Self

import torch
from torch import Tensor

from configs.errors import CheckpointError
from configs.recipe import MergeRecipe, Source, Vocabulary
from workers.compiled import is_compiler_failure, is_worthwhile
from workers.kernels import Backend, MergeTerm, TensorMerge, merge_flat
from workers.methods import get_method
from workers.sources import Sources
from workers.statistics import StatisticsCache
from workers.vocabulary import open_readers

logger = logging.getLogger(__name__)

BackendChoice = Backend | Literal["auto"]
"""``auto`` compiles where a compiler is found and the model is large enough to be worth it."""


class SourcePool:
    """The open checkpoints of a search, found by their digests.

    Args:
        sources: From :func:`workers.sources.resolve_sources`.
        backend: How tensors are merged; does not change the bits.
        vocabulary: Of the recipes that will be merged.

    Attributes:
        vocabulary: As given.
        reference: Reader of the base, or of the first checkpoint: it decides the tensors.
    """

    def __init__(
        self,
        sources: Sources,
        *,
        backend: BackendChoice = "auto",
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self._backend: BackendChoice = backend
        self.vocabulary = vocabulary
        self._statistics = StatisticsCache()
        readers = open_readers(sources, vocabulary)
        self._readers = {s.digest: readers[s.name] for s in reversed(sources.everything)}
        self.reference = self._readers[sources.reference.digest]
        self._num_elements = sum(entry.numel for entry in self.reference.entries.values())

    def merge(self, recipe: MergeRecipe, name: str, out: Tensor) -> None:
        """Merge one tensor into ``out``, ``(n,)``, of the recipe's dtype, on any device.

        Tensors that are not floating (counters, masks) are those of the reference.

        Raises:
            CheckpointError: The recipe names a checkpoint that is not in the pool, or a
                checkpoint that lacks the tensor.
            ValueError: The tensor is not in exactly one group.
        """
        if not self.reference.entries[name].is_floating:
            out.copy_(self.reference.tensor(name).reshape(-1))
            return
        backend = self._choose_backend(out.device)
        try:
            self._run(recipe, name, out, backend)
        except (RuntimeError, OSError) as error:
            if self._backend != "auto" or backend == "eager" or not is_compiler_failure(error):
                raise
            logger.warning("merging without a compiler from now on, which is slower: %s", error)
            self._backend = "eager"
            self._run(recipe, name, out, "eager")

    def close(self) -> None:
        """Close the files of all checkpoints."""
        for reader in self._readers.values():
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _run(self, recipe: MergeRecipe, name: str, out: Tensor, backend: Backend) -> None:
        plan = plan_of(recipe, name)
        base = None
        if plan.method.needs_base and recipe.base is not None:
            base = self._flat(recipe.base, name, out)
        # Inner products are those of all checkpoints, whatever their weights.
        needs_all = plan.method.coefficients is not None
        tuned = [
            self._flat(checkpoint, name, out) if term.contributes or needs_all else None
            for checkpoint, term in zip(recipe.checkpoints, plan.terms, strict=True)
        ]
        merge_flat(
            plan,
            out,
            base,
            tuned,
            backend=backend,
            row_length=self.reference.entries[name].row_length,
            statistics=self._statistics,
        )

    def _choose_backend(self, device: torch.device) -> Backend:
        if self._backend != "auto":
            return self._backend
        return "compiled" if is_worthwhile(self._num_elements, device) else "eager"

    def _flat(self, source: Source, name: str, out: Tensor) -> Tensor:
        reader = self._readers.get(source.digest)
        if reader is None:
            raise CheckpointError(
                f"the recipe needs `{source.name}` with digest {source.digest[:12]}..., which is "
                "none of the given checkpoints; give the checkpoints that the recipe was made of"
            )
        entry = reader.entries.get(name)
        if entry is None or entry.numel != out.numel():
            raise CheckpointError(
                f"{reader.directory}: `{name}` must have {out.numel()} elements, found "
                f"{'no such tensor' if entry is None else entry.shape}; run `mergefront check`"
            )
        return reader.tensor(name).reshape(-1).to(out.device)


def plan_of(recipe: MergeRecipe, name: str) -> TensorMerge:
    """Say how a recipe merges one tensor.

    Raises:
        ConfigError: The recipe's method or its options are not known here.
        ValueError: The tensor is not in exactly one group, or the recipe does not fit its method.
    """
    method, group = get_method(recipe.method), recipe.group_of(name)
    return TensorMerge(
        method=method,
        tensor_name=name,
        terms=tuple(
            MergeTerm(weights[group], drop_ratios[group], checkpoint.digest)
            for checkpoint, weights, drop_ratios in zip(
                recipe.checkpoints, recipe.weights, recipe.drop_ratios, strict=True
            )
        ),
        options=method.complete_options(recipe.options),
        mask_seed=recipe.mask_seed,
        base_digest="" if recipe.base is None else recipe.base.digest,
    )
