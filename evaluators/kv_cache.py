"""A key-value cache with spare room: a step of generation writes one column and copies nothing.

``transformers``' own growing cache concatenates, which copies all keys and values at every step:
more than half the time of a step of a small model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """Return a fresh cache of the model's kind, its plain layers replaced by roomy ones.

    Layers of other kinds (sliding windows, linear attention) stay those of ``transformers``.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, in buffers that grow by a quarter when they are full.

    ``keys`` and ``values`` are views of the buffers, (rows, heads, tokens, head size).
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        self._length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self._key_buffer, self._value_buffer = key_states[:, :, :0], value_states[:, :, :0]
        self.keys, self.values = self._key_buffer, self._value_buffer
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: object,  # noqa: ARG002 - the signature of the base class
        **kwargs: object,  # noqa: ARG002 - the signature of the base class
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if end > self._key_buffer.shape[-2]:
            room = end + max(32, end // 4)
            self._key_buffer = self._grown(self._key_buffer, key_states, room)
            self._value_buffer = self._grown(self._value_buffer, value_states, room)
        self._key_buffer[:, :, start:end] = key_states
        self._value_buffer[:, :, start:end] = value_states
        self._length = end
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self._length

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        # Rows only move down into the holes of dropped ones, so this can be done in place.
        rows = torch.arange(len(indices), device=indices.device)
        moved = rows != indices
        into, out_of = rows[moved], indices[moved]
        for buffer in (self._key_buffer, self._value_buffer):
            buffer[into, :, : self._length] = buffer[out_of, :, : self._length]
        self._key_buffer = self._key_buffer[: len(indices)]
        self._value_buffer = self._value_buffer[: len(indices)]
        self._show()

    def _grown(self, old: torch.Tensor, states: torch.Tensor, room: int) -> torch.Tensor:
        rows, heads, _, size = states.shape
        buffer = states.new_empty((rows, heads, room, size))
        buffer[:, :, : self._length] = old[:, :, : self._length]
        return buffer

    def _show(self) -> None:
        self.keys = self._key_buffer[:, :, : self._length]
        self.values = self._value_buffer[:, :, : self._length]
