"""Generalist checkpoints of one base: other mixes, learning rates, lengths and stages of training.

All are trained on all three skills, in other shares, so that each is better than another somewhere.
Some runs went wrong: too fast, too short, on too little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from scripts.papers.bench import Bench
from scripts.papers.recycling_preferences import draw_pairs, optimize_preferences
from scripts.zoo.item import SKILLS, Skill, make_rng
from scripts.zoo.items import held_out_items, training_items
from scripts.zoo.recipe import HELD_OUT_PER_SKILL, Schedule, tuned
from scripts.zoo.training import train


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run.

    Attributes:
        name: Of its checkpoint.
        stage: ``SFT`` from the base, or ``DPO`` from another member.
        schedule: Of the optimizer.
        mix: Shares of sources of items (SFT) or of skills (DPO).
        after: What a DPO run starts from.
    """

    name: str
    stage: str
    schedule: Schedule
    mix: Mapping[str, float]
    after: str = ""


def _sft(
    name: str, steps: int, learning_rate: float, skills: Mapping[str, float], *, replay: float = 0.3
) -> Member:
    run = tuned(name, steps, learning_rate, skills, replay=replay)
    return Member(name=name, stage="SFT", schedule=run.schedule, mix=run.mix)


def _dpo(
    name: str, after: str, steps: int, learning_rate: float, skills: Mapping[Skill, float]
) -> Member:
    schedule = Schedule(
        steps=steps, learning_rate=learning_rate, warmup_steps=10, train_embeddings=False
    )
    return Member(
        name=name,
        stage="DPO",
        schedule=schedule,
        mix={str(skill): share for skill, share in skills.items()},
        after=after,
    )


POOL = (
    _sft("sft_math", 200, 5e-4, {"math": 0.8, "code": 0.1, "instruct": 0.1}),
    _sft("sft_code", 200, 1e-3, {"code": 1.0}, replay=0.02),
    _sft("sft_instruct", 200, 5e-4, {"math": 0.1, "code": 0.1, "instruct": 0.8}),
    _sft("sft_even", 150, 2e-4, {"math": 0.3, "code": 0.4, "instruct": 0.3}),
    _sft("sft_short", 100, 1e-3, {"code": 0.5, "instruct": 0.5}),
    _sft("sft_hot", 150, 4e-3, {"math": 0.5, "code": 0.5}),
    _sft("sft_narrow", 250, 1e-3, {"math": 1.0}, replay=0.02),
    _sft("sft_forgets", 250, 2e-3, {"instruct": 1.0}, replay=0.02),
    _dpo("dpo_math", "sft_math", 60, 3e-5, {"math": 0.8, "code": 0.1, "instruct": 0.1}),
    _dpo("dpo_code", "sft_code", 60, 3e-5, {"math": 0.1, "code": 0.8, "instruct": 0.1}),
    _dpo("dpo_instruct", "sft_instruct", 60, 3e-5, {"math": 0.1, "code": 0.1, "instruct": 0.8}),
    _dpo("dpo_hot", "sft_even", 60, 3e-4, {"math": 0.3, "code": 0.4, "instruct": 0.3}),
)
"""What was kept of a project's runs, the failed ones among them."""

_FAST_NAMES = ("sft_math", "sft_code", "sft_hot", "dpo_code")
_FAST_FACTOR = 4


def members_of(*, fast: bool) -> tuple[Member, ...]:
    """Return the pool; ``fast`` returns four of it, trained for a quarter of the steps."""
    return tuple(_shortened(one) for one in POOL if one.name in _FAST_NAMES) if fast else POOL


def _shortened(member: Member) -> Member:
    schedule = member.schedule
    fewer = {name: getattr(schedule, name) // _FAST_FACTOR for name in ("steps", "warmup_steps")}
    return replace(member, schedule=replace(schedule, **fewer))


def make_pool(bench: Bench) -> dict[str, Path]:
    """Train what is missing of the pool, in this process; returns name -> directory."""
    disable_progress_bar()
    made: dict[str, Path] = {}
    base = bench.digest("base")
    for member in members_of(fast=bench.fast):
        start = made[member.after] if member.after else bench.zoo / "base"
        train_it = partial(_train, member, start, seed=bench.seed)
        made[member.name] = bench.made(member.name, (member, start.name, base), train_it)
    return made


def _train(member: Member, start: Path, out: Path, *, seed: int) -> None:
    held_out = {
        item.prompt
        for skill in SKILLS
        for item in held_out_items(skill, count=HELD_OUT_PER_SKILL, seed=seed)
    }
    rng = make_rng(seed, "recycling", member.name)
    count = member.schedule.steps * member.schedule.batch
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    if member.stage == "SFT":
        items = training_items(member.mix, count=count, rng=rng, held_out=held_out)
        train(model, tokenizer, items, member.schedule, seed=seed)
    else:
        skills = {skill: member.mix[skill] for skill in SKILLS if skill in member.mix}
        pairs = draw_pairs(skills, count=count, rng=rng, held_out=held_out)
        optimize_preferences(model, tokenizer, pairs, member.schedule)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
