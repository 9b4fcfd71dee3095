"""Train small BERT encoders: a base by masked words, then classifiers and embedding models of it.

Start at :func:`make_encoders`. One thread, float32, and every draw from generators of the seed, so
on one kind of machine the same seed gives the same bits.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import BertConfig, BertModel, BertTokenizer

from configs.evaluation import SplitSizes
from scripts.papers import encoders_scorers, encoders_texts
from scripts.papers.encoders_scorers import pool
from scripts.papers.encoders_texts import (
    TASKS,
    Item,
    classification_item,
    draw_distinct,
    plain_text,
    retrieval_item,
    similarity_item,
    vocabulary,
)
from scripts.zoo.item import make_rng

EMBEDDERS = ("retrieval", "similarity", "joint")
HALF = "_half"
"""Ends the names of checkpoints that were taken in the middle of their training."""

_LONGEST = 96
_TEMPERATURE = 0.05
_MASKED = 0.15
_WARMUP = 0.1
_SPLITS = SplitSizes(search=128, select=64, report=512)
_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderPlan:
    """Sizes and steps of everything that is trained.

    Attributes:
        hidden: Width; heads have a quarter of it.
        layers: Number of layers.
        base_steps: Of masked words, 32 texts each.
        class_steps: Of each classifier, 32 texts each.
        embed_steps: Of each embedding model of one objective, 32 pairs each; the joint one takes as
            many of both, in turns.
        base_rate: Peak learning rate of the base.
        tuned_rate: Peak learning rate of what is tuned from it.
        splits: Items per task.
    """

    hidden: int = 64
    layers: int = 2
    base_steps: int = 1500
    class_steps: int = 300
    embed_steps: int = 300
    base_rate: float = 2e-3
    tuned_rate: float = 1e-3
    splits: SplitSizes = _SPLITS

    @property
    def digest(self) -> str:
        """Names all that decides the encoders and their items beside the seed, sources included."""
        files = (__file__, encoders_texts.__file__, encoders_scorers.__file__)
        sources = b"".join(Path(str(file)).read_bytes() for file in files)
        return hashlib.sha256(repr(self).encode() + sources).hexdigest()


def make_encoders(out: Path, plan: EncoderPlan, *, seed: int) -> None:
    """Write items, heads and checkpoints below an empty directory.

    ``base`` and what is tuned from it are directories of transformers; ``items`` holds each task's
    items as JSON lines, the classifiers' heads as safetensors, and the corpus of passages.
    """
    torch.set_num_threads(1)
    held_out = write_items(out / "items", plan.splits, seed=seed)
    tokenizer = _tokenizer(out)
    base = train_base(plan, tokenizer, seed=seed)
    _save(base, tokenizer, out / "base")
    start = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    for task in TASKS:
        base.load_state_dict(start)
        head = train_classifier(base, tokenizer, task, plan, seed=seed, held_out=held_out)
        _save(base, tokenizer, out / task)
        save_file(
            {"weight": head.weight.detach(), "bias": head.bias.detach()},
            out / "items" / f"{task}.safetensors",
        )
    for name in EMBEDDERS:
        base.load_state_dict(start)
        for half, _ in enumerate(
            train_embedder(base, tokenizer, name, plan, seed=seed, held_out=held_out)
        ):
            _save(base, tokenizer, out / (name if half else name + HALF))


def write_items(folder: Path, splits: SplitSizes, *, seed: int) -> frozenset[object]:
    """Write what encoders are scored on; returns its texts, which nobody may be trained on.

    A task has exactly the items of its splits, since the share of a correlation that an item has
    means something only among those that it was computed with.
    """
    folder.mkdir(parents=True)
    # Items of other sizes are others: no score of one block is taken for that of another.
    size = f"{splits.search}/{splits.select}/{splits.report}"
    count = splits.search + splits.select + splits.report
    texts: set[object] = set()
    for task in TASKS:

        def draw(rng: random.Random, task: str = task) -> Item:
            return classification_item(task, rng)

        items = draw_distinct(draw, count, make_rng(seed, "encoders", task, size), by="text")
        _write_lines(folder / f"{task}.jsonl", items)
        texts |= {item["text"] for item in items}
    rng = make_rng(seed, "encoders", "retrieval", size)
    items = draw_distinct(retrieval_item, count, rng, by="key")
    _write_lines(folder / "retrieval.jsonl", items)
    passages = [str(item["passage"]) for item in items]
    (folder / "corpus.json").write_text(json.dumps(passages), encoding="utf-8")
    texts |= set(passages)
    rng = make_rng(seed, "encoders", "similarity", size)
    items = draw_distinct(similarity_item, count, rng, by="a")
    _write_lines(folder / "similarity.jsonl", items)
    return frozenset(texts | {item["a"] for item in items})


def _write_lines(path: Path, items: Iterable[Item]) -> None:
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")


def _tokenizer(out: Path) -> BertTokenizer:
    """Make a tokenizer of whole words."""
    path = out / "items" / "vocab.txt"
    path.write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    return BertTokenizer(str(path), model_max_length=_LONGEST)


def new_encoder(plan: EncoderPlan, num_tokens: int, *, seed: int) -> BertModel:
    """Create an untrained encoder without dropout, whose weights depend on the seed alone."""
    config = BertConfig(
        vocab_size=num_tokens,
        hidden_size=plan.hidden,
        num_hidden_layers=plan.layers,
        num_attention_heads=4,
        intermediate_size=2 * plan.hidden,
        max_position_embeddings=_LONGEST,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        # The library's initializers draw from the global generator and take no other; `fork_rng`
        # puts it back.
        torch.manual_seed(seed)  # noqa: TID251
        return BertModel(config)


def train_base(plan: EncoderPlan, tokenizer: BertTokenizer, *, seed: int) -> BertModel:
    """Train an encoder to guess masked words (BERT, arXiv:1810.04805, section 3.1).

    15 % of the words are chosen; all of them are replaced by the mask, none by other words.
    """
    rng = make_rng(seed, "encoders", "base")
    generator = torch.Generator().manual_seed(rng.getrandbits(63))
    model = new_encoder(plan, len(tokenizer), seed=rng.getrandbits(32))
    table = model.get_input_embeddings().weight
    special = torch.tensor(tokenizer.all_special_ids)

    def loss() -> torch.Tensor:
        tokens = _encode(tokenizer, [plain_text(rng) for _ in range(_BATCH)])
        words = tokens["input_ids"]
        chosen = torch.rand(words.shape, generator=generator) < _MASKED
        chosen &= ~torch.isin(words, special)
        hidden = model(
            input_ids=words.masked_fill(chosen, tokenizer.mask_token_id),
            attention_mask=tokens["attention_mask"],
        ).last_hidden_state
        return functional.cross_entropy(hidden[chosen] @ table.T, words[chosen])

    _descend(model, [*model.parameters()], loss, steps=plan.base_steps, rate=plan.base_rate)
    return model


def train_classifier(
    model: BertModel,
    tokenizer: BertTokenizer,
    task: str,
    plan: EncoderPlan,
    *,
    seed: int,
    held_out: frozenset[object],
) -> torch.nn.Linear:
    """Tune an encoder in place towards one task; returns the head on its pooler."""
    rng = make_rng(seed, "encoders", "training", task)
    head = torch.nn.Linear(plan.hidden, TASKS[task][1])
    torch.nn.init.zeros_(head.weight)
    torch.nn.init.zeros_(head.bias)

    def loss() -> torch.Tensor:
        items = _draw(lambda: classification_item(task, rng), "text", held_out)
        tokens = _encode(tokenizer, [str(item["text"]) for item in items])
        labels = torch.tensor([int(item["label"]) for item in items])
        return functional.cross_entropy(head(pool(model, tokens, pooler=True)), labels)

    parameters = [*model.parameters(), *head.parameters()]
    _descend(model, parameters, loss, steps=plan.class_steps, rate=plan.tuned_rate)
    return head


def train_embedder(
    model: BertModel,
    tokenizer: BertTokenizer,
    name: str,
    plan: EncoderPlan,
    *,
    seed: int,
    held_out: frozenset[object],
) -> Iterable[None]:
    """Tune an encoder in place towards retrieval, similarity or both; yields half way and at last.

    As in CoDiEmb (arXiv:2508.11442) every batch is of one objective, with a loss of its own:
    :func:`contrastive_loss` for retrieval, :func:`correlation_loss` for similarity.
    """
    rng = make_rng(seed, "encoders", "training", name)
    turns = ("retrieval", "similarity") if name == "joint" else (name,)
    count = 0

    def vectors(items: Sequence[Item], key: str) -> torch.Tensor:
        tokens = _encode(tokenizer, [str(item[key]) for item in items])
        return pool(model, tokens, pooler=False)

    def loss() -> torch.Tensor:
        nonlocal count
        turn = turns[count % len(turns)]
        count += 1
        if turn == "retrieval":
            items = _draw(lambda: retrieval_item(rng), "passage", held_out)
            return contrastive_loss(vectors(items, "query"), vectors(items, "passage"))
        items = _draw(lambda: similarity_item(rng), "a", held_out)
        cosines = functional.cosine_similarity(vectors(items, "a"), vectors(items, "b"))
        return correlation_loss(cosines, torch.tensor([float(item["score"]) for item in items]))

    steps = plan.embed_steps * len(turns)
    return _halves(
        model, [*model.parameters()], loss, steps=steps, rate=plan.tuned_rate, stops=(steps // 2,)
    )


def contrastive_loss(queries: torch.Tensor, passages: torch.Tensor) -> torch.Tensor:
    """Return mean_i -log(exp(cos(q_i, p_i) / t) / sum_j exp(cos(q_i, p_j) / t)), t = 0.05.

    InfoNCE with the other passages of the batch as negatives (arXiv:1807.03748, equation 4).

    Args:
        queries: ``(n, hidden)``.
        passages: ``(n, hidden)``, that of each query in its row.
    """
    cosines = functional.normalize(queries, dim=-1) @ functional.normalize(passages, dim=-1).T
    return functional.cross_entropy(cosines / _TEMPERATURE, torch.arange(len(queries)))


def correlation_loss(cosines: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    """Return 1 - Pearson's correlation of a batch's cosines with its scores, in [0, 2].

    An objective that optimizes the correlation itself, as CoDiEmb has for similarity. Both are
    ``(n,)``; the scores must not all be equal.
    """
    x, y = cosines - cosines.mean(), scores - scores.mean()
    loss: torch.Tensor = 1.0 - (x @ y) / (x.norm() * y.norm()).clamp_min(1e-8)
    return loss


def _draw(draw: Callable[[], Item], key: str, held_out: frozenset[object]) -> list[Item]:
    """Draw a batch, none of it held out."""
    items: list[Item] = []
    while len(items) < _BATCH:
        item = draw()
        if item[key] not in held_out:
            items.append(item)
    return items


# transformers does not type what its encodings hold.
def _encode(tokenizer: BertTokenizer, texts: list[str]) -> Any:  # noqa: ANN401
    return tokenizer(texts, padding=True, return_tensors="pt")


def _descend(
    model: BertModel,
    parameters: list[torch.nn.Parameter],
    loss: Callable[[], torch.Tensor],
    *,
    steps: int,
    rate: float,
) -> None:
    for _ in _halves(model, parameters, loss, steps=steps, rate=rate, stops=()):
        pass


def _halves(
    model: BertModel,
    parameters: list[torch.nn.Parameter],
    loss: Callable[[], torch.Tensor],
    *,
    steps: int,
    rate: float,
    stops: tuple[int, ...],
) -> Iterable[None]:
    """Minimize by AdamW, warm-up, then cosine to a tenth; yields after some steps and the last."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, fused=True)
    model.train()
    for step in range(steps):
        warm = min(1.0, (step + 1) / (_WARMUP * steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (0.55 + 0.45 * math.cos(math.pi * step / steps))
        optimizer.zero_grad(set_to_none=True)
        loss().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step + 1 in (*stops, steps):
            model.eval()
            yield
            model.train()
    model.eval()


def _save(model: BertModel, tokenizer: BertTokenizer, out: Path) -> None:
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
