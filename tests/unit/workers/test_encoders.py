"""Encoders merge, are written, and live in a worker as decoders do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError
from configs.recipe import MergeRecipe
from configs.schema import JobConfig, Merge
from evaluators.manifest import Manifest
from tests.small_models import pool_of, recipe_of, small_bert, write_words
from workers.architecture import is_causal, model_class
from workers.compat import check_compatible
from workers.job import WorkerSpec, load_live_model
from workers.materialize import Materializer
from workers.merged_checkpoint import write_checkpoint
from workers.sources import Sources

KINDS = ("BertModel", "BertForSequenceClassification", "BertForMaskedLM")


@pytest.fixture
def encoders(tmp_path: Path) -> Callable[[str], Sources]:
    def make(kind: str) -> Sources:
        directories = {name: tmp_path / f"{kind}-{name}" for name in ("base", "news", "law")}
        for seed, directory in enumerate(directories.values()):
            small_bert(kind, seed=seed, num_hidden_layers=2).save_pretrained(directory)
            write_words(directory, 30)
        return pool_of(directories.pop("base"), **directories)

    return make


def encoder_recipe(sources: Sources) -> MergeRecipe:
    return recipe_of(sources, [0.6, 0.3], drop_ratios=[0.2, 0.0])


def worker_of(tiny_job: Callable[..., JobConfig], sources: Sources) -> WorkerSpec:
    assert sources.base is not None
    models = {
        "base": str(sources.base.directory),
        "checkpoints": {c.name: str(c.directory) for c in sources.checkpoints},
    }
    return WorkerSpec(tiny_job(models=models), sources, Manifest({}, {}))


def outputs(model: Any, text: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**text)[0]
    return result


@pytest.mark.parametrize("kind", KINDS)
def test_encoder_merges_in_a_live_model_as_on_disk(
    encoders: Callable[[str], Sources],
    tiny_job: Callable[..., JobConfig],
    tmp_path: Path,
    kind: str,
) -> None:
    sources = encoders(kind)
    check_compatible(sources, Merge())
    live = load_live_model(worker_of(tiny_job, sources), None)
    assert type(live.model).__name__ == kind
    text = live.tokenizer("1 2 3 4", return_tensors="pt")
    before = outputs(live.model, text)
    materializer = Materializer(sources)
    materializer.into(live.model, encoder_recipe(sources))
    digest = write_checkpoint(encoder_recipe(sources), sources, tmp_path / "out")
    assert digest == materializer.digest_of(live.model)
    exported = getattr(transformers, kind).from_pretrained(tmp_path / "out").eval()
    after = outputs(live.model, text)
    assert not torch.allclose(after, before, atol=1e-3)
    assert torch.equal(outputs(exported, text), after)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("1 2 3 4")["input_ids"] == text["input_ids"][0].tolist()


def test_sentence_encoder_keeps_the_buffers_that_newer_models_compute(
    encoders: Callable[[str], Sources], tiny_job: Callable[..., JobConfig], tmp_path: Path
) -> None:
    # Sentence encoders on the hub carry their position ids; transformers stopped saving them.
    for source in encoders("BertModel").everything:
        path = source.directory / "model.safetensors"
        tensors = load_file(path) | {"embeddings.position_ids": torch.arange(20)[None]}
        save_file(tensors, path, metadata={"format": "pt"})
    paths = {name: tmp_path / f"BertModel-{name}" for name in ("base", "news", "law")}
    sources = pool_of(paths.pop("base"), **paths)
    live = load_live_model(worker_of(tiny_job, sources), None)
    materializer = Materializer(sources)
    materializer.into(live.model, encoder_recipe(sources))
    digest = write_checkpoint(encoder_recipe(sources), sources, tmp_path / "out")
    assert digest == materializer.digest_of(live.model)
    assert (
        load_file(tmp_path / "out" / "model.safetensors")["embeddings.position_ids"].numel() == 20
    )
    exported = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    text = live.tokenizer(["1 2 3", "4 5 6"], return_tensors="pt")
    ours, theirs = (outputs(model, text).mean(1) for model in (live.model, exported))
    assert torch.equal(ours, theirs)


def test_class_is_that_of_the_config() -> None:
    assert model_class({"model_type": "llama"}) is transformers.AutoModelForCausalLM
    causal = {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    assert model_class(causal) is transformers.AutoModelForCausalLM
    assert is_causal(causal)
    assert model_class({"architectures": ["BertModel"]}) is transformers.BertModel
    assert not is_causal({"architectures": ["BertModel"]})
    with pytest.raises(CheckpointError, match=r"`NoSuchModel`, which transformers .* does not"):
        model_class({"architectures": ["NoSuchModel"]})


def test_search_of_encoders_for_lm_eval_is_refused_before_it_starts(
    encoders: Callable[[str], Sources], tiny_job: Callable[..., JobConfig]
) -> None:
    from optimizer.preflight.preflight import prepare

    sources = encoders("BertModel")
    with pytest.raises(
        CheckpointError, match=r"`BertModel` does not continue texts.*`tiny_text`; use .* a scorer"
    ):
        prepare(worker_of(tiny_job, sources).job)
    config = sources.everything[0].directory / "config.json"
    content = json.loads(config.read_text()) | {"architectures": ["NoSuchModel"]}
    config.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="which transformers"):
        prepare(worker_of(tiny_job, sources).job)


def test_exported_encoder_keeps_its_pooling(
    encoders: Callable[[str], Sources], tmp_path: Path
) -> None:
    sources = encoders("BertModel")
    home = sources.reference.directory
    files = {"modules.json": "[]", "1_Pooling/config.json": '{"pooling_mode_mean_tokens": true}'}
    (home / "1_Pooling").mkdir()
    for name, text in files.items():
        (home / name).write_text(text)
    write_checkpoint(recipe_of(sources, [0.6, 0.3]), sources, tmp_path / "out")
    assert {name: (tmp_path / "out" / name).read_text() for name in files} == files


def test_modules_of_a_sentence_encoder_are_exported_and_differences_are_said(
    encoders: Callable[[str], Sources], tmp_path: Path
) -> None:
    sources = encoders("BertModel")
    modules = [{"idx": 0, "path": ""}, {"idx": 1, "path": "2_Dense"}, {"idx": 2, "path": "../x"}]
    for scale, source in zip((1.0, 1.0, 2.0), sources.everything, strict=True):
        dense = source.directory / "2_Dense"
        dense.mkdir()
        (source.directory / "modules.json").write_text(json.dumps(modules))
        (dense / "config.json").write_text('{"in_features": 2}')
        (dense / "code.py").write_text("")
        save_file({"linear.weight": torch.eye(2) * scale}, dense / "model.safetensors")
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.json").write_text("{}")
    report = check_compatible(sources, Merge())
    (warning,) = [text for text in report.warnings if "2_Dense" in text]
    assert warning.startswith("`law`: its module `2_Dense` has other weights; modules are not")
    write_checkpoint(recipe_of(sources, [0.6, 0.3]), sources, tmp_path / "out")
    exported = tmp_path / "out" / "2_Dense"
    assert sorted(path.name for path in exported.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(load_file(exported / "model.safetensors")["linear.weight"], torch.eye(2))


def test_module_whose_weights_are_a_pickle_is_said(encoders: Callable[[str], Sources]) -> None:
    sources = encoders("BertModel")
    dense = sources.reference.directory / "2_Dense"
    dense.mkdir()
    (dense / "pytorch_model.bin").write_bytes(b"pickle")
    (dense.parent / "modules.json").write_text('[{"idx": 1, "path": "2_Dense"}]')
    warnings = check_compatible(sources, Merge()).warnings
    assert any("module `2_Dense` of" in text and "as a pickle" in text for text in warnings)
