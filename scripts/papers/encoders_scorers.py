"""Scorers of encoders, as job files name them: accuracy, nDCG and Spearman's correlation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file

from evaluators.contributions import spearman_contributions
from evaluators.scores import FloatArray

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_DEPTH = 10


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[dict[str, Any]],
    *,
    batch_size: int,
    head: str,
) -> FloatArray:
    """Classify texts with a task's own head, which is no part of the merge.

    Args:
        model: The merged body, with BERT's pooler.
        tokenizer: Its tokenizer.
        items: ``text`` and ``label``.
        batch_size: Texts per pass.
        head: Path of the safetensors file of the head: ``weight``, (labels, hidden), and ``bias``.

    Returns:
        ``(n,)``: 1 where the label is right, else 0.
    """
    layer = load_file(head)
    pooled = _in_batches(
        model, tokenizer, [item["text"] for item in items], batch_size, pooler=True
    )
    predicted = (pooled @ layer["weight"].double().T + layer["bias"].double()).argmax(-1)
    labels = torch.tensor([item["label"] for item in items])
    return np.asarray((predicted == labels).double())


def ndcg(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[dict[str, Any]],
    *,
    batch_size: int,
    corpus: str,
) -> FloatArray:
    """Retrieve the passage of each query among all of a corpus: nDCG at 10.

    With one relevant passage that is 1 / log2(1 + rank) for ranks up to 10, and 0 beyond.

    Args:
        model: Its mean-pooled outputs are compared by their cosine.
        tokenizer: Its tokenizer.
        items: ``query`` and ``passage``.
        batch_size: Texts per pass.
        corpus: Path of a JSON list with every passage, those of the items among them.

    Returns:
        ``(n,)`` in [0, 1].
    """
    passages: list[str] = json.loads(Path(corpus).read_text(encoding="utf-8"))
    place = {passage: index for index, passage in enumerate(passages)}
    queries = embed(model, tokenizer, [item["query"] for item in items], batch_size)
    cosines = queries @ embed(model, tokenizer, passages, batch_size).T
    right = torch.tensor([place[item["passage"]] for item in items])
    # Those that are as near count as nearer: an encoder that tells nothing apart finds nothing.
    ranks = (cosines >= cosines.gather(1, right[:, None])).sum(1).double()
    return np.asarray(torch.where(ranks <= _DEPTH, 1 / torch.log2(1 + ranks), 0.0))


def spearman(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    items: list[dict[str, Any]],
    *,
    batch_size: int,
) -> FloatArray:
    """Spearman's correlation of cosines with the scores of pairs, divided among them.

    Args:
        model: Its mean-pooled outputs are compared by their cosine.
        tokenizer: Its tokenizer.
        items: Texts ``a`` and ``b`` with their ``score``.
        batch_size: Texts per pass.

    Returns:
        ``(n,)`` whose mean is the correlation.
    """
    first, second = (
        embed(model, tokenizer, [item[side] for item in items], batch_size) for side in "ab"
    )
    cosines = (first * second).sum(-1)
    return spearman_contributions(cosines.numpy(), [item["score"] for item in items])


def embed(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
) -> torch.Tensor:
    """Return the means of the last layer's outputs, ``(n, hidden)`` float64 of length 1."""
    vectors = _in_batches(model, tokenizer, texts, batch_size, pooler=False)
    return torch.nn.functional.normalize(vectors, dim=-1)


def _in_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    batch_size: int,
    *,
    pooler: bool,
) -> torch.Tensor:
    """Encode texts, those of similar length together; ``(n, hidden)`` float64 on the CPU."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    parts = []
    for start in range(0, len(order), batch_size):
        chosen = [texts[index] for index in order[start : start + batch_size]]
        tokens = tokenizer(chosen, padding=True, return_tensors="pt").to(model.device)
        parts.append(pool(model, tokens, pooler=pooler).double().cpu())
    vectors = torch.cat(parts)
    back = torch.empty(len(order), dtype=torch.long)
    back[torch.tensor(order)] = torch.arange(len(order))
    return vectors[back]


# transformers types neither what its models return nor its encodings.
def pool(model: Any, tokens: Any, *, pooler: bool) -> torch.Tensor:  # noqa: ANN401
    """Return BERT's pooler's vectors, or the means of the outputs over tokens: ``(n, hidden)``."""
    outputs = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    if pooler:
        pooled: torch.Tensor = outputs.pooler_output
        return pooled
    mask = tokens["attention_mask"][..., None]
    means: torch.Tensor = (outputs.last_hidden_state * mask).sum(1) / mask.sum(1)
    return means
