"""Items of the zoo: what an item is, and how held-out and training items are kept apart.

Start at :func:`held_out_items`, then :func:`training_items`, which refuses every prompt that the
held-out set contains. The wording of each skill lives in ``stories`` (math), ``functions`` (code)
and ``instructions`` (instruct).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping

from scripts.zoo.functions import make_function
from scripts.zoo.instructions import WORDS, make_instruction
from scripts.zoo.item import Item, Level, Skill, make_rng
from scripts.zoo.stories import make_story

Maker = Callable[[random.Random, Level], Item]


MAKERS: Mapping[Skill, Maker] = {
    "math": make_story,
    "code": make_function,
    "instruct": make_instruction,
}


def held_out_items(skill: Skill, *, count: int, seed: int) -> list[Item]:
    """Draw unique full-level items for evaluation.

    Args:
        skill: Which skill.
        count: Number of items; the procedural spaces hold many times more than 10,000.
        seed: Seed of the zoo.

    Returns:
        ``count`` items with pairwise different prompts.
    """
    rng, make = make_rng(seed, "held-out", skill), MAKERS[skill]
    found: dict[str, Item] = {}
    while len(found) < count:
        item = make(rng, "full")
        found.setdefault(item.prompt, item)
    return list(found.values())


COPY_MAX = 12


def copy_item(rng: random.Random) -> Item:
    """Draw one item of the copying filler, which teaches the base to look back."""
    line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(3, COPY_MAX)))
    return Item(prompt=f"Copy: {line}\nCopied:", completion=f" {line}")


def training_items(
    mix: Mapping[str, float], *, count: int, rng: random.Random, held_out: Collection[str]
) -> list[Item]:
    """Draw training items from a mix of sources, none of them held out.

    Args:
        mix: Relative share of each source: ``copy`` or ``<skill>-<level>``, such as ``math-easy``.
        count: Number of items; repeats are allowed, as in any corpus.
        rng: Source of randomness; advanced.
        held_out: Prompts that must not occur; a set, for speed.

    Returns:
        ``count`` items in training order.
    """
    sources, shares = list(mix), list(mix.values())
    items: list[Item] = []
    while len(items) < count:
        source = rng.choices(sources, shares)[0]
        if source == "copy":
            item = copy_item(rng)
        else:
            skill, level = source.split("-")
            item = MAKERS[skill](rng, level)  # type: ignore[index,arg-type]  # the recipe's keys are `skill-level`
        if item.prompt not in held_out:
            items.append(item)
    return items


def assert_disjoint(training: Collection[Item], held_out: Collection[str]) -> None:
    """Refuse a training set that contains a held-out prompt, alone or inside another text.

    Args:
        training: Every item that a checkpoint is trained on.
        held_out: Prompts of the evaluation items.

    Raises:
        ValueError: A held-out prompt occurs; the message shows it.
    """
    leaked = {item.prompt for item in training} & set(held_out)
    if leaked:
        raise ValueError(
            f"{len(leaked)} held-out prompts occur in training data, the first is "
            f"{min(leaked)!r}; draw training items with `training_items`"
        )
