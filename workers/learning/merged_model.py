"""A live model that holds a merge, and the gradient of the merge's coefficients.

Every floating tensor is W = W_0 + sum_i D_i diag(c_i): the D_i are the checkpoints and W_0 is zero
(DAM), or D_i = W_i - W_0 with the base W_0 (task vectors). Autograd knows the live model alone and
gives dL/dW; as soon as that of a tensor is complete, it becomes dL/dc_i = column sums of
dL/dW * D_i, and is dropped. So the graph never holds checkpoints, and gradients of weights are
never there all at once, as they would be if the merge were part of the graph.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from configs.errors import CheckpointError
from configs.recipe import Vocabulary
from workers.binding import Binding
from workers.block import whole
from workers.checkpoint import CheckpointReader
from workers.live_tensors import live_tensors
from workers.residency import TensorStore, choose_placement, measure_memory
from workers.sources import ResolvedSource, Sources
from workers.vocabulary import open_readers

# Rows that are widened to float32 at once: 64 MiB of each temporary, or one row.
_PIECE_ELEMENTS = 2**24


@dataclass(frozen=True, slots=True)
class _Opened:
    source: ResolvedSource
    reader: CheckpointReader


class LearnableMerge:
    """Writes a merge into a live model, and finds the gradient of its coefficients.

    Memory beside the checkpoints, which stay memory-mapped or where ``workers.residency`` puts
    them: the live model in float32, what its forward pass keeps for the backward pass, the
    gradient of one tensor at a time (of two that are tied), three times 64 MiB, and the
    coefficients, of which there are few. Each step reads all checkpoints twice.

    Args:
        model: Of the pool's architecture, float32, in evaluation mode, on one or more devices.
            It is written to, and its parameters get gradients from here on.
        sources: The pool.
        coefficients: Tensor name -> leaf ``(c, k)`` float32 on the CPU that requires a gradient,
            for every floating tensor: one row per checkpoint, and one column per input column of
            the tensor, or a single one for all. Tensors may share a leaf.
        adds_to_base: Whether the D_i are task vectors, on the base.
        vocabulary: Of the merged tables of tokens.

    Raises:
        CheckpointError: Task vectors are wanted without a base; a file cannot be read.
        IncompatibleCheckpointsError: The model's tensors are not those of the checkpoints.
    """

    def __init__(
        self,
        model: nn.Module,
        sources: Sources,
        coefficients: Mapping[str, Tensor],
        *,
        adds_to_base: bool,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        if adds_to_base and sources.base is None:
            raise CheckpointError("task vectors need `models.base`, found none; name it")
        self.model = model
        self.coefficients = coefficients
        self._files = ExitStack()
        readers = open_readers(sources, vocabulary)
        for reader in readers.values():
            self._files.enter_context(reader)
        opened = {s.name: _Opened(s, readers[s.name]) for s in sources.everything}
        self._base = opened[sources.base.name] if sources.base and adds_to_base else None
        self._tuned = [opened[source.name] for source in sources.checkpoints]
        reference = readers[sources.reference.name]
        self._entries = reference.entries
        parts = Binding().of(model, reference, torch.float32)
        self._targets = {
            name: part.tensor
            for name, part in parts.items()
            if self._entries[name].is_floating and self._entries[name].numel
        }
        size_bytes = sum(reader.size_bytes for reader in readers.values())
        self._store = _store_for(self._targets.values(), size_bytes)
        live = live_tensors(model, self._entries)
        whole_ones = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
        if slices := [name for name in self._targets if id(live[name]) not in whole_ones]:
            raise CheckpointError(
                f"{type(model).__name__} holds `{slices[0]}` and {len(slices) - 1} other tensors "
                "as slices of larger ones, whose gradients are not told apart; search this pool "
                "instead"
            )
        self._hooks = [
            parameter.requires_grad_().register_post_accumulate_grad_hook(
                partial(self._take_gradient, name)
            )
            for name in self._targets
            if isinstance(parameter := live[name], nn.Parameter)
        ]

    @property
    def leaves(self) -> list[Tensor]:
        """The coefficients, each leaf once."""
        return list({id(leaf): leaf for leaf in self.coefficients.values()}.values())

    @torch.no_grad()
    def write(self) -> None:
        """Write the merge by the coefficients as they are now into the model.

        The arithmetic is that of the merge methods: float32, one checkpoint after another.
        """
        for name, target in self._targets.items():
            factors = self.coefficients[name].detach().to(target.device)
            rows = target.view(-1, self._entries[name].row_length)
            for piece, base, deltas in self._pieces(name, target.device):
                total = base
                for factor, delta in zip(factors, deltas, strict=True):
                    term = delta * factor
                    total = term if total is None else total + term
                assert total is not None  # noqa: S101 - a pool has a checkpoint
                rows[piece].copy_(total)

    @torch.no_grad()
    def write_source(self, index: int) -> None:
        """Write one checkpoint as it is into the model; :meth:`write` brings the merge back."""
        for name, target in self._targets.items():
            target.copy_(self._flat(self._tuned[index], name, target.device).view(target.shape))

    def clear_gradients(self) -> None:
        """Set the gradients of all coefficients to zero."""
        for leaf in self.leaves:
            leaf.grad = torch.zeros_like(leaf)

    def close(self) -> None:
        """Let go of the model and the files; the model keeps its weights."""
        for hook in self._hooks:
            hook.remove()
        self.model.requires_grad_(requires_grad=False)
        self._store.clear()
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _take_gradient(self, name: str, parameter: Tensor) -> None:
        """Turn the gradient of a tensor into that of its coefficients, and drop it."""
        gradient, parameter.grad = parameter.grad, None
        leaf = self.coefficients[name]
        assert gradient is not None  # noqa: S101 - the hook runs when it is there
        rows = gradient.view(-1, self._entries[name].row_length)
        # Sums of many small products: in double precision the order hardly matters.
        sums = torch.zeros(leaf.shape, dtype=torch.float64, device=gradient.device)
        with torch.no_grad():
            for piece, _, deltas in self._pieces(name, gradient.device):
                for index, delta in enumerate(deltas):
                    columns = (rows[piece] * delta).sum(dim=0, dtype=torch.float64)
                    sums[index] += columns if len(columns) == sums.shape[1] else columns.sum()
        if leaf.grad is None:
            leaf.grad = torch.zeros_like(leaf)
        leaf.grad += sums.to(leaf)

    def _pieces(
        self, name: str, device: torch.device
    ) -> Iterator[tuple[slice, Tensor | None, Iterator[Tensor]]]:
        """Yield some rows after others: where they are, W_0 there, and every D_i, as float32."""
        width = self._entries[name].row_length
        whole_base = None if self._base is None else self._flat(self._base, name, device)
        whole_tuned = [self._flat(opened, name, device) for opened in self._tuned]
        count = self._entries[name].numel // width
        step = max(1, _PIECE_ELEMENTS // width)
        for begin in range(0, count, step):
            piece = slice(begin, begin + step)

            def part(flat: Tensor, rows: slice = piece) -> Tensor:
                return flat.view(-1, width)[rows].to(device, torch.float32)

            base = None if whole_base is None else part(whole_base)
            yield piece, base, self._deltas(base, map(part, whole_tuned))
        for flat in (whole_base, *whole_tuned):
            if flat is not None:
                self._store.release(flat)

    @staticmethod
    def _deltas(base: Tensor | None, tuned: Iterator[Tensor]) -> Iterator[Tensor]:
        for tensor in tuned:
            yield tensor if base is None else tensor - base

    def _flat(self, opened: _Opened, name: str, device: torch.device) -> Tensor:
        block = whole(self._entries[name].numel)
        return self._store.block(opened.source.digest, opened.reader, name, block, device)


def leaf(count: int, columns: int, value: float) -> Tensor:
    """Return coefficients ``(count, columns)`` that all have one value, to be learned."""
    return torch.full((count, columns), value, dtype=torch.float32, requires_grad=True)


def _store_for(targets: Iterable[Tensor], size_bytes: int) -> TensorStore:
    """Return a store that keeps the checkpoints where they are read fastest and fit."""
    devices = {target.device for target in targets}
    device = next((d for d in devices if d.type == "cuda"), torch.device("cpu"))
    placement = choose_placement(
        "auto", device_type=device.type, source_bytes=size_bytes, memory=measure_memory(device)
    )
    return TensorStore(placement)
