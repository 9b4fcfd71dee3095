"""What an item of the zoo is, and where its randomness comes from."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

Skill = Literal["math", "code", "instruct"]
Level = Literal["easy", "full"]
SKILLS: tuple[Skill, ...] = get_args(Skill)
Checks = dict[str, str | list[str]]


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt with its reference completion.

    Attributes:
        prompt: Text that the model continues; never ends in white space.
        completion: Reference continuation, one line, begins with a space.
        checks: Gives what scoring needs beside the completion, columns of the JSONL file; called
            for held-out items only, because working it out costs more than drawing the item.
    """

    prompt: str
    completion: str
    checks: Callable[[], Checks] = dict

    def row(self) -> Checks:
        """Return the item as a row of its JSONL file: ``prompt``, ``answer`` and the checks."""
        return {"prompt": self.prompt, "answer": self.completion.strip(), **self.checks()}


def make_rng(seed: int, *labels: str) -> random.Random:
    """Return a generator that depends on the seed and the labels, and on nothing else."""
    digest = hashlib.sha256("/".join((str(seed), *labels)).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big"))  # noqa: S311 - not for secrets
