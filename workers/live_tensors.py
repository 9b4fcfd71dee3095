"""Where a live model holds each tensor of its checkpoint, under whatever name and in whatever part.

Transformers renames tensors as it loads them, and stacks those of experts into one: what a
checkpoint calls ``experts.3.up_proj.weight`` is a slice of ``experts.gate_up_proj``. Such a slice
is a view, so that a merge is written into the model's memory as anywhere else. What else it makes
of tensors (cutting, transposing) is not found.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from workers.block import is_distributed
from workers.shard_header import TensorEntry

_Converter = Any
"""``transformers.core_model_loading.WeightConverter``, which is imported where it is needed."""


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
        renamings, converters = _transforms(model)
        stacked: dict[tuple[int, str], dict[str, tuple[TensorEntry, str]]] = defaultdict(dict)
        for entry in strangers:
            name = entry.name
            for renaming in renamings:
                name, _ = renaming.rename_source_key(name)
            if name in state:
                found[entry.name] = state[name]
                continue
            for index, converter in enumerate(converters):
                target, pattern = converter.rename_source_key(name)
                if pattern is not None:
                    if target in state:
                        stacked[index, target][name] = entry, pattern
                    break
        for (index, target), members in stacked.items():
            found |= _slices(state[target], members, converters[index])
    return found


def _transforms(model: nn.Module) -> tuple[list[Any], list[_Converter]]:
    from transformers import PreTrainedModel
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming

    if not isinstance(model, PreTrainedModel):
        return [], []
    found = get_model_conversion_mapping(model)
    renamings = [each for each in found if isinstance(each, WeightRenaming)]
    return renamings, [each for each in found if isinstance(each, WeightConverter)]


def _slices(
    target: Tensor, members: Mapping[str, tuple[TensorEntry, str]], converter: _Converter
) -> dict[str, Tensor]:
    """Return checkpoint name -> view, of what is stacked and joined into one live tensor."""
    from transformers.core_model_loading import Concatenate, MergeModulelist, dot_natural_key

    shapes = [
        (type(operation), getattr(operation, "dim", None)) for operation in converter.operations
    ]
    joins = shapes == [(MergeModulelist, 0), (Concatenate, 1)]
    if not (joins or shapes == [(MergeModulelist, 0)]) or is_distributed(target):
        return {}
    if sum(entry.numel for entry, _ in members.values()) != target.numel():
        return {}
    # The order of transformers: patterns as they are listed, experts by their numbers.
    by_pattern: dict[str, list[TensorEntry]] = {name: [] for name in converter.source_patterns}
    for name in sorted(members, key=dot_natural_key):
        entry, pattern = members[name]
        by_pattern[pattern].append(entry)
    found: dict[str, Tensor] = {}
    begin = 0
    for stack in by_pattern.values():
        if not _fits(target, stack, begin):
            return {}
        for expert, entry in enumerate(stack):
            part = target.detach()[expert]
            found[entry.name] = part.narrow(0, begin, entry.shape[0]) if joins else part
        begin += stack[0].shape[0] if joins else 0
    return found


def _fits(target: Tensor, stack: Iterable[TensorEntry], begin: int) -> bool:
    """Say whether there is one tensor per expert, and all have room behind what is there."""
    shapes = [entry.shape for entry in stack]
    if target.dim() != 3 or len(shapes) != target.shape[0] or len(set(shapes)) != 1:
        return False
    rows, *columns = shapes[0]
    return columns == list(target.shape[2:]) and begin + rows <= target.shape[1]
