"""How alike checkpoints are: the cosine of every two task vectors, or of every two weights."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from workers.checkpoint import CheckpointReader
from workers.delta_stats import float32_array, sampled_parts, sampling_runs

# Elements of all checkpoints that are held at a time: as float64 some MB each.
_BLOCK_ELEMENTS = 2**18

Float64Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Similarity:
    """Cosines between checkpoints, each in [-1, 1].

    ``cosines[i][j]`` belongs to ``names[i]`` and ``names[j]``; it is NaN where one of the two is
    zero everywhere, as the task vector of a copy of the base. ``of_task_vectors`` is false where
    there is no base: then it is the weights that are compared. ``non_finite`` names, by
    checkpoint, the first tensor with NaN or infinity, which count as zero.
    """

    names: tuple[str, ...]
    cosines: tuple[tuple[float, ...], ...]
    of_task_vectors: bool
    is_sampled: bool
    non_finite: Mapping[str, str]

    def pairs(self) -> list[tuple[str, str, float]]:
        """Return (name, name, cosine) of every two checkpoints, most alike first."""
        found = [
            (self.names[i], self.names[j], self.cosines[i][j])
            for i, j in combinations(range(len(self.names)), 2)
            if self.cosines[i][j] == self.cosines[i][j]
        ]
        return sorted(found, key=lambda pair: -pair[2])


def measure_similarity(
    base: CheckpointReader | None, checkpoints: Mapping[str, CheckpointReader]
) -> Similarity:
    """Compare checkpoints whose tensors have equal names and shapes.

    Reads every element, or, of large checkpoints, those at the places that ``measure_deltas``
    reads; a sample stands for its whole tensor, so large tensors count for what they are.

    Args:
        base: What all were fine-tuned from; None compares the weights themselves.
        checkpoints: Name -> reader; at least one.
    """
    readers = list(checkpoints.values())
    entries = [entry for entry in readers[0].entries.values() if entry.is_floating]
    runs = sampling_runs(entries)
    products = np.zeros((len(readers), len(readers)))
    non_finite: dict[str, str] = {}
    for entry in entries:
        parts = list(sampled_parts(entry, runs))
        num_read = sum(part.stop - part.start for part in parts)
        blocks = (
            slice(begin, min(begin + _BLOCK_ELEMENTS, part.stop))
            for part in parts
            for begin in range(part.start, part.stop, _BLOCK_ELEMENTS)
        )
        tensors = [reader.tensor(entry.name).reshape(-1) for reader in readers]
        origin = None if base is None else base.tensor(entry.name).reshape(-1)
        for block in blocks:
            rows = np.stack([_read(tensor, block) for tensor in tensors])
            for name, row in zip(checkpoints, rows, strict=True):
                if not np.isfinite(row).all():
                    non_finite.setdefault(name, entry.name)
            if origin is not None:
                with np.errstate(invalid="ignore"):  # inf - inf
                    rows -= _read(origin, block)
            rows[~np.isfinite(rows)] = 0.0
            # Not `@`: the threads of a BLAS take longer to wake than rows so short to multiply.
            products += np.einsum("ik,jk->ij", rows, rows) * (entry.numel / num_read)
    return Similarity(
        names=tuple(checkpoints),
        cosines=_cosines(products),
        of_task_vectors=base is not None,
        is_sampled=runs is not None,
        non_finite=non_finite,
    )


def _read(flat: Tensor, block: slice) -> Float64Array:
    values: Float64Array = float32_array(flat[block]).astype(np.float64)
    return values


def _cosines(products: Float64Array) -> tuple[tuple[float, ...], ...]:
    lengths: Sequence[float] = np.sqrt(np.diag(products)).tolist()
    return tuple(
        tuple(
            float(np.clip(products[i, j] / (a * b), -1.0, 1.0)) if a and b else float("nan")
            for j, b in enumerate(lengths)
        )
        for i, a in enumerate(lengths)
    )
