"""Where a live model holds each tensor of its checkpoint, under whatever name and in whatever part.

Transformers renames tensors as it loads them, and stacks those of experts into one: what a
checkpoint calls ``experts.3.up_proj.weight`` is a slice of ``experts.gate_up_proj``. Such a slice
is a view, so that a merge is written into the model's memory as anywhere else. What else it makes
of tensors (cutting, transposing) is not found.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from workers.block import is_distributed
from workers.shard_header import TensorEntry


def live_tensors(model: nn.Module, entries: Mapping[str, TensorEntry]) -> dict[str, Tensor]:
    """Return the tensors of a live model by their names in its checkpoints.

    Args:
        model: Of transformers; of another kind, names have to be equal.
        entries: Of the checkpoints. Those that the model has not, or not in one piece, are missing
            from the result.

    Returns:
        Parameters and buffers themselves where they are whole, else views of them.
    """
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    found = {name: state[name] for name in entries if name in state}
    if strangers := [entry for name, entry in entries.items() if name not in state]:
        found |= _converted(model, state, strangers)
    return found


def _converted(
    model: nn.Module, state: dict[str, Tensor], strangers: Sequence[TensorEntry]
) -> dict[str, Tensor]:
    """Find what transformers gives another name as it loads it, by the steps that it takes."""
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    if not isinstance(model, PreTrainedModel):
        return {}
    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    # Transformers loads the model without its head from a checkpoint of the model with it, and the
    # other way round: one has a prefix before the names that the other has not.
    prefix = model.base_model_prefix or None
    converter_of = {pattern: each for each in converters for pattern in each.source_patterns}
    found: dict[str, Tensor] = {}
    # Live name -> pattern of names in checkpoints -> what has them, experts by their numbers.
    joined: dict[str, dict[str, list[TensorEntry]]] = defaultdict(lambda: defaultdict(list))
    for entry in sorted(strangers, key=lambda entry: dot_natural_key(entry.name)):
        name, pattern = rename_source_key(entry.name, renamings, converters, prefix, state)
        if name not in state:
            continue
        if pattern is None:
            found[entry.name] = state[name]
        else:
            joined[name][pattern].append(entry)
    for name, by_pattern in joined.items():
        converter = converter_of[next(iter(by_pattern))]
        stacks = [by_pattern[pattern] for pattern in converter.source_patterns]
        found |= _slices(state[name], stacks, converter.operations)
    return found


def _slices(
    target: Tensor, stacks: Sequence[Sequence[TensorEntry]], operations: Sequence[Any]
) -> dict[str, Tensor]:
    """Return checkpoint name -> view, of what is stacked and joined into one live tensor."""
    from transformers.core_model_loading import Concatenate, MergeModulelist

    steps = [(type(operation), getattr(operation, "dim", None)) for operation in operations]
    known = [(MergeModulelist, 0)], [(MergeModulelist, 0), (Concatenate, 1)]
    if steps not in known or is_distributed(target):
        return {}
    shapes = [{(len(stack), *entry.shape) for entry in stack} for stack in stacks]
    if any(len(found) != 1 for found in shapes):
        return {}
    rows = [shape[1] for (shape,) in shapes if len(shape) == 3]
    if {(shape[0], sum(rows), *shape[2:]) for (shape,) in shapes} != {tuple(target.shape)}:
        return {}
    return {
        entry.name: part
        for stack, parts in zip(stacks, target.detach().split(rows, dim=1), strict=True)
        for entry, part in zip(stack, parts.unbind(), strict=True)
    }
