"""The contract between evaluation and whatever continues prompts with a live model.

``evaluators.generation.StaticBatches`` is the default, ``evaluators.continuous`` holds the
continuous batches of ``transformers``; an engine in processes of its own fits behind the same
four methods. Start at :class:`GenerationBackend`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol


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


OnText = Callable[[int, str], None]
"""Called with the index of a prompt and its text, as soon as the text is known."""


def ignore_text(_index: int, _text: str) -> None:
    """Do nothing with a text that is known before the others."""


class GenerationBackend(Protocol):
    """Continues prompts greedily, row by row as stock lm-eval does at batch size 1.

    A backend serves one live model. Between two calls of :meth:`generate` the model's weights
    may be overwritten in place; whoever does that calls :meth:`weights_changed` before the next
    one. Whatever a backend keeps that was computed from weights (keys and values of prompts that
    begin alike, captured graphs with constants folded in, copies of the weights in a process of
    its own) is dropped or renewed there.
    """

    def generate(self, prompts: Sequence[Prompt], on_text: OnText = ignore_text) -> list[str]:
        """Continue prompts.

        Args:
            prompts: What to continue; budgets and stop strings may differ.
            on_text: Called once for every prompt, in the thread of the caller, in any order.

        Returns:
            The continuations, aligned with ``prompts``, each cut at its stop strings.

        Raises:
            EvaluationError: A logit is not finite, or a prompt asks for what the backend lacks.
        """
        ...

    def weights_changed(self) -> None:
        """Forget all that was computed from the weights as they were."""
        ...

    def close(self) -> None:
        """Release threads, processes and device memory; may be called twice."""
        ...
