"""AdaMerging on small models: groups of layers, positions that count, entropy that falls."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.small_models import TinyVariants, live_model, pool_of, small_bert, write_words
from tests.unit.workers.learning.two_classes import TwoClasses
from workers.checkpoint import CheckpointReader
from workers.layers import Layout
from workers.learning.adamerging import (
    AdaMergingSettings,
    adamerging_coefficients,
    adamerging_groups,
    continue_greedily,
    learn_adamerging,
    recipe_groups,
)
from workers.learning.merged_model import LearnableMerge, leaf
from workers.learning.texts import pad
from workers.sources import Sources

TEXTS = {
    "math": [(5, 9, 40, 41), (7, 30), (11, 12, 13)],
    "code": [(50, 51, 52), (60, 61, 62, 63, 64)],
}


def learn(
    sources: Sources, settings: AdaMergingSettings, model: torch.nn.Module | None = None
) -> tuple[list[dict[str, float]], Tensor]:
    with CheckpointReader(sources.reference.directory) as reader:
        groups = adamerging_groups(Layout.read(reader), settings.granularity)
    leaves, by_name = adamerging_coefficients(groups, len(sources.checkpoints), settings)
    live = live_model(sources) if model is None else model
    with LearnableMerge(live, sources, by_name, adds_to_base=True) as merge:
        record = learn_adamerging(merge, TEXTS, settings, pad_id=0, max_length=512)
    return record, torch.cat([one.detach() for one in leaves], dim=1)


def test_merge_and_gradient_of_two_classes_by_hand(
    make_checkpoint: Callable[..., Path],
) -> None:
    # Task vectors (4 ln 3, 0) and (0, 2 ln 3), of which a half each is added to (1/2, 1/2).
    weights = {"base": (0.5, 0.5), "first": (4.8944492, 0.5), "second": (0.5, 2.6972246)}
    paths = {
        name: make_checkpoint(name, {"weight": torch.tensor(pair)[:, None]})
        for name, pair in weights.items()
    }
    sources, model = pool_of(paths.pop("base"), **paths), TwoClasses()
    lambdas = leaf(2, 1, 0.5)
    with LearnableMerge(model, sources, {"weight": lambdas}, adds_to_base=True) as merge:
        merge.write()
        # 1/2 + 2 ln 3 and 1/2 + ln 3
        assert model.weight.flatten().tolist() == pytest.approx([2.6972246, 1.5986123], abs=1e-6)
        settings = AdaMergingSettings(steps=1, lr=0.1)
        [record] = learn_adamerging(merge, {"a": [(1,)]}, settings, pad_id=0, max_length=1)
    # Logits differ by z = ln 3, so q = (3/4, 1/4), and H = ln 4 - 3/4 ln 3.
    assert record["entropy/a"] == pytest.approx(0.5623351, abs=1e-6)
    # dH/dz = -z q_1 q_2 = -3/16 ln 3; dz/dlambda = 4 ln 3 and -2 ln 3.
    assert lambdas.grad is not None
    assert lambdas.grad.flatten().tolist() == pytest.approx([-0.9052117, 0.4526059], abs=1e-6)
    # Adam's first step is as long as its rate. 1/2 + 0.6 * 4 ln 3 and 1/2 + 0.4 * 2 ln 3.
    assert lambdas.flatten().tolist() == pytest.approx([0.6, 0.4], abs=1e-6)
    assert model.weight.flatten().tolist() == pytest.approx([3.1366695, 1.3788898], abs=1e-6)


def test_groups_are_the_layers_and_what_surrounds_them(pools: TinyVariants) -> None:
    with CheckpointReader(pools(tied=False).reference.directory) as reader:
        layout = Layout.read(reader)
    groups = adamerging_groups(layout, "layer")
    assert [name for name, _ in groups] == ["before_layers", "layer_0", "layer_1", "after_layers"]
    assert groups[0][1] == ["model.embed_tokens.weight"]
    assert groups[3][1] == ["lm_head.weight", "model.norm.weight"]
    compiled = recipe_groups(layout, groups)
    for (name, names), group in zip(groups, compiled, strict=True):
        assert group.name == name
        assert [one for one in layout.names if group.holds(one)] == names
    [(name, names)] = adamerging_groups(layout, "task")
    assert (name, tuple(names)) == ("all", layout.names)


@pytest.mark.parametrize("positions", ["generated", "last", "all"])
@pytest.mark.parametrize("granularity", ["task", "layer"])
def test_learning_lowers_the_entropy(pools: TinyVariants, positions: str, granularity: str) -> None:
    settings = AdaMergingSettings(
        steps=12, lr=3e-2, batch_size=8, positions=positions, granularity=granularity, new_tokens=3
    )
    record, weights = learn(pools(), settings)
    assert record[0].keys() == {"entropy/math", "entropy/code", "loss"}
    assert record[-1]["loss"] < record[0]["loss"]
    assert weights.shape == (3, 1 if granularity == "task" else 4)
    assert not torch.allclose(weights, torch.tensor(0.3))


def test_same_seed_gives_the_same_bits(pools: TinyVariants) -> None:
    settings = AdaMergingSettings(steps=3, batch_size=2, seed=5, new_tokens=2)
    first, again = learn(pools(), settings), learn(pools(), settings)
    assert first[0] == again[0]
    assert torch.equal(first[1], again[1])


def test_entropy_counts_at_the_last_token(pools: TinyVariants) -> None:
    sources = pools()
    settings = AdaMergingSettings(steps=1, positions="last", init=0.0)
    record, _ = learn(sources, settings)
    model = live_model(sources)
    expected = []
    with torch.no_grad():
        for text in TEXTS["math"]:
            logits = model(torch.tensor([text])).logits[0, -1].double()
            expected.append(torch.distributions.Categorical(logits=logits).entropy())
    assert record[0]["entropy/math"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)


def test_entropy_counts_at_what_the_merge_writes(pools: TinyVariants) -> None:
    sources = pools()
    settings = AdaMergingSettings(steps=1, positions="generated", new_tokens=3, init=0.0)
    record, _ = learn(sources, settings)
    model = live_model(sources)
    expected = []
    with torch.no_grad():
        for text in TEXTS["math"]:
            ids = list(text)
            for _ in range(3):
                logits = model(torch.tensor([ids])).logits[0, -1].double()
                expected.append(torch.distributions.Categorical(logits=logits).entropy())
                ids.append(int(logits.argmax()))
                if ids[-1] == 2:
                    break
    assert record[0]["entropy/math"] == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)


def test_continuations_end_at_the_end_token_and_leave_room(pools: TinyVariants) -> None:
    model = live_model(pools())
    batch = pad([(5, 9, 40, 41), (7, 30)], 0)
    whole, begins = continue_greedily(model, batch, new_tokens=4, pad_id=0, max_length=512)
    assert begins == [4, 2]
    assert whole.lengths.tolist() == [8, 6]
    third = int(whole.token_ids[1, 3])
    model.generation_config.eos_token_id = [third, 2]
    cut, _ = continue_greedily(model, batch, new_tokens=4, pad_id=0, max_length=512)
    at = whole.token_ids[1, 2:6].tolist().index(third)
    assert cut.lengths[1] == 2 + at + 1
    assert torch.equal(cut.token_ids[1, : 3 + at], whole.token_ids[1, : 3 + at])
    short, begins = continue_greedily(model, batch, new_tokens=4, pad_id=0, max_length=7)
    assert begins == [3, 2]
    assert short.token_ids[0, :3].tolist() == [9, 40, 41]


def test_encoders_with_a_head_become_sure_of_their_classes(tmp_path: Path) -> None:
    kind = "BertForSequenceClassification"
    directories = {name: tmp_path / name for name in ("base", "news", "law")}
    for seed, directory in enumerate(directories.values()):
        small_bert(kind, seed=seed, vocab_size=70).save_pretrained(directory)
        write_words(directory, 70)
    sources = pool_of(directories.pop("base"), **directories)
    from transformers import BertForSequenceClassification

    model = BertForSequenceClassification.from_pretrained(sources.reference.directory).eval()
    settings = AdaMergingSettings(steps=15, lr=3e-2, granularity="task")
    record, weights = learn(sources, settings, model)
    assert record[-1]["loss"] < record[0]["loss"]
    assert weights.shape == (2, 1)
