"""When a continuation has produced one of its stop strings, and where its text is cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNDECODABLE = "\N{REPLACEMENT CHARACTER}"


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
