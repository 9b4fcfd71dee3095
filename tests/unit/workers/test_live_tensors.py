"""Models whose live tensors have other names than their checkpoints, or hold several of them."""

import copy
import re
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import conversion_mapping
from transformers.core_model_loading import WeightConverter

from configs.errors import CheckpointError, IncompatibleCheckpointsError
from tests.small_models import pool_of, recipe_of
from workers.checkpoint import CheckpointReader
from workers.learning.merged_model import LearnableMerge
from workers.live_tensors import live_tensors
from workers.materialize import Materializer
from workers.merged_checkpoint import write_checkpoint
from workers.sources import Sources

SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 8,
}
EXPERTS = {"moe_intermediate_size": 12, "decoder_sparse_step": 1}
RENAMED = {
    "GPTNeoX": ({}, "embed_out.weight"),
    "Mixtral": ({"num_local_experts": 11}, "model.layers.0.block_sparse_moe.experts.10.w3.weight"),
    "Qwen3Moe": ({"num_experts": 3, **EXPERTS}, "model.layers.0.mlp.experts.2.up_proj.weight"),
    "Olmoe": ({"num_experts": 3}, "model.layers.0.mlp.experts.2.down_proj.weight"),
}


def live(kind: str, directory: Path, **options: object):
    return getattr(transformers, f"{kind}ForCausalLM").from_pretrained(directory, **options)


def saved_pool(kind: str, directory: Path) -> Sources:
    """Save a base and a tuned model of one architecture with random weights."""
    for name in ("base", "tuned"):
        config = getattr(transformers, f"{kind}Config")(**SIZES, **RENAMED[kind][0])
        getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(directory / name)
    return pool_of(directory / "base", tuned=directory / "tuned")


@pytest.mark.parametrize("kind", RENAMED)
def test_merge_in_place_is_what_is_exported_and_loaded(kind: str, tmp_path: Path) -> None:
    sources = saved_pool(kind, tmp_path)
    assert RENAMED[kind][1] in load_file(tmp_path / "base" / "model.safetensors")
    model, materializer = live(kind, tmp_path / "base"), Materializer(sources)
    for weight in (0.5, 0.25):
        recipe = recipe_of(sources, [weight], drop_ratios=[0.5])
        materializer.into(model, recipe)
        out = tmp_path / f"merged-{weight}"
        assert write_checkpoint(recipe, sources, out, extra_files={}) == materializer.digest_of(
            model
        )
        loaded = live(kind, out).state_dict()
        assert loaded.keys() == model.state_dict().keys()
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("kind", ["Llama", "Mixtral"])
def test_checkpoints_without_the_prefix_of_the_model_are_merged_into_it(
    kind: str, tmp_path: Path
) -> None:
    """Saved without a head, as ``layers.0...``; the live model has one, tied to the embedding."""
    for name in ("base", "tuned"):
        config = getattr(transformers, f"{kind}Config")(**SIZES, tie_word_embeddings=True)
        getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path / name)
    assert "norm.weight" in load_file(tmp_path / "base" / "model.safetensors")
    sources = pool_of(tmp_path / "base", tuned=tmp_path / "tuned")
    model, materializer = live(kind, tmp_path / "base"), Materializer(sources)
    recipe = recipe_of(sources, [0.5])
    materializer.into(model, recipe)
    digest = write_checkpoint(recipe, sources, tmp_path / "merged", extra_files={})
    assert digest == materializer.digest_of(model)
    loaded = live(kind, tmp_path / "merged").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_checkpoints_with_a_prefix_are_merged_into_the_model_without_a_head(
    tmp_path: Path,
) -> None:
    for name in ("base", "tuned"):
        config = transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    sources = pool_of(tmp_path / "base", tuned=tmp_path / "tuned")
    model = transformers.LlamaModel.from_pretrained(tmp_path / "base")
    recipe = recipe_of(sources, [0.5])
    Materializer(sources).into(model, recipe)
    write_checkpoint(recipe, sources, tmp_path / "merged", extra_files={})
    loaded = transformers.LlamaModel.from_pretrained(tmp_path / "merged").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_experts_of_a_wider_live_model_are_written_in_their_places(tmp_path: Path) -> None:
    sources = saved_pool("Mixtral", tmp_path)
    model, materializer = live("Mixtral", tmp_path / "base"), Materializer(sources)
    recipe = recipe_of(sources, [0.5], dtype="bfloat16")
    materializer.into(model, recipe)
    digest = write_checkpoint(recipe, sources, tmp_path / "merged", extra_files={})
    assert digest == materializer.digest_of(model)


def test_model_with_the_causal_masks_of_older_versions_merges_and_exports(tmp_path: Path) -> None:
    saved_pool("GPTNeoX", tmp_path)
    name = "gpt_neox.layers.0.attention.bias"
    mask = torch.ones(1, 1, 8, 8).tril().to(torch.uint8)
    for directory in ("base", "tuned"):
        weights = tmp_path / directory / "model.safetensors"
        save_file({**load_file(weights), name: mask}, weights, metadata={"format": "pt"})
    sources = pool_of(tmp_path / "base", tuned=tmp_path / "tuned")
    model, materializer = live("GPTNeoX", tmp_path / "base"), Materializer(sources)
    recipe = recipe_of(sources, [0.5])
    materializer.into(model, recipe)
    digest = write_checkpoint(recipe, sources, tmp_path / "merged", extra_files={})
    assert digest == materializer.digest_of(model)
    assert torch.equal(load_file(tmp_path / "merged" / "model.safetensors")[name], mask)


def test_experts_that_are_put_together_otherwise_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources, real = saved_pool("Mixtral", tmp_path), conversion_mapping.get_model_conversion_mapping

    def joined_before_stacked(model: transformers.PreTrainedModel) -> list[object]:
        transforms = copy.deepcopy(real(model))
        for each in transforms:
            if isinstance(each, WeightConverter):
                each.operations = each.operations[::-1]
        return transforms

    model = live("Mixtral", tmp_path / "base")
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", joined_before_stacked)
    with pytest.raises(IncompatibleCheckpointsError, match=r"experts\.0\.w1\.weight"):
        Materializer(sources).into(model, recipe_of(sources, [0.5]))


@pytest.mark.parametrize("gone", [r"experts\.10\.w3", r"experts\.10\.", r"experts\.\d+\.w3"])
def test_experts_that_are_not_all_there_are_refused(gone: str, tmp_path: Path) -> None:
    saved_pool("Mixtral", tmp_path)
    for directory in ("base", "tuned"):
        weights = tmp_path / directory / "model.safetensors"
        tensors = load_file(weights)
        kept = {name: tensor for name, tensor in tensors.items() if not re.search(gone, name)}
        assert len(kept) < len(tensors)
        save_file(kept, weights, metadata={"format": "pt"})
    sources = pool_of(tmp_path / "base", tuned=tmp_path / "tuned")
    config = transformers.MixtralConfig(**SIZES, **RENAMED["Mixtral"][0])
    model = transformers.MixtralForCausalLM(config)
    with pytest.raises(IncompatibleCheckpointsError, match=r"experts\.0\.w1\.weight"):
        Materializer(sources).into(model, recipe_of(sources, [0.5]))


def test_learning_refuses_slices(tmp_path: Path) -> None:
    sources = saved_pool("Mixtral", tmp_path)
    model = live("Mixtral", tmp_path / "base")
    with CheckpointReader(tmp_path / "base") as reader:
        found = live_tensors(model, reader.entries)
        assert found.keys() == reader.entries.keys()
        leaves = {
            name: torch.zeros(1, 1, requires_grad=True)
            for name, entry in reader.entries.items()
            if entry.is_floating
        }
    with pytest.raises(CheckpointError, match="slices of larger ones"):
        LearnableMerge(model, sources, leaves, adds_to_base=True)
