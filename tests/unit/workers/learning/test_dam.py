"""DAM on the tiny pool: what it minimizes falls, and the same seed gives the same bits."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.errors import EvaluationError
from tests.conftest import TinyPool
from tests.small_models import TinyVariants, live_model, pool_of
from tests.unit.workers.learning.two_classes import TwoClasses
from workers.checkpoint import CheckpointReader
from workers.learning.dam import DamSettings, dam_coefficients, learn_dam
from workers.learning.descent import Step
from workers.learning.merged_model import LearnableMerge
from workers.learning.predictions import predict
from workers.learning.teachers import Teachers
from workers.learning.texts import TokenIds, make_batches
from workers.sources import Sources


def random_texts(seed: int, count: int = 6) -> list[TokenIds]:
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.randint(4, 12, (count,), generator=draw).tolist()
    return [tuple(torch.randint(3, 259, (n,), generator=draw).tolist()) for n in lengths]


TEXTS = [random_texts(seed) for seed in range(3)]


def named(texts: list[list[TokenIds]]) -> dict[str, list[TokenIds]]:
    return {str(index): own for index, own in enumerate(texts)}


def learn(
    sources: Sources, settings: DamSettings, texts: list[list[TokenIds]] = TEXTS, **how: bool
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    with CheckpointReader(sources.reference.directory) as reader:
        coefficients = dam_coefficients(reader.entries.values(), len(sources.checkpoints), settings)
    with LearnableMerge(live_model(sources), sources, coefficients, adds_to_base=False) as merge:
        record = learn_dam(merge, named(texts), settings, pad_id=0, keeps_logits=how.get("keeps"))
    return record, {name: one.detach() for name, one in coefficients.items()}


def test_coefficients_are_one_per_column_and_begin_with_the_mean(pools: TinyVariants) -> None:
    sources = pools()
    with CheckpointReader(sources.reference.directory) as reader:
        found = dam_coefficients(reader.entries.values(), 3, DamSettings())
        assert found.keys() == reader.entries.keys()
    assert found["model.embed_tokens.weight"].shape == (3, 32)
    assert found["model.layers.0.mlp.down_proj.weight"].shape == (3, 64)
    assert found["model.norm.weight"].shape == (3, 32)
    assert all(torch.equal(one, torch.full_like(one, 1 / 3)) for one in found.values())


def test_objective_and_gradient_of_two_classes_by_hand(
    make_checkpoint: Callable[..., Path],
) -> None:
    # Weights (6 ln 3, 0) and (0, 2 ln 3), a half of each: (3 ln 3, ln 3).
    first = make_checkpoint("first", {"weight": torch.tensor([[6.5916737], [0.0]])})
    second = make_checkpoint("second", {"weight": torch.tensor([[0.0], [2.1972246]])})
    sources, model = pool_of(None, first=first, second=second), TwoClasses()
    settings = DamSettings(steps=1, lr=0.1, temperature=2.0, similarity=0.01, l1=0.25, l2=0.5)
    with CheckpointReader(first) as reader:
        coefficients = dam_coefficients(reader.entries.values(), 2, settings)
    with LearnableMerge(model, sources, coefficients, adds_to_base=False) as merge:
        merge.write()
        assert model.weight.flatten().tolist() == pytest.approx([3.2958369, 1.0986123], abs=1e-6)
        [record] = learn_dam(merge, {"first": [(1,)], "second": []}, settings, pad_id=0)
    # At T = 2 logits differ by 3 ln 3 and by ln 3: p = (27/28, 1/28), q = (3/4, 1/4).
    # KL = 27/28 ln(9/7) + 1/28 ln(1/7) = 0.1728422, times 4. Coefficients are 1/2 and 1/2.
    assert record == pytest.approx(
        {"kl/first": 0.691369, "similarity": 0.01, "l1": 0.25, "l2": 0.25, "loss": 1.201369},
        abs=1e-6,
    )
    # Of the KL: T (q_1 - p_1) = -3/7, times 6 ln 3 and -2 ln 3. Of l1 and l2: 1/4 + 1/2.
    gradient = coefficients["weight"].grad
    assert gradient is not None
    assert gradient.flatten().tolist() == pytest.approx(
        [-2.825003 + 0.75, 0.9416677 + 0.75], abs=1e-6
    )
    assert coefficients["weight"].flatten().tolist() == pytest.approx([0.6, 0.4], abs=1e-6)


def test_learning_lowers_the_divergence_from_every_source(pools: TinyVariants) -> None:
    record, coefficients = learn(pools(), DamSettings(steps=20, lr=1e-2, batch_size=6))
    assert len(record) == 20
    assert record[0].keys() == {"kl/0", "kl/1", "kl/2", "similarity", "loss"}
    for index in range(3):
        assert record[-1][f"kl/{index}"] < 0.9 * record[0][f"kl/{index}"]
    parts = [value for name, value in record[4].items() if name != "loss"]
    assert record[4]["loss"] == pytest.approx(sum(parts))
    assert any(not torch.allclose(one, one[:1]) for one in coefficients.values())


def test_merge_converges_to_the_only_source_that_teaches(
    tiny_pool: TinyPool, tmp_path: Path
) -> None:
    near, far = tiny_pool.checkpoints["math"], tmp_path / "far"
    shutil.copytree(near, far)
    flipped = {
        name: (tensor.flip(0) if tensor.dim() == 2 else tensor).contiguous()
        for name, tensor in load_file(near / "model.safetensors").items()
    }
    save_file(flipped, far / "model.safetensors", metadata={"format": "pt"})
    settings = DamSettings(steps=100, lr=2e-2, batch_size=6, similarity=0.0)
    sources = pool_of(tiny_pool.base, near=near, far=far)
    record, coefficients = learn(sources, settings, [TEXTS[0], []])
    assert record[0].keys() == {"kl/0", "loss"}
    assert record[-1]["loss"] < 0.05 * record[0]["loss"]
    sizes = torch.stack([one.mean(dim=1) for one in coefficients.values()]).mean(dim=0)
    assert sizes[0] > 0.6
    assert sizes[1] < 0.35


def test_same_seed_gives_the_same_bits_however_logits_are_kept(pools: TinyVariants) -> None:
    sources = pools("bfloat16")
    settings = DamSettings(steps=4, lr=1e-2, batch_size=4, seed=7)
    first, again = learn(sources, settings, keeps=True), learn(sources, settings, keeps=False)
    assert first[0] == again[0]
    for name, one in first[1].items():
        assert torch.equal(one, again[1][name])
    other = learn(sources, DamSettings(steps=4, lr=1e-2, batch_size=4, seed=8))
    assert other[0] != first[0]


def test_penalties_pull_coefficients_as_they_say(pools: TinyVariants) -> None:
    nobody: list[list[TokenIds]] = [[], [], []]
    begin = {"steps": 1, "lr": 1e-2, "similarity": 0.0}
    record, coefficients = learn(pools(), DamSettings(**begin, l1=0.5, l2=0.25), nobody)
    count = sum(one.numel() for one in coefficients.values())
    assert record[0]["l1"] == pytest.approx(0.5 * count / 3, rel=1e-5)
    assert record[0]["l2"] == pytest.approx(0.25 * count / 9, rel=1e-5)
    # Adam's first step is the learning rate, whatever the gradient is.
    assert all(torch.allclose(one, torch.tensor(1 / 3 - 1e-2)) for one in coefficients.values())


def test_similarity_pushes_checkpoints_apart(pools: TinyVariants) -> None:
    settings = {"steps": 10, "lr": 2e-2, "batch_size": 6}
    alike, _ = learn(pools(), DamSettings(**settings, similarity=1e-9))
    apart, _ = learn(pools(), DamSettings(**settings, similarity=0.1))
    assert apart[-1]["similarity"] / 0.1 < alike[-1]["similarity"] / 1e-9


def test_teachers_predict_what_the_checkpoints_do(pools: TinyVariants) -> None:
    sources = pools()
    draw = torch.Generator().manual_seed(0)
    batches = [make_batches(own, batch_size=4, pad_id=0, generator=draw) for own in TEXTS]
    with CheckpointReader(sources.reference.directory) as reader:
        coefficients = dam_coefficients(reader.entries.values(), 3, DamSettings())
    wanted = [(2, 1), (0, 0), (2, 0)]
    with LearnableMerge(live_model(sources), sources, coefficients, adds_to_base=False) as merge:
        found = Teachers(merge, batches).logits(wanted)
    from transformers import LlamaForCausalLM

    for (index, number), logits in zip(wanted, found, strict=True):
        alone = LlamaForCausalLM.from_pretrained(sources.checkpoints[index].directory).eval()
        with torch.no_grad():
            assert torch.equal(predict(alone, batches[index][number]), logits)
        assert len(logits) == int(batches[index][number].mask.sum())


def test_a_loss_that_is_not_finite_ends_the_learning(pools: TinyVariants) -> None:
    with pytest.raises(EvaluationError, match="lower --lr"):
        learn(pools(), DamSettings(steps=20, lr=1e30, batch_size=6))


def test_every_step_is_told_and_an_interrupt_passes(pools: TinyVariants) -> None:
    sources = pools()
    seen: list[Step] = []

    def on_step(step: Step) -> None:
        seen.append(step)
        if step.number == 2:
            raise KeyboardInterrupt

    with CheckpointReader(sources.reference.directory) as reader:
        coefficients = dam_coefficients(reader.entries.values(), 3, DamSettings())
    with (
        LearnableMerge(live_model(sources), sources, coefficients, adds_to_base=False) as merge,
        pytest.raises(KeyboardInterrupt),
    ):
        learn_dam(merge, named(TEXTS), DamSettings(steps=5), pad_id=0, on_step=on_step)
    assert [(step.number, step.total) for step in seen] == [(1, 5), (2, 5)]
    assert "kl/1" in seen[0].losses
