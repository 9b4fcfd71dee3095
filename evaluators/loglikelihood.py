"""Log-likelihoods of continuations, as stock lm-eval computes them.

Follows ``HFLM._loglikelihood_tokens`` of lm-eval 0.4.13: inputs are truncated from the left,
padded on the right without a mask (attention is causal), and requests that share all tokens but
the last share one forward pass, which makes multiple choice over single letters cost one row.
Logits are computed for the continuations only.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from configs.errors import EvaluationError
from evaluators.batches import (
    BatchLimits,
    BatchSize,
    likelihood_bytes,
    limits_for,
    run_in_batches,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Continuation:
    """Tokens to score after a context.

    Attributes:
        context_ids: What comes before, at least one token.
        token_ids: What is scored, at least one token.
    """

    context_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Sum of the natural-log probabilities, and whether greedy decoding says the same tokens."""

    log_probability: float
    is_greedy: bool


@torch.inference_mode()
def loglikelihoods(
    model: PreTrainedModel,
    continuations: Sequence[Continuation],
    *,
    batch_size: BatchSize,
    max_length: int,
    limits: BatchLimits | None = None,
) -> list[Likelihood]:
    """Score continuations.

    Args:
        model: A decoder model in evaluation mode.
        continuations: What to score; each continuation has at most ``max_length`` tokens.
        batch_size: Rows per forward pass, >= 1, or ``auto``.
        max_length: Most tokens that the model sees at once; longer contexts lose their start.
        limits: Those of earlier calls, which remember where memory ran out; shrunk in place.

    Returns:
        Likelihoods, aligned with ``continuations``.

    Raises:
        EvaluationError: A logit is not finite: the weights are broken.
    """
    sharing: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, item in enumerate(continuations):
        sharing[(item.context_ids + item.token_ids)[:-1][-max_length:]].append(index)
    inputs = sorted(sharing, key=lambda ids: (-len(ids), ids))
    results: dict[int, Likelihood] = {}

    longest = {
        ids: max(len(continuations[index].token_ids) for index in sharing[ids]) for ids in inputs
    }

    def bytes_of(batch: Sequence[tuple[int, ...]]) -> int:
        width, first = _columns(batch, [longest[ids] for ids in batch])
        return likelihood_bytes(model, len(batch), width, width - first)

    def run(batch: list[tuple[int, ...]]) -> None:
        scored = [[continuations[index] for index in sharing[ids]] for ids in batch]
        for ids, likelihoods in zip(batch, _score_batch(model, batch, scored), strict=True):
            results.update(zip(sharing[ids], likelihoods, strict=True))

    run_in_batches(
        limits or limits_for(model, batch_size),
        inputs,
        bytes_of=bytes_of,
        run=run,
        is_done=lambda ids: sharing[ids][0] in results,
    )
    return [results[index] for index in range(len(continuations))]


def _columns(inputs: Sequence[tuple[int, ...]], longest: Sequence[int]) -> tuple[int, int]:
    """Return the columns of a batch, and the first of those that logits are computed for.

    The logit of a token is at the position before it. A short row among long ones needs the
    logits of early columns, which are then computed for every row.

    Args:
        inputs: The rows.
        longest: Tokens of the longest continuation of each.
    """
    first = min(len(ids) - count for ids, count in zip(inputs, longest, strict=True))
    return max(map(len, inputs)), first


def _score_batch(
    model: PreTrainedModel,
    inputs: Sequence[tuple[int, ...]],
    scored: Sequence[Sequence[Continuation]],
) -> list[list[Likelihood]]:
    """Run one right-padded batch; ``scored[r]`` are the continuations that end with input r."""
    longest = [max(len(item.token_ids) for item in items) for items in scored]
    width, first = _columns(inputs, longest)
    rows = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in inputs], device=model.device)
    arguments: dict[str, object] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        arguments["logits_to_keep"] = width - first
    logits = model(input_ids=rows, **arguments).logits
    offset = width - logits.shape[1]
    return [
        _score_row(logits[row, len(ids) - count - offset : len(ids) - offset], items)
        for row, (ids, count, items) in enumerate(zip(inputs, longest, scored, strict=True))
    ]


def _score_row(logits: torch.Tensor, items: Sequence[Continuation]) -> list[Likelihood]:
    """Score the continuations of one input from its last ``(tokens, vocabulary)`` logits."""
    if not torch.isfinite(logits.sum()):
        raise EvaluationError(
            f"logits are not finite for a context of {len(items[0].context_ids)} tokens: the "
            "weights of this candidate are broken"
        )
    log_probabilities = torch.log_softmax(logits, dim=-1)
    likelihoods = []
    for item in items:
        tokens = torch.tensor(item.token_ids, device=logits.device)
        tail = log_probabilities[-len(tokens) :]
        total = float(tail.gather(1, tokens[:, None]).sum())
        likelihoods.append(Likelihood(total, bool((tail.argmax(dim=-1) == tokens).all())))
    return likelihoods
