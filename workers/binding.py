"""Which memory of a live model each tensor of the checkpoints is merged into."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from configs.errors import IncompatibleCheckpointsError, Problem
from workers.architecture import unused_tensors
from workers.block import LocalPart, is_distributed, local_part
from workers.checkpoint import CheckpointReader
from workers.live_tensors import live_tensors
from workers.shard_header import TensorEntry


class Binding:
    """Finds the parts of a model, and finds them again as long as its memory is the same."""

    def __init__(self) -> None:
        self._key: tuple[object, ...] = ()
        # Held, so that no other tensor can have the place of one that is known.
        self._known: list[tuple[Tensor, tuple[object, ...]]] = []
        self._parts: dict[str, LocalPart] = {}

    def of(
        self, model: nn.Module, reference: CheckpointReader, merged_dtype: torch.dtype
    ) -> Mapping[str, LocalPart]:
        """Return the live part of every tensor that the checkpoints and the model have.

        The same object is returned for the same memory.

        Args:
            model: Tied weights have one part, under the name in the checkpoints.
            reference: Decides the tensors.
            merged_dtype: Of what will be written; the model's own may be wider.

        Raises:
            IncompatibleCheckpointsError: The model's tensors are not those of the checkpoints.
        """
        state: dict[str, Tensor] = model.state_dict(keep_vars=True)
        key = reference, merged_dtype, tuple(state)
        if not self._is_known(key, state):
            self._key = ()
            self._parts = _bind(model, state, reference, merged_dtype)
            if not any(map(is_distributed, state.values())):
                self._key = key
                self._known = [(tensor, _place(tensor)) for tensor in state.values()]
        return self._parts

    def _is_known(self, key: tuple[object, ...], state: Mapping[str, Tensor]) -> bool:
        return key == self._key and all(
            tensor is known and _place(tensor) == place
            for tensor, (known, place) in zip(state.values(), self._known, strict=True)
        )


def _place(tensor: Tensor) -> tuple[object, ...]:
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _bind(
    model: nn.Module,
    state: Mapping[str, Tensor],
    reference: CheckpointReader,
    merged_dtype: torch.dtype,
) -> dict[str, LocalPart]:
    """Find the live part of every tensor of the checkpoints, or say what does not fit."""
    entries = reference.entries
    live = live_tensors(model, entries)
    parts = {name: local_part(live[name]) for name in entries if name in live}
    unused = unused_tensors(model)
    problems = [
        Problem(name, "is in the checkpoints, but the model has no tensor of that name")
        for name in entries
        if name not in live and not unused.search(name)
    ]
    written: dict[int, str] = {}
    for name, part in parts.items():
        address = part.tensor.data_ptr()
        if message := _misfit(entries[name], live[name], part, merged_dtype):
            problems.append(Problem(name, message))
        elif part.tensor.numel() and (other := written.setdefault(address, name)) != name:
            problems.append(
                Problem(
                    name,
                    f"the model ties it to `{other}`, the checkpoints hold both; load the "
                    "model with `tie_word_embeddings=False`, or save the checkpoints tied",
                )
            )
    covered = {part.tensor.data_ptr() for part in parts.values()}
    problems += [
        Problem(name, "is in the model, but the checkpoints have no tensor of that name")
        for name, tensor in state.items()
        if name not in live
        and isinstance(tensor, nn.Parameter)
        and _is_elsewhere(local_part(tensor).tensor, covered)
    ]
    if problems:
        raise IncompatibleCheckpointsError(
            f"{type(model).__name__} cannot take {reference.directory}'s weights",
            problems,
        )
    return parts


def _is_elsewhere(tensor: Tensor, covered: set[int]) -> bool:
    """Say whether a tensor holds elements, none of which are at the given addresses."""
    return tensor.numel() > 0 and tensor.data_ptr() not in covered


def _misfit(
    entry: TensorEntry, target: Tensor, part: LocalPart, merged_dtype: torch.dtype
) -> str | None:
    """Say why a live tensor cannot take a merged one, or None."""
    if tuple(target.shape) != entry.shape:
        return f"the model expects {tuple(target.shape)}, the checkpoints hold {entry.shape}"
    if part.tensor.device.type == "meta":
        return (
            "the model was loaded without memory for it (offloaded); load it onto devices that "
            "hold it, with a `device_map` that puts nothing on `disk`, or on `cpu` beside GPUs"
        )
    if part.block is None:
        return (
            "the model is sharded in a way that a merge cannot be cut; shard the tensor along one "
            "axis, or replicate it"
        )
    if not entry.is_floating:
        exact = target.dtype == getattr(torch, entry.dtype)
    else:
        exact = torch.promote_types(target.dtype, merged_dtype) == target.dtype
    if not exact:
        found = str(target.dtype).removeprefix("torch.")
        wanted = str(merged_dtype).removeprefix("torch.") if entry.is_floating else entry.dtype
        return f"the model holds it in {found}, which cannot hold {wanted} exactly; load it so"
    return None
