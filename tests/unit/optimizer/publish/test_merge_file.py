import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file
from typer.testing import CliRunner

from configs.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from configs.schema import Models, ModelSource
from optimizer.cli import app as cli
from optimizer.publish.merge_file import plan_merge, write_merge
from optimizer.publish.recipe_file import read_recipe_file, spelled_as
from tests.small_models import recipe_of, save_adapter
from workers.sources import resolve_sources


def mergefront(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


@pytest.fixture
def config(tiny_pool, tmp_path) -> Path:
    """A mergekit file about the tiny pool."""
    content = {
        "merge_method": "dare_ties",
        "base_model": str(tiny_pool.base),
        "models": [
            {
                "model": str(tiny_pool.checkpoints["math"]),
                "parameters": {"weight": [{"filter": "mlp", "value": [0.2, 0.9]}, {"value": 0.5}]},
            },
            {"model": str(tiny_pool.checkpoints["code"]), "parameters": {"weight": 0.4}},
        ],
        "parameters": {"density": 0.6},
        "dtype": "float32",
    }
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_mergekit_file_becomes_a_checkpoint_that_loads(config, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    result = mergefront("merge", config, "--out", tmp_path / "merged", "--max-shard-size", "40KB")
    assert result.exit_code == 0, result.output
    digest, place = result.stdout.split()
    assert place == str(tmp_path / "merged")
    assert "L1 norm" in result.stderr
    record = json.loads((tmp_path / "merged" / "recipe.json").read_text())
    assert record["weights_digest"] == digest
    card = (tmp_path / "merged" / "README.md").read_text()
    for part in ("# merged", "dare_ties", digest, record["recipe_id"], "layers_0.mlp", "| 0.4 |"):
        assert part in card
    assert str(tmp_path) not in card
    assert len(list((tmp_path / "merged").glob("model-*.safetensors"))) > 1
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").dtype == torch.float32


def test_a_written_recipe_makes_the_same_bytes_from_anywhere(config, tmp_path, tiny_pool):
    first = write_merge(plan_merge(read_recipe_file(config)), tmp_path / "first")
    moved = shutil.copytree(tiny_pool.base.parent, tmp_path / "moved")
    record = json.loads((first.directory / "recipe.json").read_text())
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(record["recipe"]))
    for index, (path, directories) in enumerate(
        [
            (first.directory / "recipe.json", []),
            (bare, [moved]),
            (bare, [moved / "code", moved / "base", moved / "math"]),
        ]
    ):
        file = read_recipe_file(path, directories=directories)
        again = write_merge(plan_merge(file), tmp_path / f"again-{index}")
        assert again.recipe_id == first.recipe_id
        assert again.weights_digest == first.weights_digest


def test_size_is_that_of_every_file(config, tmp_path, tiny_pool):
    moved = shutil.copytree(tiny_pool.base.parent, tmp_path / "moved")
    config.write_text(config.read_text().replace(str(tiny_pool.base.parent), str(moved)))
    (moved / "base" / "1_Pooling").mkdir()
    (moved / "base" / "1_Pooling" / "config.json").write_text("{}")
    done = write_merge(plan_merge(read_recipe_file(config)), tmp_path / "out")
    written = [path for path in done.directory.rglob("*") if path.is_file()]
    assert done.directory / "1_Pooling" / "config.json" in written
    assert done.size_bytes == sum(path.stat().st_size for path in written)


def test_card_names_parents_that_are_merged_and_on_the_hub(config, tmp_path, tiny_pool):
    file = read_recipe_file(config)
    digests = {source.name: source.digest for source in file.sources.everything}
    places = {"base": "org/base@v1", "math": "s3://bucket/math", "code": "org/code"}
    spelled = {digests[name]: place for name, place in places.items()}
    one = replace(file, spelled=spelled)
    card = (write_merge(plan_merge(one), tmp_path / "one").directory / "README.md").read_text()
    assert ModelCard(card).data.base_model == ["org/base", "org/code"]
    assert "| base | `org/base` at `v1` |" in card
    weights = [
        row if checkpoint.name == "math" else tuple(0.0 for _ in row)
        for checkpoint, row in zip(file.recipe.checkpoints, file.recipe.weights, strict=True)
    ]
    recipe = file.recipe.model_copy(update={"weights": tuple(weights)})
    two = replace(file, recipe=recipe, spelled=spelled)
    card = (write_merge(plan_merge(two), tmp_path / "two").directory / "README.md").read_text()
    assert ModelCard(card).data.base_model == ["org/base"]


def test_unclear_licence_is_said(config, tmp_path):
    result = mergefront("merge", config, "--out", tmp_path / "merged", "--json")
    assert "note: No card of the merged models names a licence" in result.stderr
    said = json.loads(result.stdout)["licence_warning"]
    assert said in (tmp_path / "merged" / "README.md").read_text()


def test_a_recipe_survives_the_way_through_mergekits_language(config, tmp_path):
    first = mergefront("recipe", config)
    text = mergefront("recipe", config, "--format", "mergekit", "--out", tmp_path / "x.yml").stdout
    assert text == f"{tmp_path / 'x.yml'}\n"
    assert json.loads(mergefront("recipe", tmp_path / "x.yml").stdout) == json.loads(first.stdout)
    refused = mergefront("recipe", config, "--out", tmp_path / "x.yml")
    assert refused.exit_code == 2
    assert "already exists" in refused.stderr


def test_a_dry_run_says_what_would_be_read_and_written_and_writes_nothing(
    config, tmp_path, tiny_pool
):
    result = mergefront("merge", config, "--out", tmp_path / "merged", "--dry-run")
    assert result.exit_code == 0, result.output
    text = result.stdout
    for part in ("dare_ties", "layers_0.mlp", str(tiny_pool.base), str(tmp_path / "merged")):
        assert part in text
    record = json.loads(
        mergefront("merge", config, "--out", tmp_path / "m", "--dry-run", "--json").stdout
    )
    elements = sum(t.numel() for t in load_file(tiny_pool.base / "model.safetensors").values())
    assert record["bytes_written"] == 4 * elements
    assert record["bytes_read"] == 3 * 4 * elements
    assert sorted(record["reads"]) == sorted(
        str(path) for path in (tiny_pool.base, *map(tiny_pool.checkpoints.get, ("math", "code")))
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yml"]


def test_another_dtype_is_another_recipe(config, tmp_path):
    plan = plan_merge(read_recipe_file(config, dtype="bfloat16"))
    done = write_merge(plan, tmp_path / "merged")
    assert done.recipe_id != read_recipe_file(config).recipe.recipe_id
    tensors = load_file(done.directory / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert json.loads((done.directory / "config.json").read_text())["dtype"] == "bfloat16"


def test_nothing_is_left_where_the_weights_are_not_the_recorded_ones(config, tmp_path):
    first = write_merge(plan_merge(read_recipe_file(config)), tmp_path / "first")
    record = json.loads((first.directory / "recipe.json").read_text())
    (tmp_path / "other.json").write_text(json.dumps(record | {"weights_digest": "0" * 32}))
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"records 0{32}; nothing was written"):
        write_merge(plan_merge(read_recipe_file(tmp_path / "other.json")), tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_all_models_that_are_not_found_are_named(config, tmp_path, tiny_pool):
    record = read_recipe_file(config).recipe.model_dump(mode="json")
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(record))
    with pytest.raises(CheckpointNotFoundError) as caught:
        read_recipe_file(path, directories=[tiny_pool.checkpoints["instruct"], tiny_pool.base])
    message = caught.value.message
    assert "2 of 3 models of the recipe were not found" in message
    assert "`math` with digest" in message
    assert "`code` with digest" in message
    assert "instruct: has digest" in message
    with pytest.raises(CheckpointNotFoundError, match="no such directory"):
        read_recipe_file(path, directories=[tmp_path / "nowhere"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "not valid JSON"),
        ("x.json", "{}", "holds no recipe"),
        ("x.json", '{"recipe": {"method": "linear"}}', "recipe.checkpoints: Field required"),
        ("x.yml", "models: [", "not valid YAML"),
        ("x.yml", "- a", "a mergekit configuration is a mapping"),
        ("x.yml", "merge_method: frankenmerge", "there is no `frankenmerge` here"),
    ],
)
def test_a_file_that_is_no_merge_is_refused(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_recipe_file(tmp_path / name)
    assert message in caught.value.message


def test_a_missing_file_is_named(tmp_path):
    result = mergefront("merge", tmp_path / "nowhere.yml", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "nowhere.yml: no such file" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--dtype", "int4"), "--dtype: must be float32"),
        (("--max-shard-size", "big"), "expected a size"),
        (("--source", "."), "names its models itself"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, message, config, tmp_path):
    result = mergefront("merge", config, "--out", tmp_path / "merged", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_target_in_use_is_refused_before_anything_is_read(config, tmp_path):
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "precious").touch()
    config.write_text("not read")
    result = mergefront("merge", config, "--out", tmp_path / "merged")
    assert result.exit_code == 3
    assert "already exists" in result.stderr


@pytest.mark.parametrize("base_first", [True, False])
def test_adapter_of_a_recipe_is_merged_onto_the_base_that_is_found(
    tiny_pool, tmp_path, monkeypatch, base_first
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    adapter = save_adapter(tmp_path / "tuned", tiny_pool.base, r=2)
    pool = Models(base=str(tiny_pool.base), checkpoints={"tuned": str(adapter)})
    recipe = recipe_of(resolve_sources(pool), [0.5], method="task_arithmetic")
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json())
    places = [tiny_pool.base, adapter] if base_first else [adapter, tiny_pool.base]
    found = read_recipe_file(path, directories=places)
    assert found.recipe == recipe
    merged = found.spelled[recipe.checkpoints[0].digest]
    assert (Path(merged) / "model.safetensors").is_file()
    with pytest.raises(CheckpointNotFoundError, match="LoRA adapter, and the base of the recipe"):
        read_recipe_file(path, directories=[adapter])
    # An id on the hub is an adapter to others, too, so they get the directory.
    named = spelled_as(ModelSource(path="org/tuned"), found.sources.checkpoints[0])
    assert named == merged
