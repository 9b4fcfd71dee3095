"""The zoo's tokenizer, model and training loop: plain PyTorch on the CPU, float32.

Everything drawn at random comes from generators of the caller's seed, and the number of threads
is set by the caller, so on one kind of machine the same seed gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.zoo.item import Item
from scripts.zoo.recipe import Schedule, Shape

EOS, PAD = "<|end|>", "<|pad|>"
MAX_POSITIONS = 256
_BATCHES_PER_BUCKET = 16

Batch = TypeVar("Batch")


def train_tokenizer(texts: Iterable[str], *, vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer that adds no token of its own to a text.

    Args:
        texts: The corpus.
        vocabulary: Largest number of tokens, the two special ones included.

    Returns:
        Tokenizer with ``eos_token`` and ``pad_token``, padding on the left as generation needs.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    return fast


def new_model(shape: Shape, tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """Create an untrained model whose weights depend on the seed alone."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        # The library's initializers draw from the global generator; it is put back afterwards.
        torch.manual_seed(seed)  # noqa: TID251 - put back by fork_rng
        model = LlamaForCausalLM(config)
    # Never sample: evaluation is greedy.
    model.generation_config.do_sample = False
    return model


def encode(
    tokenizer: PreTrainedTokenizerFast, items: Sequence[Item]
) -> list[tuple[int, list[int]]]:
    """Tokenize items, prompt and completion apart, as generation will see them.

    Returns:
        Per item the length of its prompt in tokens, and all its token ids with the end token.
    """
    prompts = tokenizer([item.prompt for item in items])["input_ids"]
    completions = tokenizer([item.completion for item in items])["input_ids"]
    end = [tokenizer.eos_token_id]
    return [(len(p), [*p, *c, *end]) for p, c in zip(prompts, completions, strict=True)]


def _batches(
    rows: Sequence[tuple[int, list[int]]], batch: int, generator: torch.Generator
) -> Iterable[Sequence[tuple[int, list[int]]]]:
    """Cut rows into batches of similar length; the order within a bucket is shuffled."""
    bucket = batch * _BATCHES_PER_BUCKET
    for start in range(0, len(rows), bucket):
        rows_here = sorted(rows[start : start + bucket], key=lambda row: len(row[1]))
        cuts = range(0, len(rows_here), batch)
        for index in torch.randperm(len(cuts), generator=generator).tolist():
            yield rows_here[cuts[index] : cuts[index] + batch]


def _predictions(
    model: LlamaForCausalLM, rows: Sequence[tuple[int, list[int]]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predict the completion tokens of one batch.

    Returns:
        Logits ``(targets, vocabulary)``, the tokens themselves ``(targets,)``, and the row of each.
    """
    width = max(len(ids) for _, ids in rows)
    tokens = torch.zeros(len(rows), width, dtype=torch.long)
    is_target = torch.zeros(len(rows), width, dtype=torch.bool)
    for index, (prompt_length, ids) in enumerate(rows):
        tokens[index, : len(ids)] = torch.tensor(ids)
        is_target[index, prompt_length : len(ids)] = True
    # Padding stands on the right here, where a causal model cannot see it: no mask is needed.
    hidden = model.model(input_ids=tokens[:, :-1], use_cache=False).last_hidden_state
    predicting = is_target[:, 1:]
    return model.lm_head(hidden[predicting]), tokens[:, 1:][predicting], predicting.nonzero()[:, 0]


def _loss(model: LlamaForCausalLM, rows: Sequence[tuple[int, list[int]]]) -> torch.Tensor:
    """Mean cross-entropy of the completion tokens of one batch (scalar)."""
    logits, targets, _ = _predictions(model, rows)
    return torch.nn.functional.cross_entropy(logits, targets)


def log_likelihoods(model: LlamaForCausalLM, rows: Sequence[tuple[int, list[int]]]) -> torch.Tensor:
    """Return log p(completion | prompt) of each row, in nats, ``(rows,)``; end token included.

    Args:
        model: Float32 model on the CPU.
        rows: As :func:`encode` makes them.
    """
    logits, targets, owners = _predictions(model, rows)
    tokens = -torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return torch.zeros(len(rows)).index_add(0, owners, tokens)


def _factor(step: int, schedule: Schedule) -> float:
    """Learning-rate factor of a step: warm-up, then cosine from 1 to 0.1."""
    warm = min(1.0, (step + 1) / schedule.warmup_steps)
    return warm * (0.55 + 0.45 * math.cos(math.pi * step / schedule.steps))


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[Item],
    schedule: Schedule,
    *,
    seed: int,
    on_step: Callable[[int], None] = lambda _: None,
) -> float:
    """Train a model in place on items, one pass.

    Args:
        model: Float32 model on the CPU; changed in place.
        tokenizer: Its tokenizer.
        items: ``schedule.steps * schedule.batch`` items, in training order.
        schedule: Steps, learning rate and what is frozen.
        seed: Decides the order of batches within a bucket.
        on_step: Called with the number of steps done, after every step.

    Returns:
        Mean loss over the last tenth of the steps, in nats per completion token.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(encode(tokenizer, items), schedule.batch, generator)
    return optimize(model, batches, lambda rows: _loss(model, rows), schedule, on_step=on_step)


def optimize(
    model: LlamaForCausalLM,
    batches: Iterable[Batch],
    loss_of: Callable[[Batch], torch.Tensor],
    schedule: Schedule,
    *,
    on_step: Callable[[int], None] = lambda _: None,
) -> float:
    """Take one step of AdamW per batch, gradients clipped to a norm of 1.

    Args:
        model: Changed in place; in evaluation mode afterwards.
        batches: ``schedule.steps`` of whatever ``loss_of`` takes.
        loss_of: Returns the loss of a batch, a scalar.
        schedule: Learning rate and what is frozen.
        on_step: Called with the number of steps done, after every step.

    Returns:
        Mean loss over the last tenth of the steps.
    """
    model.train()
    model.get_input_embeddings().weight.requires_grad_(schedule.train_embeddings)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        betas=(0.9, 0.98),
        fused=True,
    )
    losses: list[float] = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * _factor(step, schedule)
        loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(loss.item())
        on_step(step + 1)
    model.eval()
    tail = losses[-max(1, len(losses) // 10) :]
    return sum(tail) / len(tail)
