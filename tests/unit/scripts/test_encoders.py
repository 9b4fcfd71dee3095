import json
import math
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import DataFrame
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from transformers import BertModel, BertTokenizer

from configs.evaluation import SplitSizes
from scripts.bench.zoo_store import ScoreStore
from scripts.papers import encoders
from scripts.papers.bench import Bench
from scripts.papers.encoders_scorers import accuracy, embed, ndcg, spearman
from scripts.papers.encoders_texts import (
    TASKS,
    Story,
    classification_item,
    likeness,
    plain_text,
    retrieval_item,
    similarity_item,
    vocabulary,
)
from scripts.papers.encoders_training import (
    EncoderPlan,
    contrastive_loss,
    correlation_loss,
    make_encoders,
    new_encoder,
    write_items,
)

SPLITS = SplitSizes(search=8, select=4, report=12)
TINY = EncoderPlan(hidden=16, layers=1, base_steps=2, class_steps=2, embed_steps=2, splits=SPLITS)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> BertTokenizer:
    path = tmp_path_factory.mktemp("words") / "vocab.txt"
    path.write_text("\n".join(vocabulary()) + "\n")
    return BertTokenizer(str(path))


@pytest.fixture(scope="module")
def model(tokenizer: BertTokenizer) -> BertModel:
    return new_encoder(TINY, len(tokenizer), seed=0).eval()


def story(*verbs: int) -> Story:
    return Story("Ann", "pens", 5, tuple((verb, 2) for verb in verbs))


def test_story_in_words() -> None:
    told = Story("Ann", "pens", 5, ((0, 3), (3, 2)), ((1, "red fox"),))
    assert told.text == ("Ann has 5 pens. Ann buys 3 more. Ann sees the red fox. Ann loses 2.")


def test_likeness_counts_common_verbs() -> None:
    # Common are one of verb 0 and one of verb 3, of three changes.
    assert likeness(story(0, 0, 3), story(3, 0, 3)) == pytest.approx(2 / 3)
    assert likeness(story(1), story(1, 2, 4, 5)) == pytest.approx(1 / 4)
    assert likeness(story(0), story(1)) == 0.0


@pytest.mark.parametrize("task", TASKS)
def test_labels_are_what_the_text_says(task: str) -> None:
    rng = random.Random(0)
    for _ in range(100):
        item = classification_item(task, rng)
        told = [sentence.split()[1] for sentence in str(item["text"]).split(". ")[1:]]
        verbs = [verb for verb in told if verb != "sees"]
        gains = [verb in {"buys", "finds", "gets"} for verb in verbs]
        expected = {
            "operation": int(gains[-1]),
            "steps": len(verbs) - 1,
            "sight": int(told[0] == "sees"),
        }
        assert item["label"] == expected[task]


def test_every_word_has_a_token(tokenizer: BertTokenizer) -> None:
    rng = random.Random(0)
    texts = [plain_text(rng) for _ in range(300)]
    texts += [str(retrieval_item(rng)["query"]) for _ in range(300)]
    assert all(tokenizer.unk_token_id not in ids for ids in tokenizer(texts)["input_ids"])


def test_similarity_is_of_all_degrees_and_says_nothing_of_who() -> None:
    rng = random.Random(0)
    scores = [float(similarity_item(rng)["score"]) for _ in range(300)]
    assert len({round(score, 3) for score in scores}) >= 6
    assert 0.2 < float(np.mean(scores)) < 0.8


def test_contrastive_loss_of_two_pairs() -> None:
    queries = torch.tensor([[2.0, 0.0, 0.0], [0.0, 3.0, 0.0]])
    # Of length 1; cosines of the first query 0.6 and 0.5, of the second 0.55 and 0.65.
    passages = torch.tensor([[0.6, 0.55, 0.3375**0.5], [0.5, 0.65, 0.3275**0.5]])
    # Each is ahead by 0.1, which is 2 at temperature 0.05: log(1 + exp(-2)); exchanged, 2 more.
    assert float(contrastive_loss(queries, passages)) == pytest.approx(0.126928, abs=1e-5)
    assert float(contrastive_loss(queries, passages.flip(0))) == pytest.approx(2.126928, abs=1e-5)


def test_correlation_loss_by_hand() -> None:
    x = torch.tensor([1.0, 2.0, 3.0])
    # Of (1, 2, 3) and (1, 3, 2): (-1)(-1) + 0 + (1)(0) over 2, which is 0.5.
    assert float(correlation_loss(x, torch.tensor([1.0, 3.0, 2.0]))) == pytest.approx(0.5)
    assert float(correlation_loss(x, 2 * x + 1)) == pytest.approx(0.0, abs=1e-6)
    assert float(correlation_loss(x, -x)) == pytest.approx(2.0, abs=1e-6)


def test_accuracy_uses_the_head_of_the_task(
    model: BertModel, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    head = str(tmp_path / "head.safetensors")
    save_file({"weight": torch.zeros(3, 16), "bias": torch.tensor([0.0, 1.0, 0.0])}, head)
    items = [{"text": "Ann has 2 pens.", "label": label} for label in (0, 1, 2, 1)]
    with torch.inference_mode():
        found = accuracy(model, tokenizer, items, batch_size=2, head=head)
    assert found.tolist() == [0.0, 1.0, 0.0, 1.0]


def test_ndcg_is_of_the_rank(model: BertModel, tokenizer: BertTokenizer, tmp_path: Path) -> None:
    rng = random.Random(0)
    passages = [str(retrieval_item(rng)["passage"]) for _ in range(12)]
    corpus = tmp_path / "corpus.json"
    corpus.write_text(json.dumps(passages))
    items = [{"query": passages[0], "passage": passage} for passage in passages]
    with torch.inference_mode():
        found = ndcg(model, tokenizer, items, batch_size=5, corpus=str(corpus))
        vectors = embed(model, tokenizer, passages, 12)
    ranks = (-(vectors @ vectors[0])).argsort().argsort() + 1
    # Its own passage is the nearest; rank 2 gets 1 / log2(3), ranks 11 and 12 nothing.
    expected = [1 / math.log2(1 + rank) if rank <= 10 else 0.0 for rank in ranks.tolist()]
    assert found[0] == 1.0
    assert found.tolist() == pytest.approx(expected)
    assert sorted(found)[:2] == [0.0, 0.0]


def test_encoder_that_tells_nothing_apart_finds_nothing(
    model: BertModel, tokenizer: BertTokenizer, tmp_path: Path
) -> None:
    blind = new_encoder(TINY, len(tokenizer), seed=0).eval()
    torch.nn.init.zeros_(blind.encoder.layer[-1].output.LayerNorm.weight)
    torch.nn.init.ones_(blind.encoder.layer[-1].output.LayerNorm.bias)
    passages = [f"Ann has {n} pens." for n in range(2, 13)]
    (tmp_path / "corpus.json").write_text(json.dumps(passages))
    items = [{"query": passage, "passage": passage} for passage in passages]
    with torch.inference_mode():
        found = ndcg(blind, tokenizer, items, batch_size=8, corpus=str(tmp_path / "corpus.json"))
    assert found.tolist() == [0.0] * 11


def test_spearman_is_scipys(model: BertModel, tokenizer: BertTokenizer) -> None:
    rng = random.Random(1)
    items = [similarity_item(rng) for _ in range(40)]
    with torch.inference_mode():
        found = spearman(model, tokenizer, items, batch_size=16)
        a, b = (embed(model, tokenizer, [str(i[side]) for i in items], 40) for side in "ab")
    expected = spearmanr((a * b).sum(-1).numpy(), [i["score"] for i in items]).statistic
    assert found.mean() == pytest.approx(expected, abs=0.02)


def test_items_are_distinct_and_held_out(tmp_path: Path) -> None:
    held_out = write_items(tmp_path / "items", SPLITS, seed=0)
    for task in (*TASKS, "retrieval", "similarity"):
        lines = (tmp_path / "items" / f"{task}.jsonl").read_text().splitlines()
        assert len(set(lines)) == len(lines) == 24
    items = [json.loads(line) for line in lines]
    assert {item["a"] for item in items} <= held_out
    other = write_items(tmp_path / "other", SplitSizes(search=8, select=4, report=13), seed=0)
    assert not held_out & other


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    root = tmp_path_factory.mktemp("papers")
    with ScoreStore(root / "scores.sqlite") as store:
        yield Bench(root, root / "zoo-128-0", width=128, seed=0, fast=True, store=store)


@pytest.fixture(scope="module")
def made(bench: Bench) -> Path:
    return bench.made("encoders", TINY.digest, lambda out: make_encoders(out, TINY, seed=0))


@pytest.mark.slow
def test_training_gives_the_same_encoders_again(made: Path, tmp_path: Path) -> None:
    make_encoders(tmp_path, TINY, seed=0)
    for name in ("base", *TASKS, "joint", "joint_half"):
        first, again = (load_file(d / name / "model.safetensors") for d in (made, tmp_path))
        assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(
        load_file(made / "joint" / "model.safetensors")["embeddings.word_embeddings.weight"],
        load_file(made / "joint_half" / "model.safetensors")["embeddings.word_embeddings.weight"],
    )


@pytest.mark.slow
def test_records_give_every_claim_a_number(bench: Bench, made: Path) -> None:
    records = [record for task in TASKS for record in encoders._drops(bench, made, TINY, task)]
    records += encoders._merges(bench, made, TINY)
    records += encoders._fused(bench, made, TINY)
    # Classifiers that learned nothing gain nothing; the share of it needs a number.
    frame = DataFrame(records).assign(width=128, seed=0)
    frame.loc[frame["tuned"].notna(), "tuned"] = 2.0
    for claim in encoders.ENCODERS.claims:
        assert math.isfinite(claim.value(frame)), claim.key
    assert len(encoders.ENCODERS.notes(frame)) == len(TASKS) + 2
    merges = set(frame["merge"].dropna())
    assert {"average", "average, DARE", "TIES, DARE", "search", "sight alone"} <= merges
