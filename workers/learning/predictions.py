"""What a live model predicts about texts, and which models predict anything."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from workers.architecture import architecture_of, is_causal
from workers.learning.texts import TextBatch

_PER_TOKEN = ("ForMaskedLM", "ForTokenClassification")
_PER_TEXT = ("ForSequenceClassification",)


def has_predictions(config: Mapping[str, object]) -> bool:
    """Say whether a model of this ``config.json`` gives distributions that can be compared.

    Language models, and encoders with a head that classifies; not an encoder alone.
    """
    name = architecture_of(config) or ""
    return is_causal(config) or name.endswith((*_PER_TOKEN, *_PER_TEXT))


def classifies(config: Mapping[str, object]) -> bool:
    """Say whether a model decides something by each prediction: a next token, or a class of a text.

    A masked language model does not: it sees the tokens that it predicts.
    """
    return is_causal(config) or (architecture_of(config) or "").endswith(_PER_TEXT)


def predict(model: nn.Module, batch: TextBatch) -> Tensor:
    """Return the logits of all predictions of a batch, ``(p, v)``.

    A distribution over tokens for every token of the texts, none for padding; or one over classes
    for every text.
    """
    batch = batch.to(_device(model))
    logits = _logits(model, batch)
    return logits if logits.dim() == 2 else logits[batch.mask.bool()]


def predict_at(model: nn.Module, batch: TextBatch, positions: Tensor) -> Tensor:
    """Return the logits at some positions of a batch, ``(p, v)``.

    Args:
        model: Gives logits for every token.
        batch: Some texts.
        positions: ``(b, l)`` bool, where predictions count.
    """
    batch = batch.to(_device(model))
    return _logits(model, batch)[positions.to(batch.mask.device)]


def _logits(model: Any, batch: TextBatch) -> Tensor:  # noqa: ANN401 - any transformers model
    # Keys and values for a next token would be kept until the backward pass, and serve nobody.
    how = {"use_cache": False} if model.can_generate() else {}
    output: Any = model(input_ids=batch.token_ids, attention_mask=batch.mask, **how)
    logits: Tensor = output.logits
    return logits


def _device(model: nn.Module) -> torch.device:
    # Of a model that is spread over devices, the first, which embeds.
    return next(model.parameters()).device
