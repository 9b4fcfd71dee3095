"""LoRA adapters that cannot be merged onto the base: each is refused, with what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    LlamaForCausalLM,
)

from configs.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from configs.schema import Models
from tests.conftest import TinyPool
from tests.unit.workers.lora_adapters import ATTENTION, Make, merged_by_us
from workers.checkpoint import CheckpointReader
from workers.lora import Adapter
from workers.sources import resolve_sources

pytestmark = pytest.mark.usefixtures("own_cache")

REFUSED = {
    "use_dora": (True, "DoRA"),
    "bias": ("all", "changes the biases"),
    "lora_bias": (True, "biases of its own"),
    "target_parameters": (["experts.down_proj"], "not the weight of a layer"),
    "trainable_token_indices": ([1, 2], "single rows"),
    "layer_replication": ([[0, 1]], "repeats layers"),
    "alora_invocation_tokens": ([1], "aLoRA"),
    "init_lora_weights": ("pissa_niter_4", "initialization changed"),
    "peft_type": ("IA3", "its peft_type is IA3"),
}


@pytest.mark.parametrize("key", REFUSED)
def test_adapter_that_changes_more_is_refused(
    tiny_pool: TinyPool, make_adapter: Make, key: str
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    value, message = REFUSED[key]
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(CheckpointError, match=message) as caught:
        merged_by_us(tiny_pool.base, adapter)
    assert str(adapter) in caught.value.message


def test_real_dora_adapter_is_refused(tiny_pool: TinyPool, make_adapter: Make) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION, use_dora=True)
    with pytest.raises(CheckpointError, match="DoRA"):
        merged_by_us(tiny_pool.base, adapter)


def test_adapter_without_a_base_is_refused(tiny_pool: TinyPool, make_adapter: Make) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    models = Models(checkpoints={"tuned": str(adapter), "code": str(tiny_pool.base)})
    with pytest.raises(
        CheckpointError, match=r"`tuned` is a LoRA adapter.*name it in models\.base"
    ):
        resolve_sources(models)
    with pytest.raises(CheckpointError, match="the base is a LoRA adapter"):
        resolve_sources(Models(base=str(adapter), checkpoints={"code": str(tiny_pool.base)}))


def test_adapter_of_another_base_is_refused_with_both_shapes(
    tiny_pool: TinyPool, make_adapter: Make, tmp_path: Path
) -> None:
    config = LlamaForCausalLM.from_pretrained(tiny_pool.base).config
    config.update({"hidden_size": 64, "num_hidden_layers": 3})
    LlamaForCausalLM(config).save_pretrained(tmp_path / "wide")
    adapter = make_adapter(tmp_path / "wide", r=2, target_modules=ATTENTION)
    with pytest.raises(CheckpointError) as caught:
        merged_by_us(tiny_pool.base, adapter)
    message = caught.value.message
    assert "is changed by (32, 2) x (2, 64), the base has (32, 32)" in message
    assert "`model.layers.2.self_attn.q_proj.weight`, which the base does not have" in message


@pytest.mark.parametrize("targets", [ATTENTION, [*ATTENTION, "embed_tokens"]])
def test_adapter_that_brings_new_tokens_is_refused_with_what_to_do(
    untied_base: Path, make_adapter: Make, tmp_path: Path, targets: list[str]
) -> None:
    longer = LlamaForCausalLM.from_pretrained(untied_base)
    longer.resize_token_embeddings(262, mean_resizing=False)
    longer.save_pretrained(tmp_path / "longer")
    whole = {} if "embed_tokens" in targets else {"modules_to_save": ["embed_tokens", "lm_head"]}
    adapter = make_adapter(tmp_path / "longer", r=2, target_modules=targets, **whole)
    with pytest.raises(CheckpointError) as caught:
        merged_by_us(untied_base, adapter)
    message = caught.value.message
    assert str(adapter) in message
    assert "It brings new tokens (262 rows, the base has 259): load the base" in message
    assert "resize_token_embeddings(262), merge the adapter into it with `peft`" in message
    assert "`models.vocabulary: pad`" in message
    assert "models.base" not in message


def test_embeddings_that_are_the_output_head_too_are_refused(
    tiny_pool: TinyPool, make_adapter: Make
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=["embed_tokens"])
    with pytest.raises(CheckpointError, match="which the base ties to it; untie the base first"):
        merged_by_us(tiny_pool.base, adapter)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda path: path.unlink(), CheckpointNotFoundError, "only safetensors are read"),
        (lambda path: path.write_bytes(b"x" * 40), CorruptCheckpointError, "damaged adapter"),
        (
            lambda path: save_file(
                {
                    k: v
                    for k, v in load_file(path).items()
                    if "layers.0.self_attn.q_proj.lora_B" not in k
                },
                path,
            ),
            CheckpointError,
            "of `model.layers.0.self_attn.q_proj` it holds only",
        ),
        (
            lambda path: save_file(
                load_file(path) | {"base_model.model.lora_x": torch.ones(2)}, path
            ),
            CheckpointError,
            "`base_model.model.lora_x` is nothing that LoRA adapters",
        ),
    ],
    ids=["missing", "damaged", "half", "unknown"],
)
def test_damaged_adapter_is_refused(
    tiny_pool: TinyPool,
    make_adapter: Make,
    change: Callable[[Path], object],
    kind: type[CheckpointError],
    message: str,
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    change(adapter / "adapter_model.safetensors")
    with pytest.raises(kind, match=message):
        merged_by_us(tiny_pool.base, adapter)


def test_rank_that_is_not_that_of_the_matrices_is_refused(
    tiny_pool: TinyPool, make_adapter: Make
) -> None:
    adapter = make_adapter(tiny_pool.base, r=2, target_modules=ATTENTION)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 4}))
    with (
        CheckpointReader(tiny_pool.base) as base,
        pytest.raises(CheckpointError, match=r"has rank 4 by adapter_config\.json"),
    ):
        Adapter(adapter, base)
