"""Greedy generation for many prompts: the texts of stock lm-eval, at a fraction of the cost.

Prompts are sorted by token budget and length and run in left-padded batches over a key-value
cache. A row leaves its batch at the step in which it ends (end of text, stop string, or budget),
where ``transformers``' ``generate`` carries every row to the end of the slowest one. Start at
:func:`generate`.

What a text is follows ``HFLM.generate_until`` of lm-eval 0.4.13 row by row: the argmax of the
float32 logits, no sampling, decoding without special tokens, and a cut at the first occurrence of
each stop string. Where stock's text depends on the rest of the batch (a stop string that is a
special token but no end of text), ours is that of stock at batch size 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from configs.errors import EvaluationError
from evaluators.kv_cache import roomy_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One text to continue.

    Attributes:
        token_ids: The prompt, at least one token, already truncated to leave room.
        max_new_tokens: Budget, >= 1.
        stops: Strings at which the continuation is cut; empty ones are ignored.
        repetition_penalty: Divides positive and multiplies negative logits of tokens that
            occurred, as ``transformers`` does; 1 changes nothing.
    """

    token_ids: tuple[int, ...]
    max_new_tokens: int
    stops: tuple[str, ...] = ()
    repetition_penalty: float = 1.0


class StopStrings:
    """Says when a row of tokens has produced one of its stop strings.

    A stop string can only be completed by a token whose own text holds the string's last
    character (or a part of it), so decoding is needed at those tokens alone.

    Args:
        tokenizer: Decodes tokens; kept.
        stops: The strings, in the order in which the text is cut.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self.stops = tuple(stop for stop in stops if stop)
        self._last_characters = {stop[-1] for stop in self.stops}
        # A token may stand for as little as one byte of a stop string.
        self._tail = max((len(stop.encode()) for stop in self.stops), default=0) + 1
        self._may_end: dict[int, bool] = {}

    def ended_by(self, token_id: int) -> bool:
        """Whether a token could complete a stop string; False is certain, True is not."""
        known = self._may_end.get(token_id)
        if known is None:
            known = self._may_end[token_id] = self._could_end(token_id)
        return known

    def found_in(self, token_ids: list[int]) -> bool:
        """Whether generated tokens hold a stop string near their end.

        Special tokens count by their text here, as in stock's stopping criterion.
        """
        for part in (token_ids[-self._tail :], token_ids):
            text = self._decode(part)
            if not any(stop in text for stop in self.stops):
                return False
        return True

    def cut(self, text: str) -> str:
        """Return the part of a text before its stop strings, cut one after the other."""
        for stop in self.stops:
            text = text.partition(stop)[0]
        return text

    def _could_end(self, token_id: int) -> bool:
        if not self.stops:
            return False
        # A piece alone may lose a space that it has inside a text: "▁" and "Ġ" stand for it.
        piece = str(self._tokenizer.convert_ids_to_tokens(token_id))
        text = self._decode([token_id])
        if _UNDECODABLE in text or piece.startswith("<0x"):
            return True
        has_space = any(character.isspace() for character in self._last_characters)
        if has_space and any(mark in piece for mark in "▁Ġ"):
            return True
        return any(character in text or character in piece for character in self._last_characters)

    def _decode(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=False))


@torch.inference_mode()
def generate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
) -> list[str]:
    """Continue prompts greedily.

    Args:
        model: A decoder model in evaluation mode. The tokens that end a text are those of its
            ``generation_config``.
        tokenizer: Decodes the continuations.
        prompts: What to continue; budgets and stop strings may differ.
        batch_size: Rows per forward pass, >= 1.

    Returns:
        The continuations, aligned with ``prompts``, each cut at its stop strings.

    Raises:
        EvaluationError: A logit is not finite: the weights are broken.
    """
    if not prompts:
        return []
    watchers: dict[tuple[str, ...], StopStrings] = {
        stops: StopStrings(tokenizer, stops) for stops in {prompt.stops for prompt in prompts}
    }
    order = sorted(
        range(len(prompts)),
        key=lambda i: (prompts[i].max_new_tokens, len(prompts[i].token_ids)),
    )
    rows = [_Row(prompt, watchers[prompt.stops]) for prompt in prompts]
    ends = _end_ids(model)
    for start in range(0, len(order), batch_size):
        _generate_batch(model, [rows[i] for i in order[start : start + batch_size]], ends)
    texts = tokenizer.batch_decode([row.generated for row in rows], skip_special_tokens=True)
    return [row.watcher.cut(str(text)) for row, text in zip(rows, texts, strict=True)]


class _Row:
    """A prompt, what it has been continued with, and whether that has ended."""

    __slots__ = ("generated", "prompt", "watcher")

    def __init__(self, prompt: Prompt, watcher: StopStrings) -> None:
        self.prompt = prompt
        self.watcher = watcher
        self.generated: list[int] = []

    def accept(self, token_id: int, ends: frozenset[int]) -> bool:
        """Append a token; return whether the row goes on."""
        self.generated.append(token_id)
        if token_id in ends or len(self.generated) >= self.prompt.max_new_tokens:
            return False
        return not (self.watcher.ended_by(token_id) and self.watcher.found_in(self.generated))


def _end_ids(model: PreTrainedModel) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    if found is None:
        return frozenset()
    return frozenset([found] if isinstance(found, int) else found)


def _generate_batch(model: PreTrainedModel, rows: list[_Row], ends: frozenset[int]) -> None:
    """Continue the rows of one batch to their ends, in place."""
    for tokens in (stepper := _Stepper(model, rows)):
        going = [row.accept(token, ends) for row, token in zip(stepper.rows, tokens, strict=True)]
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

    def __init__(self, model: PreTrainedModel, rows: list[_Row]) -> None:
        self.rows = rows
        self._model = model
        self._cache = roomy_cache(model)
        self._accepts = frozenset(inspect.signature(model.forward).parameters)
        lengths = [len(row.prompt.token_ids) for row in rows]
        self._width, longest_budget = max(lengths), max(row.prompt.max_new_tokens for row in rows)
        # Equal lengths need no mask, and attention is faster without one.
        self._mask: torch.Tensor | None = None
        if min(lengths) < self._width:
            self._mask = torch.ones(
                (len(rows), self._width + longest_budget), dtype=torch.long, device=model.device
            )
            for slot, length in enumerate(lengths):
                self._mask[slot, : self._width - length] = 0
        self._next_position = torch.tensor(lengths, device=model.device)[:, None]

    def __iter__(self) -> Iterator[list[int]]:
        tokens = self._first()
        while True:
            yield tokens
            if not self.rows:
                return
            last = [row.generated[-1] for row in self.rows]
            inputs = torch.tensor(last, device=self._model.device)[:, None]
            tokens = self._forward(inputs, self._next_position)
            self._next_position = self._next_position + 1

    def keep(self, order: list[int]) -> None:
        """Drop the rows that ended; see :func:`_fill_holes`."""
        if len(order) == len(self.rows):
            return
        self.rows = [self.rows[slot] for slot in order]
        if not order:
            return
        index = torch.tensor(order, device=self._model.device)
        self._next_position = self._next_position[index]
        if self._mask is not None:
            self._mask = self._mask[index]
        self._cache.batch_select_indices(index)

    def _first(self) -> list[int]:
        pad = 0 if self._mask is None else _pad_id(self._model)
        inputs = [
            [pad] * (self._width - len(row.prompt.token_ids)) + list(row.prompt.token_ids)
            for row in self.rows
        ]
        columns = torch.arange(self._width, device=self._model.device)[None, :]
        positions = (columns - (self._width - self._next_position)).clamp_(min=0)
        return self._forward(torch.tensor(inputs, device=self._model.device), positions)

    def _forward(self, inputs: torch.Tensor, positions: torch.Tensor) -> list[int]:
        """Run (rows, n) token ids through the model; return the argmax of each last logits."""
        seen = self._cache.get_seq_length() + inputs.shape[1]
        arguments: dict[str, object] = {
            "attention_mask": None if self._mask is None else self._mask[:, :seen],
            "position_ids": positions,
            "logits_to_keep": 1,
        }
        arguments = {name: value for name, value in arguments.items() if name in self._accepts}
        output = self._model(
            input_ids=inputs, past_key_values=self._cache, use_cache=True, **arguments
        )
        logits = output.logits[:, -1].float()
        self._check_finite(logits)
        if any(row.prompt.repetition_penalty != 1.0 for row in self.rows):
            logits = self._penalized(logits)
        tokens: list[int] = logits.argmax(dim=-1).tolist()
        return tokens

    def _check_finite(self, logits: torch.Tensor) -> None:
        # One pass and one number: NaN and infinities both survive a sum.
        if torch.isfinite(logits.sum()):
            return
        count = int((~torch.isfinite(logits)).any(dim=-1).sum())
        step = len(self.rows[0].generated) + 1
        raise EvaluationError(
            f"logits are not finite for {count} of {len(self.rows)} prompts at generated token "
            f"{step}: the weights of this candidate are broken",
            step=step,
            rows=count,
        )

    def _penalized(self, logits: torch.Tensor) -> torch.Tensor:
        logits = logits.clone()
        for slot, row in enumerate(self.rows):
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
