"""How much goes into one forward pass, and what is learned when memory runs out.

Start at :func:`limits_for` and :func:`run_in_batches`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeVar

import psutil
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")

BatchSize = int | Literal["auto"]

# Most rows of a batch whose size nobody named; the measurements are in scripts/bench/results.
_AUTO_ROWS = {"cpu": 128}
_AUTO_ROWS_ELSEWHERE = 512
# Tokens of one pass over prompts: enough to keep the arithmetic units busy, few enough that
# padding and activations stay small.
_PREFILL_TOKENS = {"cpu": 1024}
_PREFILL_TOKENS_ELSEWHERE = 16_384
# Of the memory that is free, the share that a batch may take: when the buffers of keys and values
# grow, old and new are there together, and the host is shared with others.
_MEMORY_SHARE = {"cpu": 0.125}
_MEMORY_SHARE_ELSEWHERE = 0.35
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class BatchLimits:
    """The most that one batch may hold; smaller after every lack of memory, never larger.

    Attributes:
        rows: Rows per batch, >= 1.
        memory_bytes: Rows times the bytes that the largest of them needs; None is no limit.
        prefill_tokens: Rows times tokens of one pass over prompts.
    """

    rows: int
    memory_bytes: int | None
    prefill_tokens: int

    def take(self, sizes: Sequence[int]) -> int:
        """Return how many of the first items, of these bytes each, fit; one always does."""
        largest = 0
        for count, size in enumerate(sizes[: self.rows]):
            largest = max(largest, size)
            beyond = self.memory_bytes is not None and (count + 1) * largest > self.memory_bytes
            if count and beyond:
                return count
        return min(self.rows, len(sizes))

    def shrink(self, rows: int) -> None:
        """Halve what a batch of ``rows`` rows was too much for."""
        self.rows = max(1, rows // 2)
        self.prefill_tokens = max(1, self.prefill_tokens // 2)


def limits_for(model: PreTrainedModel, batch_size: BatchSize) -> BatchLimits:
    """Choose the limits of batches.

    Args:
        model: The live model, on its device.
        batch_size: Rows, or ``auto``: what the memory that is free now holds, with room to
            spare. A batch that fails all the same is tried again at half the size.
    """
    kind = model.device.type
    prefill = _PREFILL_TOKENS.get(kind, _PREFILL_TOKENS_ELSEWHERE)
    if batch_size != "auto":
        return BatchLimits(batch_size, None, prefill)
    share = _MEMORY_SHARE.get(kind, _MEMORY_SHARE_ELSEWHERE)
    memory = int(share * _free_bytes(model.device))
    return BatchLimits(_AUTO_ROWS.get(kind, _AUTO_ROWS_ELSEWHERE), memory, prefill)


def cache_bytes_per_token(model: PreTrainedModel) -> int:
    """Return the bytes of keys and values that one token of one row takes in all layers."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * key_heads * size * model.dtype.itemsize)


def likelihood_bytes(model: PreTrainedModel, tokens: int, scored: int) -> int:
    """Estimate the bytes that one row takes in a pass without a cache.

    Args:
        model: The model.
        tokens: Tokens of the row.
        scored: How many of them need logits: those and their logarithms are in float32.
    """
    config = model.config.get_text_config()
    # Around one layer: states in and out, queries, keys, values, and both halves of the MLP.
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    activations = (6 * config.hidden_size + 3 * inner) * model.dtype.itemsize
    return int(tokens * activations + scored * config.vocab_size * 8)


def run_in_batches(
    limits: BatchLimits,
    items: Sequence[T],
    *,
    bytes_of: Callable[[T], int],
    run: Callable[[list[T]], None],
    is_done: Callable[[T], bool],
) -> None:
    """Run items in batches, a batch that memory does not suffice for again in smaller ones.

    Args:
        limits: How much a batch may hold; shrunk where that was too much, and so remembered.
        items: What to run, in the order of the batches.
        bytes_of: Memory that an item can come to take.
        run: Runs a batch; it may be interrupted, and is given what is not done again.
        is_done: Whether an item needs to be run no more.

    Raises:
        torch.OutOfMemoryError: A single item is too much. So a RuntimeError of the host's
            allocator.
    """
    pending = list(items)
    while pending:
        count = limits.take([bytes_of(item) for item in pending[: limits.rows]])
        batch, rest = pending[:count], pending[count:]
        if _fits(run, batch):
            pending = rest
            continue
        # Only here, after the except clause, is the traceback gone that kept tensors alive.
        torch.cuda.empty_cache()
        limits.shrink(count)
        log.warning("out of memory with %d rows; going on with %d", count, limits.rows)
        pending = [item for item in batch if not is_done(item)] + rest


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device's or the host's memory does not suffice."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)
    )


def _fits(run: Callable[[list[T]], None], batch: list[T]) -> bool:
    try:
        run(batch)
    except (RuntimeError, MemoryError) as error:
        if len(batch) == 1 or not is_out_of_memory(error):
            raise
        return False
    return True


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        reserved = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + reserved)
    return int(psutil.virtual_memory().available)
