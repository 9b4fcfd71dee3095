"""Math items: short stories whose answer is a chain of sums ending in ``#### n``."""

from __future__ import annotations

import random

from scripts.zoo.item import Item, Level

NAMES = ("Ann", "Ben", "Cal", "Dee", "Eve", "Finn", "Gus", "Hal", "Ivy", "Jon", "Kim", "Leo")
THINGS = ("pens", "cups", "figs", "nuts", "bags", "keys", "hats", "eggs", "pins", "toys")
GAINS = ("buys {n} more", "finds {n} more", "gets {n} more")
LOSSES = ("loses {n}", "sells {n}", "gives away {n}")
MAX_START = 12
MAX_CHANGE = 9


def _step(rng: random.Random, total: int) -> tuple[str, str, int]:
    """Draw one change of a total: its sentence, its sum and the new total (never negative)."""
    n = rng.randint(2, MAX_CHANGE)
    if n > total or rng.random() < 0.5:
        result, verb, sign = total + n, rng.choice(GAINS), "+"
    else:
        result, verb, sign = total - n, rng.choice(LOSSES), "-"
    return verb.format(n=n), f"{total} {sign} {n} = {result}", result


def make_story(rng: random.Random, level: Level) -> Item:
    """Draw one story: one step at the easy level, two steps at the full level."""
    name, things, total = rng.choice(NAMES), rng.choice(THINGS), rng.randint(2, MAX_START)
    sentences, sums = [f"{name} has {total} {things}."], []
    for index in range(1 if level == "easy" else 2):
        verb, line, total = _step(rng, total)
        sentences.append(f"{name} {verb}." if index == 0 else f"Then {name} {verb}.")
        sums.append(line)
    story = " ".join(sentences)
    return Item(
        prompt=f"Story: {story} How many {things}?\nAnswer:",
        completion=f" {', '.join(sums)} #### {total}",
        checks=lambda: {"target": str(total)},
    )
