"""AdaMerging: weights of task vectors that make the merge sure of its predictions.

Yang et al., "AdaMerging" (arXiv:2310.02575), section 3.2. The merge is

    theta = theta_0 + sum_i lambda_i (theta_i - theta_0)            (task-wise)
    theta^l = theta_0^l + sum_i lambda_i^l (theta_i^l - theta_0^l)  (layer-wise)

and the lambdas minimize the mean Shannon entropy of its predictions q on unlabelled items, summed
over the data of the checkpoints,

    min_lambda sum_i mean_{x of i} H(q(x)),   H(q) = -sum_k q_k log q_k,

by Adam from lambda = 0.3, as in the paper. Where we differ:

The authors' published code (``src/main_layer_wise_adamerging.py`` and ``main_task_wise``) clamps
every lambda to [0, 1] before it merges; here lambdas are free. It takes 500 steps, each with two
batches of 16 images of every task; the default here is 300, with one batch of 8 texts.

The paper's layers are single tensors; ours are the layers of the model, which a recipe can name,
and what stands before and after them.

The paper classifies images. What a *language model* predicts about an item is its answer, so by
default (``generated``) the merge continues every prompt greedily, and the entropy counts at the
tokens that it wrote, which are constants of the gradient. It costs a generation per batch.
``last`` looks at the first token of the answer only, one forward pass; it says much where answers
are short and little where they begin alike. ``all`` takes every token of the text, which asks for
a sure model of the prompts and not of the answers. Entropy knows no truth: a merge that repeats
itself is sure, so learn few steps and look at the scores.

The paper leaves every task its own classification head. A merge here is one checkpoint, so of
*encoders* with a head that classifies texts the head is merged like everything else, which makes
sense where the checkpoints have the same classes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from transformers import GenerationConfig

from configs.recipe import Group
from workers.layers import Layout
from workers.learning import losses
from workers.learning.descent import OnStep, descend
from workers.learning.merged_model import LearnableMerge, leaf
from workers.learning.predictions import predict, predict_at
from workers.learning.texts import TextBatch, TokenIds, endless, make_batches, pad

Granularity = Literal["task", "layer"]
Positions = Literal["generated", "last", "all"]


@dataclass(frozen=True, slots=True)
class AdaMergingSettings:
    """What AdaMerging is learned with.

    Attributes:
        steps: Steps of Adam, each with one batch of every set of data.
        lr: Learning rate of Adam.
        batch_size: Texts per batch.
        seed: Decides batches and their order.
        granularity: One weight per checkpoint (``task``), or one per layer, too.
        positions: Where predictions of a language model count, see the module; of encoders,
            there is one per text.
        new_tokens: Most tokens that ``generated`` writes per text, >= 1.
        init: What all weights begin with.
    """

    method: ClassVar[str] = "adamerging"

    steps: int = 300
    lr: float = 1e-3
    batch_size: int = 8
    seed: int = 0
    granularity: Granularity = "layer"
    positions: Positions = "generated"
    new_tokens: int = 16
    init: float = 0.3


def adamerging_groups(layout: Layout, granularity: Granularity) -> list[tuple[str, list[str]]]:
    """Return name and tensors of every group that has weights of its own, in their order."""
    if granularity == "task":
        return [("all", list(layout.names))]
    groups: dict[tuple[int, str, int], list[str]] = {}
    for name in layout.names:
        place = layout.place(name)
        if place is not None:
            key = (1, place.stack, place.layer)
        else:
            key = (0, "", 0) if layout.is_before_layers(name) else (2, "", 0)
        groups.setdefault(key, []).append(name)
    several = len(layout.stacks) > 1

    def label(key: tuple[int, str, int]) -> str:
        when, stack, layer = key
        if when != 1:
            return "before_layers" if when == 0 else "after_layers"
        return f"{stack.strip('.').replace('.', '_')}_{layer}" if several else f"layer_{layer}"

    return [(label(key), groups[key]) for key in sorted(groups)]


def recipe_groups(layout: Layout, groups: Sequence[tuple[str, list[str]]]) -> tuple[Group, ...]:
    """Return groups of tensors as a recipe has them, by regular expressions."""
    return tuple(Group(name=name, patterns=layout.patterns(names)) for name, names in groups)


def adamerging_coefficients(
    groups: Sequence[tuple[str, list[str]]], count: int, settings: AdaMergingSettings
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Return the weights to begin with: per group ``(count, 1)``, and the same by tensor name."""
    leaves = [leaf(count, 1, settings.init) for _ in groups]
    by_name = {name: one for (_, names), one in zip(groups, leaves, strict=True) for name in names}
    return leaves, by_name


def learn_adamerging(
    merge: LearnableMerge,
    texts: Mapping[str, Sequence[TokenIds]],
    settings: AdaMergingSettings,
    *,
    pad_id: int,
    max_length: int,
    on_step: OnStep = lambda _: None,
) -> list[dict[str, float]]:
    """Learn the weights of a merge; they and the model change in place.

    Memory: what ``LearnableMerge`` states, and the logits of one batch.

    Args:
        merge: On the base, with the weights of :func:`adamerging_coefficients`.
        texts: Sets of unlabelled texts by name, none empty; all count alike.
        settings: How.
        pad_id: A token to pad with.
        max_length: Most tokens that the model sees.
        on_step: Told of every step.

    Returns:
        Losses of every step: ``entropy/NAME`` of every set, and their sum ``loss``.

    Raises:
        EvaluationError: A loss is not finite.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    batches = {
        name: make_batches(own, batch_size=settings.batch_size, pad_id=pad_id, generator=generator)
        for name, own in texts.items()
    }
    orders = {name: endless(len(own), generator) for name, own in batches.items()}
    optimizer = torch.optim.Adam(merge.leaves, lr=settings.lr, foreach=False)
    predictions = _predictions(merge.model, settings, pad_id, max_length)

    def add_gradients() -> dict[str, float]:
        merge.write()
        found = {}
        for name, order in orders.items():
            loss = losses.entropy(predictions(merge.model, batches[name][next(order)]))
            loss.backward()
            found[f"entropy/{name}"] = loss.item()
        return found

    return descend(merge, optimizer, add_gradients, steps=settings.steps, on_step=on_step)


def _predictions(
    learned: Any,  # noqa: ANN401 - any transformers model
    settings: AdaMergingSettings,
    pad_id: int,
    max_length: int,
) -> Callable[[Any, TextBatch], Tensor]:
    """Return what gives the logits that count of a batch, ``(p, v)``."""
    if not learned.can_generate():
        return predict

    def last(model: Any, batch: TextBatch) -> Tensor:  # noqa: ANN401 - any transformers model
        positions = torch.arange(batch.mask.shape[1]) == batch.lengths[:, None] - 1
        return predict_at(model, batch, positions)

    def generated(model: Any, batch: TextBatch) -> Tensor:  # noqa: ANN401 - any transformers model
        whole, begins = continue_greedily(
            model, batch, new_tokens=settings.new_tokens, pad_id=pad_id, max_length=max_length
        )
        columns = torch.arange(whole.mask.shape[1])
        # A token is predicted at the position before it.
        is_before = columns >= torch.tensor(begins)[:, None] - 1
        return predict_at(model, whole, is_before & (columns < whole.lengths[:, None] - 1))

    return {"generated": generated, "last": last, "all": predict}[settings.positions]


@torch.no_grad()
def continue_greedily(
    model: Any,  # noqa: ANN401 - any transformers model that generates
    batch: TextBatch,
    *,
    new_tokens: int,
    pad_id: int,
    max_length: int,
) -> tuple[TextBatch, list[int]]:
    """Let a model continue texts by its likeliest tokens, to an end token or ``new_tokens``.

    Args:
        model: Causal, in evaluation mode; parameters may want gradients, none are computed.
        batch: What to continue.
        new_tokens: Most tokens per text, >= 1.
        pad_id: A token to pad with.
        max_length: Most tokens that the model sees; of longer texts the end is continued.

    Returns:
        The texts with what was written, the end token included, and the index of each first new
        token.
    """
    room = max(1, max_length - new_tokens)
    rows = zip(batch.token_ids.tolist(), batch.lengths.tolist(), strict=True)
    prompts = [row[:length][-room:] for row, length in rows]
    width = max(map(len, prompts))
    # Generation begins after the last column, so it wants padding on the left.
    token_ids = torch.tensor([[pad_id] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    ends = _end_tokens(model)
    written = model.generate(
        input_ids=token_ids.to(model.device),
        attention_mask=mask.to(model.device),
        generation_config=GenerationConfig(
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=pad_id,
            eos_token_id=sorted(ends) or None,
        ),
    )[:, width:].tolist()
    texts = [
        (*prompt, *_until_end(new, ends)) for prompt, new in zip(prompts, written, strict=True)
    ]
    return pad(texts, pad_id), [len(prompt) for prompt in prompts]


def _end_tokens(model: Any) -> frozenset[int]:  # noqa: ANN401 - any transformers model
    found = getattr(model.generation_config, "eos_token_id", None)
    if found is None:
        return frozenset()
    return frozenset(found if isinstance(found, list) else [found])


def _until_end(written: list[int], ends: frozenset[int]) -> list[int]:
    """Cut what a row got after its end token, which others filled up."""
    at = next((index for index, token in enumerate(written) if token in ends), None)
    return written if at is None else written[: at + 1]
