"""How much goes into one forward pass, and what is learned when memory runs out.

Start at :func:`limits_for` and :func:`run_in_batches`.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
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
        memory_bytes: Bytes that a batch may be estimated to take; None is no limit.
        prefill_tokens: Rows times tokens of one pass over prompts.
    """

    rows: int
    memory_bytes: int | None
    prefill_tokens: int

    def take(self, items: Sequence[T], bytes_of: Callable[[Sequence[T]], int]) -> int:
        """Return how many of the first items make a batch; one always does.

        Args:
            items: What waits, at least one.
            bytes_of: Memory that a batch can come to take; more items take more.
        """
        most = min(self.rows, len(items))
        if self.memory_bytes is None:
            return most
        beyond = self.memory_bytes + 1
        return bisect_left(range(2, most + 1), beyond, key=lambda n: bytes_of(items[:n])) + 1

    def shrink(self, rows: int, taken_bytes: int) -> None:
        """Halve what a batch was too much for.

        Args:
            rows: Rows of the batch.
            taken_bytes: Its estimate. A batch with fewer rows than were allowed has failed for
                their size: batches of small rows may hold as many as before.
        """
        if rows == self.rows:
            self.rows = max(1, rows // 2)
        else:
            self.memory_bytes = taken_bytes // 2
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


def likelihood_bytes(model: PreTrainedModel, rows: int, tokens: int, scored: int) -> int:
    """Estimate the bytes that a batch takes in a pass without a cache.

    Args:
        model: The model.
        rows: Rows of the batch.
        tokens: Tokens of every row, padding included.
        scored: Columns that logits are computed for, in every row: those and a copy of them.
    """
    config = model.config.get_text_config()
    # Around one layer: states in and out, queries, keys, values, and both halves of the MLP.
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    activations = (6 * config.hidden_size + 3 * inner) * model.dtype.itemsize
    logits = 2 * config.vocab_size * model.dtype.itemsize
    return int(rows * (tokens * activations + scored * logits))


def run_in_batches(
    limits: BatchLimits,
    items: Sequence[T],
    *,
    bytes_of: Callable[[Sequence[T]], int],
    run: Callable[[list[T]], None],
    is_done: Callable[[T], bool],
) -> None:
    """Run items in batches, a batch that memory does not suffice for again in smaller ones.

    Args:
        limits: How much a batch may hold; shrunk where that was too much, and so remembered.
        items: What to run, in the order of the batches.
        bytes_of: Memory that a batch can come to take; more items take more.
        run: Runs a batch; it may be interrupted, and is given what is not done again.
        is_done: Whether an item needs to be run no more.

    Raises:
        torch.OutOfMemoryError: A single item is too much. So a RuntimeError of the host's
            allocator.
    """
    pending = list(items)
    while pending:
        count = limits.take(pending, bytes_of)
        batch, rest = pending[:count], pending[count:]
        if _fits(run, batch):
            pending = rest
            continue
        # Only here, after the except clause, is the traceback gone that kept tensors alive.
        torch.cuda.empty_cache()
        limits.shrink(count, bytes_of(batch))
        pending = [item for item in batch if not is_done(item)] + rest
        if pending:
            next_count = limits.take(pending, bytes_of)
            log.warning("out of memory with %d rows; going on with %d", count, next_count)


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
