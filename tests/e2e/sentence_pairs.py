"""Sentence pairs of two domains, and tiny encoders that learn them within seconds.

A sentence is four words. Every concept has two words, and a pair's score is the share of its
concepts that both sentences name: only an encoder that learned which words mean the same can tell.
"""

import itertools
import json
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizer

DOMAINS = ("news", "law")
_CONCEPTS = 10
_LENGTH = 4


def words_of(domain: str) -> list[tuple[str, str]]:
    """The two words of every concept."""
    return [(f"{domain}{n}one", f"{domain}{n}two") for n in range(_CONCEPTS)]


def make_pairs(domain: str, count: int, seed: int) -> list[dict[str, object]]:
    """Draw pairs of sentences; ``score`` is the share of concepts in common."""
    draw, words = random.Random(seed), words_of(domain)
    pairs = []
    for _ in range(count):
        shared = draw.randrange(_LENGTH + 1)
        concepts = draw.sample(range(_CONCEPTS), 2 * _LENGTH - shared)
        sides = concepts[:_LENGTH], concepts[_LENGTH - shared :][:_LENGTH]
        texts = []
        for side in sides:
            chosen = draw.sample(list(side), _LENGTH)
            texts.append(" ".join(draw.choice(words[concept]) for concept in chosen))
        pairs.append({"a": texts[0], "b": texts[1], "score": shared / _LENGTH})
    return pairs


def write_pairs(directory: Path, count: int) -> None:
    """Write ``news.jsonl`` and ``law.jsonl``."""
    for seed, domain in enumerate(DOMAINS):
        lines = [json.dumps(pair) for pair in make_pairs(domain, count, 100 + seed)]
        (directory / f"{domain}.jsonl").write_text("\n".join(lines) + "\n")


def train_encoders(directory: Path) -> dict[str, Path]:
    """Train a base on a little of both domains, and one encoder per domain from it."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary += [word for domain in DOMAINS for pair in words_of(domain) for word in pair]
    directory.mkdir(parents=True, exist_ok=True)
    # Of models this small, more threads only wait for each other.
    torch.set_num_threads(1)
    (directory / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer(str(directory / "vocab.txt"))
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng():
        torch.random.default_generator.manual_seed(0)
        model = BertModel(config)
    mixed = [pair for seed, domain in enumerate(DOMAINS) for pair in make_pairs(domain, 512, seed)]
    _train(model, tokenizer, mixed, steps=8)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    paths = {name: directory / name for name in ("base", *DOMAINS)}
    for seed, (name, path) in enumerate(paths.items()):
        model.load_state_dict(base)
        if name != "base":
            _train(model, tokenizer, make_pairs(name, 1024, 10 + seed), steps=60)
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return paths


def _train(model: BertModel, tokenizer: BertTokenizer, pairs: list[dict], steps: int) -> None:
    """Bring the cosine of mean token vectors close to the scores."""
    draw = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in itertools.repeat(None, steps):
        batch = draw.sample(pairs, 32)
        sides = []
        for side in ("a", "b"):
            tokens = tokenizer([pair[side] for pair in batch], padding=True, return_tensors="pt")
            hidden, mask = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
            sides.append((hidden * mask).sum(1) / mask.sum(1))
        wanted = torch.tensor([pair["score"] for pair in batch])
        loss = (torch.cosine_similarity(*sides) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
