"""One batch of rows, decoded greedily to their ends. Start at :func:`decode`.

Prompts are read in chunks of rows of about one length and put together in one left-padded
key-value cache; a batch of all lengths would spend half of its time on padding. A row leaves in
the step in which it ends, and with the last long row its columns leave too.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from configs.errors import EvaluationError
from evaluators.kv_cache import drop_columns, is_plain, place, roomy_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from evaluators.backend import Prompt
    from evaluators.stop_strings import StopStrings


class Row:
    """A prompt, what it has been continued with, and whether that has ended and been told."""

    __slots__ = ("ended", "generated", "index", "prompt", "told", "watcher")

    def __init__(self, index: int, prompt: Prompt, watcher: StopStrings) -> None:
        self.index = index
        self.prompt = prompt
        self.watcher = watcher
        self.generated: list[int] = []
        self.ended = False
        self.told = False

    @property
    def width(self) -> int:
        """Most tokens that the row can come to hold."""
        return len(self.prompt.token_ids) + self.prompt.max_new_tokens

    def accept(self, token_id: int, ends: frozenset[int]) -> bool:
        """Append a token; return whether the row goes on."""
        self.generated.append(token_id)
        self.ended = (
            token_id in ends
            or len(self.generated) >= self.prompt.max_new_tokens
            or (self.watcher.ended_by(token_id) and self.watcher.found_in(self.generated))
        )
        return not self.ended

    def restart(self) -> None:
        """Forget what was generated."""
        self.generated.clear()
        self.ended = False


def end_ids(model: PreTrainedModel) -> frozenset[int]:
    """Return the tokens that end a text."""
    found = model.generation_config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)


def decode(
    model: PreTrainedModel,
    rows: list[Row],
    *,
    prefill_tokens: int,
    on_end: Callable[[Row], None],
) -> None:
    """Continue the rows of one batch to their ends, in place.

    Args:
        model: A decoder model in evaluation mode.
        rows: The batch, shortest prompts first; nothing generated yet.
        prefill_tokens: Most tokens, padding included, of one pass over prompts; a longer prompt
            makes a pass of its own.
        on_end: Called with every row when it ends.

    Raises:
        EvaluationError: A logit is not finite: the weights are broken.
    """
    ends = end_ids(model)
    for tokens in (stepper := _Stepper(model, rows, prefill_tokens)):
        going = [row.accept(token, ends) for row, token in zip(stepper.rows, tokens, strict=True)]
        ended = [row for row, goes_on in zip(stepper.rows, going, strict=True) if not goes_on]
        # Told first: rows are copied below, for which the memory may not suffice.
        for row in ended:
            on_end(row)
        stepper.keep(_fill_holes(going))


def _fill_holes(going: list[bool]) -> list[int]:
    """Order the rows that go on: each hole is filled by the last row, the others stay.

    Returns:
        ``order`` such that slot k is to be taken by the row that was in slot ``order[k]``.
    """
    order = list(range(len(going)))
    slot = 0
    while slot < len(order):
        if going[order[slot]]:
            slot += 1
        else:
            order[slot] = order[-1]
            order.pop()
    return order


class _Stepper:
    """One forward pass per iteration over the rows that are left; yields their next tokens."""

    def __init__(self, model: PreTrainedModel, rows: list[Row], prefill_tokens: int) -> None:
        self.rows = rows
        self._model = model
        self._prefill_tokens = prefill_tokens
        self._is_plain = is_plain(model)
        self._cache = roomy_cache(model)
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        lengths = [len(row.prompt.token_ids) for row in rows]
        self._width = max(lengths)
        self._pads = [self._width - length for length in lengths]
        # Equal lengths need no mask, and attention is faster without one.
        self._mask = self._make_mask(rows) if any(self._pads) else None
        self._next_position = torch.tensor(lengths, device=model.device)[:, None]
        self._last = torch.zeros(len(rows), dtype=torch.long, device=model.device)

    def __iter__(self) -> Iterator[list[int]]:
        yield self._first()
        while self.rows:
            mask = self._mask
            if mask is not None:
                mask = mask[:, : self._cache.get_seq_length() + 1]
            logits = self._forward(self._last[:, None], self._next_position, mask, self._cache)
            self._next_position = self._next_position + 1
            yield self._choose(logits, self.rows)

    def keep(self, order: list[int]) -> None:
        """Drop the rows that ended; see :func:`_fill_holes`."""
        if len(order) == len(self.rows):
            return
        self.rows = [self.rows[slot] for slot in order]
        if not order:
            return
        index = torch.tensor(order, device=self._model.device)
        self._next_position = self._next_position[index]
        self._last = self._last[index]
        self._cache.batch_select_indices(index)
        if self._mask is None:
            return
        self._mask = self._mask[index]
        self._pads = [self._pads[slot] for slot in order]
        if self._is_plain and (common := min(self._pads)):
            drop_columns(self._cache, common)
            self._mask = self._mask[:, common:]
            self._pads = [pad - common for pad in self._pads]
        if not any(self._pads):
            self._mask = None

    def _make_mask(self, rows: list[Row]) -> torch.Tensor:
        longest = max(row.prompt.max_new_tokens for row in rows)
        columns = torch.arange(self._width + longest)[None, :]
        mask = columns >= torch.tensor(self._pads)[:, None]
        return mask.to(self._model.device, torch.long)

    def _first(self) -> list[int]:
        """Read the prompts; return the first tokens."""
        tokens: list[int] = []
        for start, end in self._chunks():
            chunk = self.rows[start:end]
            whole = end - start == len(self.rows)
            cache = self._cache if whole else roomy_cache(self._model)
            tokens += self._read(chunk, cache, start)
            if not whole:
                place(self._cache, cache, slot=start, rows=len(self.rows), width=self._width)
        return tokens

    def _chunks(self) -> Iterator[tuple[int, int]]:
        start = 0
        while start < len(self.rows):
            end = start + 1 if self._is_plain else len(self.rows)
            widest = len(self.rows[start].prompt.token_ids)
            while end < len(self.rows):
                widest = max(widest, len(self.rows[end].prompt.token_ids))
                if (end + 1 - start) * widest > self._prefill_tokens:
                    break
                end += 1
            yield start, end
            start = end

    def _read(self, rows: list[Row], cache: object, start: int) -> list[int]:
        """Run the prompts of some rows, padded on the left to the longest of them."""
        width = max(len(row.prompt.token_ids) for row in rows)
        pads = [width - len(row.prompt.token_ids) for row in rows]
        padding = _pad_id(self._model) if any(pads) else 0
        inputs = [
            [padding] * pad + list(row.prompt.token_ids)
            for pad, row in zip(pads, rows, strict=True)
        ]
        columns = torch.arange(width)[None, :] - torch.tensor(pads)[:, None]
        device = self._model.device
        mask = (columns >= 0).to(device, torch.long) if any(pads) else None
        logits = self._forward(
            torch.tensor(inputs, device=device), columns.clamp(min=0).to(device), mask, cache
        )
        return self._choose(logits, rows, start)

    def _forward(
        self,
        inputs: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None,
        cache: object,
    ) -> torch.Tensor:
        """Run (rows, n) token ids through the model; return the last float32 logits."""
        arguments: dict[str, object] = {
            "attention_mask": mask,
            "position_ids": positions,
            "logits_to_keep": 1,
        }
        arguments = {name: value for name, value in arguments.items() if name in self._accepts}
        output = self._model(input_ids=inputs, past_key_values=cache, use_cache=True, **arguments)
        logits: torch.Tensor = output.logits[:, -1].float()
        return logits

    def _choose(self, logits: torch.Tensor, rows: list[Row], start: int = 0) -> list[int]:
        """Return the most likely tokens of some rows, and keep them for the next step."""
        # One pass and one number: NaN and infinities both survive a sum.
        finite = torch.isfinite(logits.sum())
        if any(row.prompt.repetition_penalty != 1.0 for row in rows):
            logits = _penalized(logits, rows)
        chosen = logits.argmax(dim=-1)
        self._last[start : start + len(rows)] = chosen
        # One transfer from the device for both.
        *tokens, is_finite = torch.cat([chosen, finite[None].long()]).tolist()
        if not is_finite:
            _refuse(logits, rows)
        return list(tokens)


def _refuse(logits: torch.Tensor, rows: list[Row]) -> None:
    count = int((~torch.isfinite(logits)).any(dim=-1).sum())
    step = len(rows[0].generated) + 1
    raise EvaluationError(
        f"logits are not finite for {count} of {len(rows)} prompts at generated token "
        f"{step}: the weights of this candidate are broken",
        step=step,
        rows=count,
    )


def _penalized(logits: torch.Tensor, rows: list[Row]) -> torch.Tensor:
    logits = logits.clone()
    for slot, row in enumerate(rows):
        penalty = row.prompt.repetition_penalty
        seen = torch.tensor(sorted({*row.prompt.token_ids, *row.generated}))
        seen = seen.to(logits.device)
        values = logits[slot, seen]
        logits[slot, seen] = torch.where(values < 0, values * penalty, values / penalty)
    return logits


def _pad_id(model: PreTrainedModel) -> int:
    # Padding is masked out, so any token of the vocabulary would do.
    pad = model.generation_config.pad_token_id
    return pad if isinstance(pad, int) and pad >= 0 else 0
