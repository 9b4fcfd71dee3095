"""Fixtures of the worker tests."""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedModel

from tests.conftest import TinyPool
from tests.small_models import TinyVariants, save_adapter
from tests.unit.workers.copied_pool import CopiedPool
from tests.unit.workers.grown_models import Grow, grow_model
from tests.unit.workers.lora_adapters import Make

MakeCheckpoint = Callable[..., Path]


@pytest.fixture(autouse=True)
def _own_digest_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests of test checkpoints stay out of the user's cache."""
    cache: Path = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tensors are small here: waiting for a second thread costs more than it saves."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pools(tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory) -> TinyVariants:
    """The tiny pool in a dtype, with tied or untied embeddings; not to be changed."""
    return TinyVariants(tiny_pool, tmp_path_factory.mktemp("variants"))


@pytest.fixture
def pool(tiny_pool: TinyPool, tmp_path: Path) -> CopiedPool:
    return CopiedPool(tiny_pool, tmp_path)


@pytest.fixture
def make_checkpoint(tmp_path: Path) -> MakeCheckpoint:
    """Write a checkpoint directory: one shard, or one per mapping with an index."""

    def make(
        name: str,
        *shards: Mapping[str, torch.Tensor],
        config: Mapping[str, object] | None = None,
    ) -> Path:
        directory = tmp_path / name
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
        if len(shards) == 1:
            save_file(dict(shards[0]), directory / "model.safetensors")
            return directory
        weight_map = {}
        for index, tensors in enumerate(shards, start=1):
            file_name = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
            save_file(dict(tensors), directory / file_name)
            weight_map |= dict.fromkeys(tensors, file_name)
        index_text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (directory / "model.safetensors.index.json").write_text(index_text)
        return directory

    return make


@pytest.fixture
def rewrite_header() -> Callable[[Path, Callable[[dict[str, object]], None]], None]:
    """Change the JSON header of a safetensors file and leave its data alone."""

    def rewrite(path: Path, change: Callable[[dict[str, object]], None]) -> None:
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])

    return rewrite


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def untied_base(tiny_pool: TinyPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The base of the tiny pool with an output head of its own."""
    directory = tmp_path_factory.mktemp("untied") / "base"
    model = LlamaForCausalLM.from_pretrained(tiny_pool.base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().flip(0) * 0.7)
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_pool.base).save_pretrained(directory)
    return directory


@pytest.fixture
def make_adapter(tmp_path: Path) -> Make:
    """Save a LoRA adapter with random weights that peft made for a base."""

    def make(
        base: Path,
        *,
        name: str = "adapter",
        model_class: type[PreTrainedModel] = LlamaForCausalLM,
        **config: Any,
    ) -> Path:
        return save_adapter(tmp_path / name, base, model_class=model_class, **config)

    return make


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    """Copy a model with a longer table of tokens; see ``grow_model``."""

    def grown(source: Path, *, name: str | None = None, **what: Any) -> Path:
        directory = tmp_path / (name or source.name)
        grow_model(directory, source, **what)
        return directory

    return grown
