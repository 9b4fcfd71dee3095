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


def is_plain(model: PreTrainedModel) -> bool:
    """Whether all layers of a model attend to all tokens, so that rows can be put together."""
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)


def roomy_cache(model: PreTrainedModel) -> DynamicCache:
    """Return a fresh cache of the model's kind, its plain layers replaced by roomy ones.

    Layers of other kinds (sliding windows, linear attention) stay those of ``transformers``.
    """
    cache = DynamicCache(config=model.config)
    cache.layers = [
        _RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers
    ]
    return cache


def place(cache: DynamicCache, part: DynamicCache, *, slot: int, rows: int, width: int) -> None:
    """Copy the prompts of some rows into a cache for more rows, their last tokens aligned.

    Args:
        cache: From :func:`roomy_cache`, all of its layers plain; what is before a row's
            prompt is zero.
        part: Holds the prompts of some rows, (rows of the part, heads, tokens <= width, size).
        slot: The first row that they take.
        rows: Rows of the whole.
        width: Tokens of the longest prompt of the whole.

    Raises:
        TypeError: A layer is of another kind; see :func:`is_plain`.
    """
    for layer, filled in zip(_roomy_layers(cache), _roomy_layers(part), strict=True):
        layer.place(filled.keys, filled.values, slot=slot, rows=rows, width=width)


def drop_columns(cache: DynamicCache, count: int) -> None:
    """Forget the first ``count`` columns, which no row needs any more.

    Raises:
        TypeError: A layer is of another kind; see :func:`is_plain`.
    """
    for layer in _roomy_layers(cache):
        layer.drop_columns(count)


def _roomy_layers(cache: DynamicCache) -> list[_RoomyLayer]:
    roomy = [layer for layer in cache.layers if isinstance(layer, _RoomyLayer)]
    if len(roomy) < len(cache.layers):
        raise TypeError("rows of a cache can only be put together where all its layers are roomy")
    return roomy


class _RoomyLayer(DynamicLayer):
    """Keys and values of one layer, in buffers that grow by a quarter when they are full.

    ``keys`` and ``values`` are views of the buffers, (rows, heads, tokens, head size).
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self) -> None:
        DynamicLayer.__init__(self)
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
        *_args: object,
        **_kwargs: object,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        if end > self._key_buffer.shape[-2]:
            room = _room_for(end)
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
            used = buffer[:, :, : self._length]
            if buffer.device.type != "cpu":
                used[into] = used[out_of]
                continue
            # Row by row: indexing takes a hundred times as long there.
            for hole, row in zip(into.tolist(), out_of.tolist(), strict=True):
                used[hole] = used[row]
        self._key_buffer = self._key_buffer[: len(indices)]
        self._value_buffer = self._value_buffer[: len(indices)]
        self._show()

    def place(
        self, keys: torch.Tensor, values: torch.Tensor, *, slot: int, rows: int, width: int
    ) -> None:
        """See the function of this name."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
            _, heads, _, size = keys.shape
            room = _room_for(width)
            self._key_buffer = keys.new_empty((rows, heads, room, size))
            self._value_buffer = values.new_empty((rows, heads, room, values.shape[-1]))
            self._length = width
        count, pad = keys.shape[0], width - keys.shape[2]
        for buffer, states in ((self._key_buffer, keys), (self._value_buffer, values)):
            # What attention weighs with zero must be finite.
            buffer[slot : slot + count, :, :pad] = 0
            buffer[slot : slot + count, :, pad:width] = states
        self._show()

    def drop_columns(self, count: int) -> None:
        """See the function of this name."""
        self._key_buffer = self._key_buffer[:, :, count:]
        self._value_buffer = self._value_buffer[:, :, count:]
        self._length -= count
        self._show()

    def _grown(self, old: torch.Tensor, states: torch.Tensor, room: int) -> torch.Tensor:
        rows, heads, _, size = states.shape
        buffer = states.new_empty((rows, heads, room, size))
        buffer[:, :, : self._length] = old[:, :, : self._length]
        return buffer

    def _show(self) -> None:
        self.keys = self._key_buffer[:, :, : self._length]
        self.values = self._value_buffer[:, :, : self._length]


def _room_for(tokens: int) -> int:
    return tokens + max(32, tokens // 4)
