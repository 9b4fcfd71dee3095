"""The open checkpoints of a pool, found by their digests."""

from threading import Lock
from typing import TYPE_CHECKING

from configs.errors import CheckpointError
from configs.recipe import MergeRecipe, Source, Vocabulary
from workers.checkpoint import CheckpointReader
from workers.column_coefficients import COEFFICIENTS_FILE, CoefficientFile, Wanted
from workers.plan import TensorMerge
from workers.sources import Sources
from workers.vocabulary import open_readers

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Found = tuple[str, CheckpointReader]
"""A checkpoint's digest, and its reader."""


class PoolReaders:
    """Finds what a merge reads.

    Args:
        sources: From :func:`workers.sources.resolve_sources`.
        vocabulary: Of the recipes that will be merged.

    Attributes:
        reference: Reader of the base, or of the first checkpoint: it decides the tensors.
    """

    def __init__(self, sources: Sources, vocabulary: Vocabulary | None) -> None:
        readers = open_readers(sources, vocabulary)
        self._coefficients = {found.digest: found for found in sources.coefficients}
        self._files: dict[tuple[str, int], CoefficientFile] = {}
        self._opening = Lock()
        self._by_digest = {s.digest: readers[s.name] for s in reversed(sources.everything)}
        self.reference = self._by_digest[sources.reference.digest]

    @property
    def size_bytes(self) -> int:
        """Bytes of all checkpoints: what one candidate reads at most."""
        return sum(reader.size_bytes for reader in self._by_digest.values())

    def needed(self, plan: TensorMerge, recipe: MergeRecipe) -> list[Found | None]:
        """Find the base and every checkpoint; None stands for what has no part in the merge.

        Args:
            plan: Of one tensor.
            recipe: That of the plan, which knows how people call the checkpoints.

        Raises:
            CheckpointError: The recipe names a checkpoint that is not in the pool, or a
                checkpoint lacks the tensor.
        """
        base = (plan.base_digest or None) if plan.method.needs_base else None
        # Inner products are those of all checkpoints, whatever their weights.
        needs_all = plan.method.coefficients is not None
        tuned = [term.digest if term.contributes or needs_all else None for term in plan.terms]
        return [
            None if digest is None else (digest, self._reader(digest, plan.tensor_name, recipe))
            for digest in (base, *tuned)
        ]

    def columns(
        self, plan: TensorMerge, recipe: MergeRecipe, device: "torch.device"
    ) -> "tuple[Tensor, ...]":
        """Return the coefficients of one tensor of every checkpoint that contributes.

        Returns:
            ``(row length,)`` float32 each, on ``device``.

        Raises:
            CheckpointError: The recipe's coefficients are not among the given ones, or do not fit
                the checkpoints.
        """
        assert recipe.coefficients is not None  # noqa: S101 - checked by `RecipePlan`
        file = self._file_of(recipe.coefficients, len(recipe.checkpoints))
        return tuple(file.of(index, plan.tensor_name).to(device) for index in plan.active)

    def _file_of(self, wanted: Source, num_checkpoints: int) -> CoefficientFile:
        """Open a file of coefficients, and check it before its first use."""
        key = wanted.digest, num_checkpoints
        with self._opening:
            if key not in self._files:
                found = self._coefficients.get(wanted.digest)
                if found is None:
                    raise CheckpointError(
                        f"the recipe needs the coefficients `{wanted.name}` with digest "
                        f"{wanted.digest[:12]}, which are not among what was given; put their "
                        "file beside the recipe"
                    )
                file = CoefficientFile(found.directory / COEFFICIENTS_FILE)
                file.check(Wanted(num_checkpoints, self.reference.entries))
                self._files[key] = file
            return self._files[key]

    def close(self) -> None:
        """Close the files of all checkpoints; reading a tensor opens them again."""
        for reader in self._by_digest.values():
            reader.close()

    def _reader(self, digest: str, name: str, recipe: MergeRecipe) -> CheckpointReader:
        reader = self._by_digest.get(digest)
        if reader is None:
            raise CheckpointError(
                f"the recipe needs `{_name_of(digest, recipe)}` with digest {digest[:12]}..., "
                "which is none of the given checkpoints; give those that the recipe was made of"
            )
        entry, numel = reader.entries.get(name), self.reference.entries[name].numel
        if entry is None or entry.numel != numel:
            raise CheckpointError(
                f"{reader.directory}: `{name}` must have {numel} elements, found "
                f"{'no such tensor' if entry is None else entry.shape}; run `mergefront check`"
            )
        return reader


def _name_of(digest: str, recipe: MergeRecipe) -> str:
    """Say how a recipe calls a source."""
    sources = (recipe.base, *recipe.checkpoints)
    return next((s.name for s in sources if s is not None and s.digest == digest), "?")
