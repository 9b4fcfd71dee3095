"""Code items: the one-line body of a Python function, from its docstring.

A body is judged by running it on inputs; the expected values are computed here from the
reference expression, so nothing that a model wrote runs outside the sandbox.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from scripts.zoo.item import Item, Level

NAMES = ("calc", "solve", "apply", "make", "work", "build", "step", "turn", "form", "run")


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation: its wording, and the expression it wraps around ``{e}``."""

    text: str
    code: str


@dataclass(frozen=True, slots=True)
class Kind:
    """One argument type: name of the argument, operations on it, and inputs for the asserts."""

    arg: str
    operations: tuple[Operation, ...]
    inputs: tuple[object, ...]


NUMBER = Kind(
    arg="x",
    operations=(
        Operation("add {n}", "({e} + {n})"),
        Operation("take away {n}", "({e} - {n})"),
        Operation("multiply by {n}", "({e} * {n})"),
        Operation("divide by {n} and round down", "({e} // {n})"),
        Operation("keep the rest after dividing by {n}", "({e} % {n})"),
        Operation("negate", "(-{e})"),
        Operation("drop the sign", "abs({e})"),
        Operation("square", "({e} ** 2)"),
    ),
    inputs=(0, 1, -7, 12, 35, -50),
)
TEXT = Kind(
    arg="s",
    operations=(
        Operation("upper case", "{e}.upper()"),
        Operation("lower case", "{e}.lower()"),
        Operation("title case", "{e}.title()"),
        Operation("trim spaces", "{e}.strip()"),
        Operation("reverse", "{e}[::-1]"),
        Operation("first {n} letters", "{e}[:{n}]"),
        Operation("drop {n} letters", "{e}[{n}:]"),
        Operation("repeat {n} times", "({e} * {n})"),
    ),
    inputs=("", " Red fox ", "a quick brown Fox jumps", "ABCDEFGHIJKLMNOPQ", "mixed CASE text"),
)
ITEMS = Kind(
    arg="xs",
    operations=(
        Operation("sort", "sorted({e})"),
        Operation("reverse", "{e}[::-1]"),
        Operation("drop repeats and sort", "sorted(set({e}))"),
        Operation("first {n} items", "{e}[:{n}]"),
        Operation("drop {n} items", "{e}[{n}:]"),
        Operation("every item from {n} on, by twos", "{e}[{n}::2]"),
        Operation("repeat {n} times", "({e} * {n})"),
    ),
    inputs=([], [3, 1, 2], [5, 5, -1, 8, 0, 2, 2, 9, 7, 4, 6, 11], [2, 2, 1, 1, 14, 13, 9, 0, -3]),
)
KINDS = (NUMBER, TEXT, ITEMS)
MAX_NUMBER = 12


def asserts_of(name: str, kind: Kind, expression: str) -> str:
    """Return one assert per input, with the value of the reference expression.

    Args:
        name: Function under test.
        kind: Gives the argument name and the inputs.
        expression: Reference expression; ours, never a model's.
    """
    lines = []
    for value in kind.inputs:
        expected = eval(  # noqa: S307 - our own expression
            expression, {"abs": abs, "sorted": sorted, "set": set}, {kind.arg: value}
        )
        lines.append(f"assert {name}({value!r}) == {expected!r}")
    return "\n".join(lines)


def make_function(rng: random.Random, level: Level) -> Item:
    """Draw one function: one operation at the easy level, two at the full level."""
    kind, name = rng.choice(KINDS), rng.choice(NAMES)
    wording, expression = [], kind.arg
    operations = rng.sample(kind.operations, 1 if level == "easy" else 2)
    for operation in operations:
        n = rng.randint(2, MAX_NUMBER)
        wording.append(operation.text.format(n=n))
        expression = operation.code.format(e=expression, n=n)
    if operations[-1].code.startswith("("):
        expression = expression[1:-1]
    return Item(
        prompt=f'def {name}({kind.arg}):\n    """{", then ".join(wording)}"""\n    return',
        completion=f" {expression}",
        checks=lambda: {"tests": asserts_of(name, kind, expression)},
    )
