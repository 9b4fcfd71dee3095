"""Whether llama.cpp's converter can name what is in a checkpoint directory."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from configs.errors import CheckpointError
from optimizer.publish import gguf_check
from optimizer.publish.gguf_check import check_gguf

if TYPE_CHECKING:
    from transformers import PretrainedConfig

pytest.importorskip("gguf", reason="gguf is not installed")


@pytest.fixture
def exported(tiny_pool, tmp_path: Path) -> Path:
    """A tiny Llama, as exports have it."""
    directory = tmp_path / "model"
    shutil.copytree(tiny_pool.base, directory)
    return directory


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_export_of_a_known_architecture_is_ready(exported: Path) -> None:
    found = check_gguf(exported)
    assert found.is_ready
    # 2 layers of 9 tensors, the embeddings that are the head, and the last norm.
    assert (found.architecture, found.num_tensors) == ("llama", 20)
    assert found.lines[0] == "GGUF: ready, 20 tensors and the tokenizer as `llama`"
    # The converter warns of it, and goes on.
    assert found.notes == ("the tokenizer has no merges; llama.cpp may split texts in another way",)


EXPERTS = {
    **dict.fromkeys(("n_shared_experts", "num_experts_per_tok", "n_group", "topk_group"), 1),
    **dict.fromkeys(("q_lora_rank", "kv_lora_rank", "v_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "qk_rope_head_dim"), 8),
    "n_routed_experts": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 0,
}
# Class of transformers without its end, architecture of the converter's class, settings.
KINDS = [
    ("Qwen2", "qwen2", {}),
    ("Mistral", "llama", {"head_dim": 16}),
    ("Mixtral", "llama", {"num_local_experts": 2}),
    ("Gemma2", "gemma2", {"head_dim": 16, "tie_word_embeddings": True}),
    ("Gemma3", "gemma3", {"head_dim": 16, "tie_word_embeddings": True}),
    ("GPTNeoX", "gptneox", {}),
    ("GPTBigCode", "starcoder", {"n_positions": 64}),
    ("Phi", "phi2", {}),
    ("Cohere", "command-r", {"tie_word_embeddings": True}),
    ("Olmo3", "olmo2", {}),
    ("FalconMamba", "mamba", {}),
    ("Glm", "chatglm", {"head_dim": 16}),
    ("DeepseekV2", "deepseek2", EXPERTS),
    ("DeepseekV3", "deepseek2", EXPERTS),
    ("HunYuanDenseV1", "hunyuan-dense", {"head_dim": 16}),
    ("Ministral3", "mistral3", {"head_dim": 16}),
]


def config_of(kind: str, **settings: object) -> "PretrainedConfig":
    import transformers

    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    return getattr(transformers, name)(**settings)


@pytest.mark.parametrize(("kind", "architecture", "settings"), KINDS, ids=[k[0] for k in KINDS])
def test_tensors_of_other_architectures_have_names(
    exported: Path, kind: str, architecture: str, settings: dict[str, int]
) -> None:
    import transformers

    shape = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": False}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = config_of(kind, **(shape | heads | tokens | settings))
    (exported / "model.safetensors").unlink()
    getattr(transformers, f"{kind}ForCausalLM")(config).save_pretrained(exported)
    found = check_gguf(exported)
    assert (found.architecture, found.problems) == (architecture, ())
    assert found.num_tensors >= 10


def test_names_that_differ_are_needed_exist_on_both_sides_and_are_all_tried() -> None:
    from gguf.constants import MODEL_ARCH_NAMES
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    theirs = set(MODEL_ARCH_NAMES.values())
    plain = {name.replace("-", "").replace("_", "") for name in theirs}
    read_as = gguf_check._READ_AS
    assert set(read_as) <= set(CONFIG_MAPPING)
    assert set(read_as.values()) <= theirs
    assert [name for name in read_as if name.replace("_", "") in plain] == []
    tried = {config_of(kind).model_type: architecture for kind, architecture, _ in KINDS}
    assert read_as.items() <= tried.items()


def test_architecture_that_the_converter_does_not_read_is_told(exported: Path) -> None:
    from gguf.constants import MODEL_ARCH_NAMES

    change(exported / "config.json", model_type="gptj")
    found = check_gguf(exported)
    assert "gptj" in MODEL_ARCH_NAMES.values()
    assert found.architecture is None
    assert "`gptj` is none that the converter has" in str(found.problems[0])


def test_tensors_without_a_name_are_named(exported: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(exported / "model.safetensors")
    tensors["model.layers.0.self_attn.extra.weight"] = tensors["model.norm.weight"].clone()
    # The second layer is one more than the config speaks of.
    change(exported / "config.json", num_hidden_layers=1)
    save_file(tensors, exported / "model.safetensors", metadata={"format": "pt"})
    found = check_gguf(exported)
    assert not found.is_ready
    assert found.lines[0] == "GGUF: cannot be converted"
    assert "  tensors: 10 of 21 have no name in `llama`: " in found.lines[1]
    assert "`model.layers.0.self_attn.extra.weight`" in found.lines[1]
    assert found.lines[1].endswith(" and 5 more")


def test_architecture_that_gguf_does_not_have_is_told(exported: Path) -> None:
    change(exported / "config.json", model_type="own_model")
    found = check_gguf(exported)
    assert found.architecture is None
    assert str(found.problems[0]).startswith("config.json: model_type `own_model` is none")


def test_missing_tokenizer_is_told(exported: Path) -> None:
    (exported / "tokenizer.json").unlink()
    assert [problem.path for problem in check_gguf(exported).problems] == ["tokenizer.json"]


def test_token_beyond_the_table_is_told(exported: Path) -> None:
    change(exported / "config.json", vocab_size=200)
    problems = [str(problem) for problem in check_gguf(exported).problems]
    assert problems == [
        "tokenizer.json: token id 258 is beyond the 200 rows of the model (`vocab_size`)"
    ]


def test_broken_merges_are_told(exported: Path) -> None:
    content = json.loads((exported / "tokenizer.json").read_text())
    content["model"]["merges"] = [1, 2]
    (exported / "tokenizer.json").write_text(json.dumps(content))
    problems = [str(problem) for problem in check_gguf(exported).problems]
    assert problems == ["tokenizer.json: gguf cannot read it: Unknown tokenizer merges format"]


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_broken_tokenizer_is_told(exported: Path, text: str) -> None:
    (exported / "tokenizer.json").write_text(text)
    (problem,) = check_gguf(exported).problems
    assert str(problem).startswith("tokenizer.json: is no tokenizer that can be read: ")


@pytest.mark.parametrize("text", ["{", None])
def test_broken_configuration_is_an_error_of_the_checkpoint(
    exported: Path, text: str | None
) -> None:
    (exported / "config.json").unlink()
    if text is not None:
        (exported / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check_gguf(exported)


def test_record_is_json(exported: Path) -> None:
    change(exported / "config.json", vocab_size=200)
    record = json.loads(json.dumps(check_gguf(exported).record()))
    assert (record["is_ready"], record["architecture"]) == (False, "llama")
    assert record["problems"][0]["path"] == "tokenizer.json"


def test_missing_package_is_told_before_anything_is_written(monkeypatch, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from optimizer.cli.app import app

    monkeypatch.setattr(gguf_check, "find_spec", lambda _name: None)
    out = tmp_path / "model"
    done = CliRunner().invoke(app, ["export", "none.sqlite", "--out", str(out), "--check-gguf"])
    assert done.exit_code == 2
    assert "--check-gguf: needs the package gguf; `pip install 'mergefront[gguf]'`" in done.output
    assert not out.exists()
