"""How far checkpoints are from their base: the size of their task vectors.

Also where large checkpoints are sampled; ``workers.similarity`` reads the same places.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from workers.checkpoint import CheckpointReader
from workers.shard_header import TensorEntry

# Pools up to this size are measured whole; of larger ones some million elements are enough.
_WHOLE_ELEMENTS = 2**24
_SAMPLED_ELEMENTS = 2**23
_FEWEST_RUNS, _MOST_RUNS = 2, 8
# A run fills whole pages: reading single elements would read as much from disk.
_RUN_ELEMENTS = 4096


Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class DeltaStats:
    """Size of a task vector: of |tuned - base| over elements, in the units of the weights.

    ``relative`` is the median of |tuned - base| over the median of |base|, dimensionless: far
    below 1 for a fine-tuned model, about 1.4 for an unrelated one. ``unchanged`` is the share of
    elements that equal the base's, ``identical_tensors`` that of tensors of which every element
    that was read does. ``first_non_finite`` names a tensor that holds NaN or infinity in the
    checkpoint or the base, or is None. ``is_sampled`` is true where not every element was read.
    """

    checkpoint: str
    median: float
    p99: float
    maximum: float
    relative: float
    unchanged: float
    identical_tensors: float
    first_non_finite: str | None
    is_sampled: bool


def measure_deltas(name: str, base: CheckpointReader, tuned: CheckpointReader) -> DeltaStats:
    """Measure the task vector of a checkpoint whose tensors have the base's names and shapes.

    Elements are read at fixed places, so the numbers are the same every time.
    """
    entries = [entry for entry in base.entries.values() if entry.is_floating]
    runs = sampling_runs(entries)
    is_sampled = runs is not None
    deltas: list[Float32Array] = []
    origins: list[Float32Array] = []
    changed: set[str] = set()
    first_non_finite: str | None = None
    for entry in entries:
        whole = (base.tensor(entry.name).reshape(-1), tuned.tensor(entry.name).reshape(-1))
        for part in sampled_parts(entry, runs):
            origin, value = (float32_array(tensor[part]) for tensor in whole)
            finite = np.isfinite(value) & np.isfinite(origin)
            if first_non_finite is None and not finite.all():
                first_non_finite = entry.name
            if not np.array_equal(value, origin):
                changed.add(entry.name)
            value, origin = value[finite], origin[finite]
            deltas.append(np.abs(value - origin))
            origins.append(np.abs(origin))
    delta = np.concatenate(deltas) if deltas else np.zeros(0, dtype=np.float32)
    identical = 1.0 - len(changed) / len(entries) if entries else 1.0
    if not delta.size:
        return DeltaStats(name, 0.0, 0.0, 0.0, 0.0, 0.0, identical, first_non_finite, is_sampled)
    median, p99 = (float(value) for value in np.quantile(delta, [0.5, 0.99]))
    typical = float(np.median(np.concatenate(origins)))
    return DeltaStats(
        checkpoint=name,
        median=median,
        p99=p99,
        maximum=float(delta.max()),
        relative=median / typical if typical else 0.0,
        unchanged=float((delta == 0).mean()),
        identical_tensors=identical,
        first_non_finite=first_non_finite,
        is_sampled=is_sampled,
    )


def sampling_runs(entries: Collection[TensorEntry]) -> int | None:
    """Return how many runs of elements are read of each tensor; None where all are read."""
    if sum(entry.numel for entry in entries) <= _WHOLE_ELEMENTS:
        return None
    # A run costs a seek and what the kernel reads around it, so large models get fewer.
    fitting = _SAMPLED_ELEMENTS // (_RUN_ELEMENTS * len(entries))
    return min(max(fitting, _FEWEST_RUNS), _MOST_RUNS)


def sampled_parts(entry: TensorEntry, runs: int | None) -> Iterator[slice]:
    """Yield the elements to read: all, or evenly spaced runs from the first to the last."""
    if runs is None or entry.numel <= runs * _RUN_ELEMENTS:
        yield slice(0, entry.numel)
        return
    for run in range(runs):
        begin = (entry.numel - _RUN_ELEMENTS) * run // (runs - 1)
        yield slice(begin, begin + _RUN_ELEMENTS)


def float32_array(tensor: Tensor) -> Float32Array:
    """Return a CPU tensor as a float32 array."""
    values: Float32Array = tensor.to(torch.float32).numpy()
    return values
