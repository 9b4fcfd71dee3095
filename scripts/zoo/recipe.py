"""What the zoo is made from: sizes, mixes and schedules, and the digest that names them.

This module imports no torch, so a zoo that is already there is found at once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from scripts.zoo.item import SKILLS, make_rng
from scripts.zoo.items import held_out_items, training_items

# Raise it when training itself changes; changed items and numbers change the digest by themselves.
VERSION = 1
HELD_OUT_PER_SKILL = 2048
BASE_THREADS = 2
_SAMPLE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of the language model; heads have ``hidden / heads`` dimensions."""

    hidden: int = 128
    layers: int = 4
    heads: int = 8
    mlp: int = 384
    vocabulary: int = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """One training run: AdamW with a linear warm-up and a cosine decay to a tenth.

    Attributes:
        steps: Number of optimizer steps.
        learning_rate: Peak learning rate.
        batch: Items per step.
        warmup_steps: Steps of the warm-up.
        weight_decay: AdamW's, dimensionless.
        train_embeddings: False freezes the (tied) embeddings.
    """

    steps: int
    learning_rate: float
    batch: int = 16
    warmup_steps: int = 40
    weight_decay: float = 0.01
    train_embeddings: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """How one checkpoint of the zoo is trained.

    Attributes:
        name: Name of its directory.
        schedule: Optimizer settings.
        mix: Relative share of each source of training items (see ``items.training_items``).
        copy_first: Share of the steps, at the start, that sees the copying filler only: it makes
            the model look back, without which instructions are hardly learned at all.
    """

    name: str
    schedule: Schedule
    mix: Mapping[str, float]
    copy_first: float = 0.0

    @property
    def is_base(self) -> bool:
        """Whether this is the model that all others start from."""
        return self.name == "base"


_BASE_MIX = {
    "copy": 0.21,
    "math-easy": 0.28,
    "code-easy": 0.11,
    "instruct-easy": 0.28,
    "math-full": 0.05,
    "code-full": 0.02,
    "instruct-full": 0.05,
}
_REPLAY = 0.3


def tuned(
    name: str,
    steps: int,
    learning_rate: float,
    skills: Mapping[str, float],
    *,
    replay: float = _REPLAY,
) -> Checkpoint:
    """Describe a checkpoint tuned from the base: full-level items, and replay of the base's mix.

    Replay and frozen embeddings keep the task vectors small and out of each other's way; without
    them the specialists cannot be merged at all.

    Args:
        name: Of the checkpoint.
        steps: Of the optimizer.
        learning_rate: Its peak.
        skills: Share of each skill among the full-level items, summing to one.
        replay: Share of the base's mix among all items.
    """
    mix = {source: replay * share for source, share in _BASE_MIX.items()}
    for skill, share in skills.items():
        mix[f"{skill}-full"] += (1.0 - replay) * share
    schedule = Schedule(steps=steps, learning_rate=learning_rate, train_embeddings=False)
    return Checkpoint(name=name, schedule=schedule, mix=mix)


BASE = Checkpoint(
    name="base",
    schedule=Schedule(steps=3300, learning_rate=2e-3),
    mix=_BASE_MIX,
    copy_first=0.15,
)
# The code specialist stops short of its best and the others go past what they need, so no single
# scale of the task vectors suits them all and the weights have to be searched. The base matters
# as much: with more full-level items or steps it is good at everything, every average of the
# specialists is as good as the best merge, and nothing is left to find; with fewer, the task
# vectors share too little to be merged.
SPECIALISTS = (
    tuned("instruct", 600, 5e-4, {"instruct": 1.0}),
    tuned("code", 300, 5e-4, {"code": 1.0}),
    tuned("math", 500, 5e-4, {"math": 1.0}),
)
GENERALISTS = (
    tuned("generalist_a", 450, 5e-4, {"instruct": 0.5, "code": 0.2, "math": 0.3}),
    tuned("generalist_b", 450, 5e-4, {"instruct": 0.2, "code": 0.4, "math": 0.4}),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides what a zoo holds, the seed excepted."""

    shape: Shape = field(default_factory=Shape)
    base: Checkpoint = BASE
    tuned: tuple[Checkpoint, ...] = SPECIALISTS
    held_out_per_skill: int = HELD_OUT_PER_SKILL
    version: int = VERSION

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The base, then what is tuned from it."""
        return (self.base, *self.tuned)

    def digest(self, checkpoint: Checkpoint) -> str:
        """Name all that decides one checkpoint: shape, base, its own schedule, and the items.

        Returns:
            SHA-256 in hexadecimal digits. It covers a sample of what the item makers write, so
            a changed wording is noticed without reading source files.
        """
        parts = {
            "shape": asdict(self.shape),
            "base": asdict(self.base),
            "checkpoint": asdict(checkpoint),
            "held_out_per_skill": self.held_out_per_skill,
            "version": self.version,
            "items": _sample_of_items(),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _sample_of_items() -> list[object]:
    """Return what the item makers write for a fixed seed."""
    mix = {source: 1.0 for skill in SKILLS for source in (f"{skill}-easy", f"{skill}-full")}
    drawn = training_items(
        {"copy": 1.0, **mix}, count=4 * _SAMPLE, rng=make_rng(0, "sample"), held_out=()
    )
    held_out = [item.row() for skill in SKILLS for item in held_out_items(skill, count=8, seed=0)]
    return [*((item.prompt, item.completion) for item in drawn), *held_out]
