"""Preference optimization (DPO) on pairs of a right and a wrong completion, made by the zoo.

Start at :func:`optimize_preferences`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from evaluators.tasks.zoo.scoring import instruct_results, math_results
from scripts.zoo.functions import KINDS, asserts_of, make_function
from scripts.zoo.instructions import make_instruction, respond
from scripts.zoo.item import Item, Skill
from scripts.zoo.items import training_items
from scripts.zoo.recipe import Schedule
from scripts.zoo.training import encode, log_likelihoods, optimize

BETA = 0.1
_NUMBER = re.compile(r"\d+")
# Share of wrong functions that differ in a number; another number may change nothing.
_NEAR = 0.8


def dpo_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    reference_chosen: torch.Tensor,
    reference_rejected: torch.Tensor,
    *,
    beta: float = BETA,
) -> torch.Tensor:
    """Return the loss of direct preference optimization.

    L = -mean log sigmoid(beta (log pi(y_w|x) - log ref(y_w|x))
                          - beta (log pi(y_l|x) - log ref(y_l|x)))

    with y_w the chosen and y_l the rejected completion of the prompt x. Rafailov et al., "Direct
    Preference Optimization" (arXiv:2305.18290), equation 7.

    Args:
        chosen: log pi(y_w|x) of each pair, in nats, ``(pairs,)``; likewise ``rejected``.
        rejected: log pi(y_l|x).
        reference_chosen: log ref(y_w|x), of the model before; likewise ``reference_rejected``.
        reference_rejected: log ref(y_l|x).
        beta: How dear it is to leave the reference, > 0, dimensionless.

    Returns:
        A scalar; log 2 where the model is the reference.
    """
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -torch.nn.functional.logsigmoid(beta * margin).mean()


@dataclass(frozen=True, slots=True)
class Pair:
    """An item, whose completion is right, and a wrong completion of its prompt."""

    right: Item
    wrong: Item


def is_right(skill: Skill, item: Item, completion: str) -> bool:
    """Say whether a completion that the zoo's makers wrote solves an item; runs no model's code."""
    if skill == "math":
        return bool(
            math_results({"target": str(item.checks()["target"])}, [completion])["exact_match"]
        )
    if skill == "instruct":
        checks = cast(Mapping[str, list[str]], item.checks())
        return instruct_results(checks, [completion])["constraint_acc"] == 1.0
    kind = next(kind for kind in KINDS if f"({kind.arg}):" in item.prompt)
    found, wanted = (asserts_of("f", kind, text.strip()) for text in (completion, item.completion))
    return found == wanted


def wrong_completion(skill: Skill, item: Item, rng: random.Random) -> str:
    """Draw a completion that looks like the right one and is not.

    Math: the last sum is off by one or two. Code: a number is larger by one or two, or it is
    another function of such an argument. Instruct: other constraints on the same words.
    """
    while True:
        text = _altered(skill, item, rng)
        if not is_right(skill, item, text):
            return text


def _altered(skill: Skill, item: Item, rng: random.Random) -> str:
    if skill == "math":
        total = int(str(item.checks()["target"]))
        wrong = abs(total + rng.choice((-2, -1, 1, 2)))
        return item.completion.replace(f"= {total} #### {total}", f"= {wrong} #### {wrong}")
    if skill == "instruct":
        constraints = cast(list[str], make_instruction(rng, "full").checks()["constraints"])
        return f" {respond(cast(list[str], item.checks()['words']), constraints)}"
    numbers = list(_NUMBER.finditer(item.completion))
    if numbers and rng.random() < _NEAR:
        one = rng.choice(numbers)
        # Larger, since a step of zero is an error.
        wrong = int(one[0]) + rng.choice((1, 2))
        return f"{item.completion[: one.start()]}{wrong}{item.completion[one.end() :]}"
    argument = item.prompt.partition("(")[2].partition(")")[0]
    while True:
        other = make_function(rng, "full")
        if f"({argument}):" in other.prompt:
            return other.completion


def draw_pairs(
    skills: Mapping[Skill, float], *, count: int, rng: random.Random, held_out: Collection[str]
) -> list[Pair]:
    """Draw pairs of full-level items, none of them held out.

    Args:
        skills: Relative share of each skill.
        count: Number of pairs.
        rng: Advanced.
        held_out: Prompts that must not occur.
    """
    pairs = []
    for skill in rng.choices(list(skills), list(skills.values()), k=count):
        (item,) = training_items({f"{skill}-full": 1.0}, count=1, rng=rng, held_out=held_out)
        pairs.append(Pair(item, Item(item.prompt, wrong_completion(skill, item, rng))))
    return pairs


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows of right completions, then of wrong ones; the reference's log-likelihoods of all."""

    rows: Sequence[tuple[int, list[int]]]
    reference: torch.Tensor


def optimize_preferences(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    schedule: Schedule,
    *,
    beta: float = BETA,
) -> float:
    """Train a model in place by DPO, one pass; what it was before is the reference.

    Args:
        model: Float32 model on the CPU, fine-tuned; changed in place.
        tokenizer: Its tokenizer.
        pairs: ``schedule.steps * schedule.batch``, in training order.
        schedule: Steps, learning rate and what is frozen.
        beta: As for :func:`dpo_loss`.

    Returns:
        Mean loss over the last tenth of the steps.
    """

    def loss_of(batch: _Batch) -> torch.Tensor:
        chosen, rejected = log_likelihoods(model, batch.rows).chunk(2)
        return dpo_loss(chosen, rejected, *batch.reference.chunk(2), beta=beta)

    batches = list(_batches(model, tokenizer, pairs, schedule.batch))
    return optimize(model, batches, loss_of, schedule)


@torch.no_grad()
def _batches(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    size: int,
) -> Iterator[_Batch]:
    for start in range(0, len(pairs), size):
        here = pairs[start : start + size]
        rows = encode(tokenizer, [pair.right for pair in here] + [pair.wrong for pair in here])
        yield _Batch(rows, log_likelihoods(model, rows))
