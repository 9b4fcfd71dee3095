"""Instruct items: verifiable constraints on a list of words, judged one by one."""

from __future__ import annotations

import random

from scripts.zoo.item import Item, Level

WORDS = (  # noqa: SIM905 - 32 literals would be no easier to read
    "red blue green black white gold pink gray sun moon star rain snow wind fire ice "
    "cat dog fox owl bee cow pig hen tree leaf rose lake book lamp bell ring"
).split()
FIRST_WORDS = ("yes", "well")
LAST_WORDS = ("done", "over")
# In the order in which they apply; at most two are stacked.
CONSTRAINTS = ("reverse", "begin", "end", "upper", "commas", "stars")
PHRASES = {
    "reverse": ("in reverse order", "backwards"),
    "begin": ("beginning with {w}", "with {w} in front"),
    "end": ("ending with {w}", "with {w} at the end"),
    "upper": ("in upper case", "in capitals"),
    "commas": ("with commas", "separated by commas"),
    "stars": ("between stars", "in stars"),
}


def respond(words: list[str], constraints: list[str]) -> str:
    """Write the reference response.

    Args:
        words: The words of the instruction, in its order.
        constraints: Names from ``CONSTRAINTS``, with the word after a colon for ``begin`` and
            ``end``; applied in the order of ``CONSTRAINTS`` whatever order they come in.
    """
    line = list(words)
    named = {text.partition(":")[0]: text.partition(":")[2] for text in constraints}
    if "reverse" in named:
        line.reverse()
    if "begin" in named:
        line.insert(0, named["begin"])
    if "end" in named:
        line.append(named["end"])
    text = (", " if "commas" in named else " ").join(line)
    text = text.upper() if "upper" in named else text
    return f"* {text} *" if "stars" in named else text


def make_instruction(rng: random.Random, level: Level) -> Item:
    """Draw one instruction: one constraint at the easy level, two at the full level."""
    words = rng.sample(WORDS, rng.randint(2, 3))
    constraints, phrases = [], []
    for name in rng.sample(CONSTRAINTS, 1 if level == "easy" else 2):
        extra = rng.choice(LAST_WORDS if name == "end" else FIRST_WORDS)
        constraints.append(f"{name}:{extra}" if name in {"begin", "end"} else name)
        phrases.append(rng.choice(PHRASES[name]).format(w=extra))
    return Item(
        prompt=f"Write {' '.join(words)} {' and '.join(phrases)}.\nResponse:",
        completion=f" {respond(words, constraints)}",
        checks=lambda: {"words": words, "constraints": constraints},
    )
