"""Greedy generation for many prompts: the texts of stock lm-eval, at a fraction of the cost.

Prompts are sorted by token budget and length and run in left-padded batches over a key-value
cache (``evaluators.decoding``). A row leaves its batch at the step in which it ends (end of text,
stop string, or budget), where ``transformers``' ``generate`` carries every row to the end of the
slowest one. Start at :class:`StaticBatches`.

What a text is follows ``HFLM.generate_until`` of lm-eval 0.4.13 row by row: the argmax of the
float32 logits, no sampling, decoding without special tokens, and a cut at the first occurrence of
each stop string. Where stock's text depends on the rest of the batch (a stop string that is a
special token but no end of text), ours is that of stock at batch size 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from evaluators.backend import OnText, Prompt, ignore_text
from evaluators.batches import (
    BatchLimits,
    BatchSize,
    cache_bytes_per_token,
    limits_for,
    run_in_batches,
)
from evaluators.decoding import Row, decode
from evaluators.stop_strings import StopStrings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from evaluators.evaluator import LiveModel


class StaticBatches:
    """The default generation backend: batches that only lose rows.

    Keeps nothing that depends on weights. A batch that is too large for the memory is run again
    in halves, and later batches are as small from the start.

    Args:
        live: The model, in evaluation mode, and its tokenizer. The tokens that end a text are
            those of the model's ``generation_config``.
        batch_size: Rows per forward pass, >= 1, or ``auto``.
    """

    def __init__(self, live: LiveModel, *, batch_size: BatchSize) -> None:
        self._live = live
        self._batch_size = batch_size
        self._limits: BatchLimits | None = None
        self._watchers: dict[tuple[str, ...], StopStrings] = {}

    @torch.inference_mode()
    def generate(self, prompts: Sequence[Prompt], on_text: OnText = ignore_text) -> list[str]:
        """See ``evaluators.backend.GenerationBackend``; texts are told as rows end."""
        if not prompts:
            return []
        model, tokenizer = self._live.model, self._live.tokenizer
        if self._limits is None:
            self._limits = limits_for(model, self._batch_size)
        limits = self._limits
        texts = [""] * len(prompts)

        def tell(row: Row) -> None:
            texts[row.index] = text_of(tokenizer, row.generated, row.watcher)
            on_text(row.index, texts[row.index])
            row.told = True

        def run(batch: list[Row]) -> None:
            for row in batch:
                row.restart()
            decode(model, batch, prefill_tokens=limits.prefill_tokens, on_end=tell)

        rows = [
            Row(index, prompt, self._watcher(prompt.stops)) for index, prompt in enumerate(prompts)
        ]
        rows.sort(key=lambda row: (row.prompt.max_new_tokens, len(row.prompt.token_ids)))
        per_token = cache_bytes_per_token(model)
        run_in_batches(
            limits,
            rows,
            bytes_of=lambda batch: len(batch) * max(row.width for row in batch) * per_token,
            run=run,
            is_done=lambda row: row.told,
        )
        return texts

    def weights_changed(self) -> None:
        """Do nothing: keys and values live no longer than their batch."""

    def close(self) -> None:
        """Do nothing."""

    def _watcher(self, stops: tuple[str, ...]) -> StopStrings:
        if stops not in self._watchers:
            self._watchers[stops] = StopStrings(self._live.tokenizer, stops)
        return self._watchers[stops]


def text_of(tokenizer: PreTrainedTokenizerBase, generated: list[int], watcher: StopStrings) -> str:
    """Decode a continuation without special tokens, and cut it at its stop strings."""
    return watcher.cut(str(tokenizer.decode(generated, skip_special_tokens=True)))
