"""Texts without answers, as tokens: from files and prompts to batches in an order by seed."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import AutoTokenizer

from configs.errors import CheckpointError
from workers.checkpoint import CheckpointReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TokenIds = tuple[int, ...]
_FIELDS = ("text", "prompt")
# How configs of models spell the number of positions.
_LENGTHS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
_MOST_BAD_LINES = 3


@dataclass(frozen=True, slots=True)
class TextBatch:
    """Some texts, padded on the right.

    Attributes:
        token_ids: ``(b, l)`` int64.
        mask: ``(b, l)`` int64, 1 where there is a token.
    """

    token_ids: Tensor
    mask: Tensor

    def to(self, device: torch.device) -> "TextBatch":
        """Return the batch on a device."""
        return TextBatch(self.token_ids.to(device), self.mask.to(device))

    @property
    def lengths(self) -> Tensor:
        """``(b,)`` tokens of every text."""
        return self.mask.sum(dim=1)


def read_texts(path: Path) -> list[str]:
    """Read a file of texts: ``.jsonl`` with ``text`` or ``prompt`` in each line, else plain lines.

    Blank lines do not count.

    Raises:
        ValueError: The file cannot be read, holds no text, or lines of another form; says which.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}; check the name") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if path.suffix != ".jsonl":
        texts = [line for _, line in numbered]
    else:
        found = [(number, _text_of(line)) for number, line in numbered]
        bad = [str(number) for number, text in found if text is None]
        if bad:
            more = f" and {len(bad) - _MOST_BAD_LINES} more" if len(bad) > _MOST_BAD_LINES else ""
            raise ValueError(
                f"{path}: every line must be a JSON object whose `text` or `prompt` is a text that "
                f"is not empty, found others in line {', '.join(bad[:_MOST_BAD_LINES])}{more}"
            )
        texts = [text for _, text in found if text is not None]
    if not texts:
        raise ValueError(f"{path} holds no text; write one per line")
    return texts


def _text_of(line: str) -> str | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict):
        return None
    found = next((content[field] for field in _FIELDS if content.get(field)), None)
    return found if isinstance(found, str) else None


def load_tokenizer(directory: Path) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: It cannot be loaded.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{directory}: no tokenizer that can be loaded: {error}; check its files there",
            path=str(directory),
        ) from error
    return tokenizer


def longest_text(directory: Path, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return how many tokens a model sees, by its config and its tokenizer."""
    with CheckpointReader(directory) as reader:
        named = [reader.config.get(key) for key in _LENGTHS]
    # A tokenizer that knows no limit says 10^30.
    return min([n for n in (*named, tokenizer.model_max_length) if isinstance(n, int) and n > 0])


def pad_id_of(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Return a token that stands where none is: masked, so any would do."""
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if isinstance(found, int):
            return found
    return 0


def encode_texts(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    max_tokens: int,
    is_causal: bool,
) -> list[TokenIds]:
    """Turn texts into tokens, at most ``max_tokens`` of each; empty ones are left out.

    Of a text that is longer a model that continues texts gets the end, where the question is; an
    encoder gets the beginning, with its special tokens around it.
    """
    encoded: list[TokenIds] = []
    for text in texts:
        if is_causal:
            ids = tokenizer.encode(text)[-max_tokens:]
        else:
            ids = tokenizer.encode(text, truncation=True, max_length=max_tokens)
        if ids:
            encoded.append(tuple(ids))
    return encoded


def make_batches(
    texts: Sequence[TokenIds], *, batch_size: int, pad_id: int, generator: torch.Generator
) -> list[TextBatch]:
    """Shuffle texts and cut them into batches, whose members stay the same from then on.

    Args:
        texts: At least one, none of them empty.
        batch_size: Texts per batch; the last may have fewer.
        pad_id: What stands where no token is.
        generator: Decides the order.
    """
    order = torch.randperm(len(texts), generator=generator).tolist()
    shuffled = [texts[index] for index in order]
    return [
        pad(shuffled[begin : begin + batch_size], pad_id)
        for begin in range(0, len(shuffled), batch_size)
    ]


def pad(texts: Sequence[TokenIds], pad_id: int) -> TextBatch:
    """Make one batch of texts, in their order."""
    length = max(len(text) for text in texts)
    token_ids = torch.tensor([[*text, *[pad_id] * (length - len(text))] for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (length - len(text)) for text in texts])
    return TextBatch(token_ids, mask)


def endless(count: int, generator: torch.Generator) -> Iterator[int]:
    """Yield the positions of ``count`` batches for ever, in a new order every time around."""
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
