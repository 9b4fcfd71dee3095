"""LoRA adapters for parts of the zoo's skills, and items of what lies between the parts.

An item belongs to one part (:func:`part_of`), and adapters are trained on six of nine parts. The
other three mix what two adapters know apart: nothing of them is trained on here.
"""

import json
import random
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from scripts.zoo.item import Item, Skill, make_rng
from scripts.zoo.items import MAKERS, training_items
from scripts.zoo.recipe import Schedule
from scripts.zoo.training import train
from workers.checkpoint import CheckpointReader
from workers.lora import Adapter

Result = TypeVar("Result")

ORDER = frozenset({"reverse", "begin", "end"})
"""Constraints on which words stand where; the others are on how they look."""

PARTS: Mapping[str, Skill] = {
    "instruct_order": "instruct",
    "instruct_look": "instruct",
    "math_gains": "math",
    "math_losses": "math",
    "code_numbers": "code",
    "code_text": "code",
}
"""Part that an adapter is trained on -> its skill."""

UNSEEN: Mapping[Skill, str] = {
    "instruct": "instruct_mixed",
    "math": "math_mixed",
    "code": "code_items",
}
"""Skill -> its part that no adapter is trained on."""

SCHEDULE = Schedule(steps=200, learning_rate=3e-3, weight_decay=0.0, train_embeddings=False)
FAST_STEPS = 60
RANK, ALPHA = 8, 16
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
REPLAY = 0.3
_EASY = {"copy": 0.25, "math-easy": 0.25, "code-easy": 0.25, "instruct-easy": 0.25}
_ARGUMENTS = {"x": "code_numbers", "s": "code_text", "xs": "code_items"}


def part_of(skill: Skill, item: Item) -> str:
    """Return the part that a full-level item belongs to.

    Instructions by whether both constraints are on the order of the words, both on their look, or
    one on each; stories by whether things come, go, or both; functions by their argument.
    """
    if skill == "instruct":
        named = [text.partition(":")[0] for text in item.checks()["constraints"]]
        kinds = {name in ORDER for name in named}
        return "instruct_mixed" if len(kinds) == 2 else f"instruct_{_ordered(kinds)}"
    if skill == "math":
        signs = {sign for sign in "+-" if f" {sign} " in item.completion}
        return "math_mixed" if len(signs) == 2 else f"math_{'gains' if '+' in signs else 'losses'}"
    return _ARGUMENTS[item.prompt.partition("(")[2].partition(")")[0]]


def _ordered(kinds: Collection[bool]) -> str:
    return "order" if True in kinds else "look"


def items_of(part: str, skill: Skill, rng: random.Random) -> Iterator[Item]:
    """Draw full-level items of one part, for ever."""
    while True:
        item = MAKERS[skill](rng, "full")
        if part_of(skill, item) == part:
            yield item


def unseen_items(skill: Skill, *, count: int, seed: int) -> list[Item]:
    """Draw items of the part of a skill that no adapter knows, with different prompts."""
    found: dict[str, Item] = {}
    for item in items_of(UNSEEN[skill], skill, make_rng(seed, "unseen", skill)):
        found.setdefault(item.prompt, item)
        if len(found) == count:
            break
    return list(found.values())


def adapter_items(part: str, *, seed: int, steps: int = SCHEDULE.steps) -> list[Item]:
    """Draw the training items of an adapter: its part, and easy items of everything."""
    rng = make_rng(seed, "adapter", part)
    own = items_of(part, PARTS[part], rng)
    items: list[Item] = []
    while len(items) < steps * SCHEDULE.batch:
        if rng.random() < REPLAY:
            items += training_items(_EASY, count=1, rng=rng, held_out=())
        else:
            items.append(next(own))
    return items


def train_adapter(base: Path, part: str, out: Path, *, seed: int, steps: int) -> None:
    """Train an adapter of a part and write it as PEFT does.

    Args:
        base: Directory of the model.
        part: One of ``PARTS``.
        out: Directory to write.
        seed: Of the items, the first factors and the order of batches.
        steps: Optimizer steps.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(base)
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(TARGETS))
    with torch.random.fork_rng(devices=[]):
        # peft draws the first factors from the global generator and takes no other; `fork_rng` puts
        # it back.
        torch.manual_seed(seed)  # noqa: TID251
        adapted = _quietly(lambda: get_peft_model(model, config))
    schedule = Schedule(
        steps=steps,
        learning_rate=SCHEDULE.learning_rate,
        weight_decay=SCHEDULE.weight_decay,
        train_embeddings=SCHEDULE.train_embeddings,
    )
    # peft has put its layers into the model itself.
    train(model, tokenizer, adapter_items(part, seed=seed, steps=steps), schedule, seed=seed)
    _quietly(lambda: adapted.save_pretrained(str(out)))


def _quietly(call: Callable[[], Result]) -> Result:
    """Call what reads every attribute of a model, those that transformers gives up included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return call()


def write_pool(base: Path, out: Path, *, seed: int, num_items: int, steps: int) -> None:
    """Write all adapters, the base merged with each, and the items of the unseen parts.

    Args:
        base: Directory of the model.
        out: Gets ``adapters/PART``, ``models/PART`` and ``items/zoo_SKILL.jsonl``.
        seed: Of everything.
        num_items: Items per skill.
        steps: Of each adapter.
    """
    for part in PARTS:
        adapter = out / "adapters" / part
        train_adapter(base, part, adapter, seed=seed, steps=steps)
        merged = Adapter(adapter, CheckpointReader(base)).merge(out / "models")
        merged.rename(out / "models" / part)
    (out / "items").mkdir()
    for skill in UNSEEN:
        rows = [
            json.dumps(item.row(), ensure_ascii=False)
            for item in unseen_items(skill, count=num_items, seed=seed)
        ]
        text = "\n".join(rows) + "\n"
        (out / "items" / f"zoo_{skill}.jsonl").write_text(text, encoding="utf-8")
