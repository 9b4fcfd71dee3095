"""Train, write and grade one checkpoint; runs in a process of its own, the only one with torch."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from evaluators.tasks.zoo import scoring
from scripts.zoo.item import SKILLS, Item, Skill, make_rng
from scripts.zoo.items import assert_disjoint, held_out_items, training_items
from scripts.zoo.recipe import Checkpoint, Recipe
from scripts.zoo.training import new_model, train, train_tokenizer

GRADED_ITEMS = 128
_TOKENIZER_ITEMS = 8000
_MAX_NEW_TOKENS = 24
_REPORT_EVERY_STEPS = 10
_GRADERS: Mapping[Skill, Callable[..., dict[str, float]]] = {
    "math": scoring.math_results,
    "code": scoring.code_results,
    "instruct": scoring.instruct_results,
}


@dataclass(frozen=True, slots=True)
class Trained:
    """What is known of a finished checkpoint: its scores per skill, final loss and seconds."""

    name: str
    scores: dict[str, float]
    loss: float
    wall_time_s: float


def corpus(recipe: Recipe, checkpoint: Checkpoint, seed: int) -> list[Item]:
    """Draw all training items of one checkpoint, in order, and check them against the held-out.

    Raises:
        ValueError: A held-out prompt occurs among them.
    """
    held_out = {
        item.prompt
        for skill in SKILLS
        for item in held_out_items(skill, count=recipe.held_out_per_skill, seed=seed)
    }
    rng, schedule = make_rng(seed, "training", checkpoint.name), checkpoint.schedule
    first = int(checkpoint.copy_first * schedule.steps) * schedule.batch
    rest = schedule.steps * schedule.batch - first
    items = training_items({"copy": 1.0}, count=first, rng=rng, held_out=held_out)
    items += training_items(checkpoint.mix, count=rest, rng=rng, held_out=held_out)
    assert_disjoint(items, held_out)
    return items


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str]
) -> list[str]:
    """Continue prompts greedily, in one left-padded batch."""
    batch = tokenizer(list(prompts), padding=True, return_tensors="pt")
    tokens = model.generate(  # type: ignore[misc]  # transformers types it by a decorator that loses it
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=_MAX_NEW_TOKENS,
        do_sample=False,
    )
    width = batch["input_ids"].shape[1]
    return tokenizer.batch_decode(tokens[:, width:], skip_special_tokens=True)


def grade(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, count: int, seed: int
) -> dict[str, float]:
    """Score a model on the first held-out items of each skill.

    Returns:
        Mean score per skill, in [0, 1].
    """
    scores: dict[str, float] = {}
    for skill in SKILLS:
        items = held_out_items(skill, count=count, seed=seed)
        said = answers(model, tokenizer, [item.prompt for item in items])
        graded = [
            next(iter(_GRADERS[skill](item.row(), [text]).values()))
            for item, text in zip(items, said, strict=True)
        ]
        scores[skill] = sum(graded) / len(graded)
    return scores


def write_directory(out: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a Hugging Face directory that appears whole or not at all; replaces an old one."""
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(out, ignore_errors=True)
    partial.rename(out)


def make_checkpoint(
    recipe: Recipe,
    checkpoint: Checkpoint,
    *,
    out: Path,
    seed: int,
    num_threads: int,
    on_step: Callable[[int], None] = lambda _: None,
) -> Trained:
    """Train one checkpoint of the zoo and write its directory under ``out``.

    Args:
        recipe: The zoo's recipe.
        checkpoint: Which of its checkpoints; a tuned one needs ``out / "base"``.
        out: Directory of the zoo.
        seed: Seed of the zoo.
        num_threads: Threads of torch in this process; part of what decides the bits.
        on_step: Called with the number of steps done, every few steps.

    Returns:
        Scores on a few held-out items, for the record.
    """
    start = time.perf_counter()
    torch.set_num_threads(num_threads)
    disable_progress_bar()
    items = corpus(recipe, checkpoint, seed)
    if checkpoint.is_base:
        texts = (item.prompt + item.completion for item in items[-_TOKENIZER_ITEMS:])
        tokenizer = train_tokenizer(texts, vocabulary=recipe.shape.vocabulary)
        model = new_model(recipe.shape, tokenizer, seed=seed)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "base")
        model = LlamaForCausalLM.from_pretrained(out / "base", dtype=torch.float32)

    def report(step: int) -> None:
        if step % _REPORT_EVERY_STEPS == 0 or step == checkpoint.schedule.steps:
            on_step(step)

    loss = train(model, tokenizer, items, checkpoint.schedule, seed=seed, on_step=report)
    scores = grade(model, tokenizer, count=GRADED_ITEMS, seed=seed)
    write_directory(out / checkpoint.name, model, tokenizer)
    return Trained(checkpoint.name, scores, loss, time.perf_counter() - start)
