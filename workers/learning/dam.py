"""Differentiable adaptive merging: one learned coefficient per input column and checkpoint.

Gauthier-Caron et al., "Merging in a Bottle" (arXiv:2410.08371), section on DAM. The merge of a
matrix is

    W = sum_i W_i diag(c_i),

with c_i a vector over the columns of W_i, its inputs (embeddings: the hidden dimensions; vectors,
as of norms: one coefficient per element). Learned are all c_i, by minimizing

    sum_i T^2 KL(p_i || p; T) on texts of checkpoint i
    + s sum_W mean_{i<j} cos(c_i, c_j) + l1 sum |c| + l2 sum c^2

where p_i is what checkpoint i predicts at every token, p what the merge predicts, and T the
temperature. The cosine keeps checkpoints from having the same columns. The defaults of T and s, and
the start at 1/N, are those of the authors' published code (arcee-ai/DAM, ``dam/train_dam.py``,
``dam/modeling/dam.py``, ``dam/custom_trainer/dam_trainer.py``); the equations follow it where the
text leaves room. Where we differ from that code:

- It merges with tanh(c_i), so no coefficient is beyond 1; here c_i is free.
- KL is a mean over the tokens of a batch; it divides by the number of texts in the batch as well.
- Its penalties are on: 1e-6 sum_i ||c_i||_1 + 1e-5 sum_i ||c_i||_2, the latter of norms, not of
  squares. Here they are off unless asked for, and ``l2`` is of squares.
- Its weight decay is 0.01; here it is 0.
- Its learning rate is 1e-2 and falls linearly to 0; here it is 1e-3 throughout.
- It takes 3 epochs, each step with 8 batches of 4 texts of every checkpoint, in bfloat16, and
  clips the norm of the gradient at 1. Here it is ``steps`` of one batch in float32, unclipped.
- A bias has one coefficient per checkpoint there; here one per element.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from workers.learning import losses
from workers.learning.descent import OnStep, descend
from workers.learning.merged_model import LearnableMerge, leaf
from workers.learning.predictions import predict
from workers.learning.teachers import Teachers
from workers.learning.texts import TextBatch, TokenIds, endless, make_batches
from workers.shard_header import TensorEntry


@dataclass(frozen=True, slots=True)
class DamSettings:
    """What DAM is learned with.

    Attributes:
        steps: Steps of AdamW, each with one batch of every checkpoint's data.
        lr: Learning rate of AdamW.
        batch_size: Texts per batch.
        seed: Decides batches and their order.
        temperature: T of the distributions that are compared, > 0.
        similarity: Weight s of the cosine between checkpoints, >= 0.
        l1: Weight of the sum of magnitudes, >= 0.
        l2: Weight of the sum of squares, >= 0.
        weight_decay: AdamW's, towards zero, >= 0.
        init: What all coefficients begin with; None is 1/N.
    """

    method: ClassVar[str] = "dam"

    steps: int = 300
    lr: float = 1e-3
    batch_size: int = 8
    seed: int = 0
    temperature: float = 2.0
    similarity: float = 0.01
    l1: float = 0.0
    l2: float = 0.0
    weight_decay: float = 0.0
    init: float | None = None


def dam_coefficients(
    entries: Iterable[TensorEntry], count: int, settings: DamSettings
) -> dict[str, Tensor]:
    """Return the coefficients to begin with, ``(count, columns)``, for every floating tensor."""
    begin = 1.0 / count if settings.init is None else settings.init
    return {
        entry.name: leaf(count, entry.row_length, begin) for entry in entries if entry.is_floating
    }


def learn_dam(
    merge: LearnableMerge,
    texts: Mapping[str, Sequence[TokenIds]],
    settings: DamSettings,
    *,
    pad_id: int,
    on_step: OnStep = lambda _: None,
    keeps_logits: bool | None = None,
) -> list[dict[str, float]]:
    """Learn the coefficients of a merge; they and the model change in place.

    Memory: what ``LearnableMerge`` and ``Teachers`` state, and while a step is taken the logits of
    one batch, of the merge and of every checkpoint.

    Args:
        merge: Without a base, with the coefficients of :func:`dam_coefficients`.
        texts: Name of each checkpoint, in the order of the pool -> its data; of one that has
            none, nothing is distilled.
        settings: How.
        pad_id: A token to pad with.
        on_step: Told of every step.
        keeps_logits: As for ``Teachers``.

    Returns:
        Losses of every step: ``kl/NAME`` of every checkpoint, ``similarity``, ``l1``, ``l2``, and
        their sum ``loss``.

    Raises:
        EvaluationError: A loss is not finite.
    """
    names = list(texts)
    generator = torch.Generator().manual_seed(settings.seed)
    batches = [
        make_batches(own, batch_size=settings.batch_size, pad_id=pad_id, generator=generator)
        if own
        else []
        for own in texts.values()
    ]
    teachers = Teachers(merge, batches, keeps=keeps_logits)
    orders = {i: endless(len(own), generator) for i, own in enumerate(batches) if own}
    optimizer = torch.optim.AdamW(
        merge.leaves, lr=settings.lr, weight_decay=settings.weight_decay, foreach=False
    )

    def add_gradients() -> dict[str, float]:
        wanted = [(index, next(order)) for index, order in orders.items()]
        targets = teachers.logits(wanted)
        merge.write()
        found = {}
        for (index, number), target in zip(wanted, targets, strict=True):
            batch = batches[index][number]
            found[f"kl/{names[index]}"] = _distil(merge, batch, target, settings.temperature)
        return found | _regularize(merge.coefficients, settings)

    return descend(merge, optimizer, add_gradients, steps=settings.steps, on_step=on_step)


def _distil(merge: LearnableMerge, batch: TextBatch, target: Tensor, temperature: float) -> float:
    logits = predict(merge.model, batch)
    loss = losses.distillation(target.to(logits.device), logits, temperature=temperature)
    loss.backward()
    return loss.item()


def _regularize(coefficients: Mapping[str, Tensor], settings: DamSettings) -> dict[str, float]:
    """Add the gradients of the penalties, and return them."""
    penalties: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
        "similarity": (settings.similarity, losses.similarity),
        "l1": (settings.l1, lambda c: c.abs().sum()),
        "l2": (settings.l2, lambda c: c.square().sum()),
    }
    found = {}
    for name, (weight, penalty) in penalties.items():
        if weight:
            total = weight * torch.stack([penalty(c) for c in coefficients.values()]).sum()
            total.backward()
            found[name] = total.item()
    return found
