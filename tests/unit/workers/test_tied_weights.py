"""Checkpoints that store a tied tensor once, twice, or under its other name."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from configs.errors import CheckpointError
from configs.schema import Merge
from tests.conftest import TinyPool
from tests.small_models import EMBEDDINGS, HEAD, pool_of, recipe_of, small_bert
from workers.checkpoint import CheckpointReader
from workers.compat import check_compatible
from workers.digest import source_digest
from workers.materialize import Materializer
from workers.merged_checkpoint import write_checkpoint

Tensors = dict[str, torch.Tensor]


def twice(tensors: Tensors) -> None:
    tensors[HEAD] = tensors[EMBEDDINGS].clone()


def under_the_other_name(tensors: Tensors) -> None:
    tensors[HEAD] = tensors.pop(EMBEDDINGS)


@pytest.fixture
def change(tiny_pool: TinyPool, tmp_path: Path) -> Callable[..., Path]:
    """Copy a model of the tiny pool with other tensors or another config."""

    def changed(source: Path, how: Callable[[Tensors], None], **config: object) -> Path:
        directory = tmp_path / source.name
        shutil.copytree(source, directory)
        tensors = load_file(directory / "model.safetensors")
        how(tensors)
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        content = json.loads((directory / "config.json").read_text()) | config
        (directory / "config.json").write_text(
            json.dumps({key: value for key, value in content.items() if value is not None})
        )
        return directory

    return changed


@pytest.mark.parametrize("how", [twice, under_the_other_name])
def test_checkpoint_reads_the_same_however_its_tied_head_is_stored(
    tiny_pool: TinyPool, change: Callable[..., Path], how: Callable[[Tensors], None]
) -> None:
    with (
        CheckpointReader(tiny_pool.base) as plain,
        CheckpointReader(change(tiny_pool.base, how)) as other,
    ):
        assert other.entries.keys() == plain.entries.keys()
        assert HEAD not in other.entries
        assert torch.equal(other.tensor(EMBEDDINGS), plain.tensor(EMBEDDINGS))
        assert source_digest(other) == source_digest(plain)
        with pytest.raises(KeyError):
            other.tensor(HEAD)


@pytest.mark.parametrize("base_holds_both", [True, False])
def test_files_with_one_and_both_names_merge_in_place_and_to_disk(
    tiny_pool: TinyPool, change: Callable[..., Path], tmp_path: Path, base_holds_both: bool
) -> None:
    base, math, code = tiny_pool.base, tiny_pool.checkpoints["math"], tiny_pool.checkpoints["code"]
    plain = pool_of(base, math=math, code=code)
    mixed = pool_of(
        change(base, twice) if base_holds_both else base,
        math=change(math, twice) if not base_holds_both else math,
        code=change(code, under_the_other_name),
    )
    assert check_compatible(mixed, Merge()).warnings == ()
    recipe = recipe_of(mixed, [0.7, 0.4])
    assert recipe.recipe_id == recipe_of(plain, [0.7, 0.4]).recipe_id
    model = LlamaForCausalLM.from_pretrained(mixed.reference.directory)
    materializer = Materializer(mixed)
    materializer.into(model, recipe)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    digest = write_checkpoint(recipe, mixed, tmp_path / "out")
    assert digest == materializer.digest_of(model)
    assert digest == write_checkpoint(recipe, plain, tmp_path / "plain")
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(exported.lm_head.weight, model.lm_head.weight)


def test_tied_head_of_its_own_is_refused(tiny_pool: TinyPool, change: Callable[..., Path]) -> None:
    def differ(tensors: Tensors) -> None:
        tensors[HEAD] = tensors[EMBEDDINGS].clone()
        tensors[HEAD][7, 3] += 1e-6

    math = change(tiny_pool.checkpoints["math"], differ)
    with pytest.raises(CheckpointError) as caught:
        pool_of(tiny_pool.base, math=math)
    assert f"{math}: config.json ties its output head" in caught.value.message
    assert f"`{HEAD}` differs from `{EMBEDDINGS}`" in caught.value.message


def test_head_that_the_config_does_not_tie_stays(
    tiny_pool: TinyPool, change: Callable[..., Path]
) -> None:
    # Llama ties only where its config says so.
    for flag in (False, None):
        directory = change(tiny_pool.base, twice, tie_word_embeddings=flag)
        with CheckpointReader(directory) as reader:
            assert HEAD in reader.entries
        shutil.rmtree(directory)


def test_class_decides_what_is_tied_where_the_config_is_silent(tmp_path: Path) -> None:
    model = small_bert()
    model.save_pretrained(tmp_path / "bert")
    content = json.loads((tmp_path / "bert" / "config.json").read_text())
    content.pop("tie_word_embeddings", None)
    (tmp_path / "bert" / "config.json").write_text(json.dumps(content))
    # As conversions of older checkpoints hold it.
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "bert" / "model.safetensors")
    with CheckpointReader(tmp_path / "bert") as reader:
        assert reader.duplicates == {
            "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        }


def test_reading_an_untied_model_does_not_import_transformers(
    tiny_pool: TinyPool, change: Callable[..., Path]
) -> None:
    directory = change(tiny_pool.base, twice, tie_word_embeddings=False)
    program = (
        "import sys; from pathlib import Path; from workers.checkpoint import CheckpointReader\n"
        f"CheckpointReader(Path({str(directory)!r})); print('transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
