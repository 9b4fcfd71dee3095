"""Models sharded over two processes: a rank merges its own slice, with the bits of the whole."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from configs.recipe import MergeRecipe
from configs.schema import Models
from tests.conftest import TinyPool
from tests.learned_merges import with_coefficients, write_learned
from tests.small_models import recipe_of
from workers.materialize import Materializer
from workers.methods import get_method
from workers.sources import Sources, resolve_sources

RANK = Path(__file__).with_name("tensor_parallel.py")
# Settings of the launcher that transformers asks for.
LAUNCHER = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}

pytestmark = pytest.mark.slow


def method_recipe(
    sources: Sources, method: str, weights: Sequence[float], **changes: Any
) -> MergeRecipe:
    drop = 0.4 if get_method(method).uses_drop_ratios else 0.0
    options = get_method(method).complete_options({})
    drops = [drop] * len(weights)
    return recipe_of(sources, weights, method=method, drop_ratios=drops, options=options, **changes)


def run_ranks(
    mode: str, directory: Path, models: Models, recipes: Sequence[MergeRecipe]
) -> list[dict[str, Any]]:
    arguments = [
        str(directory),
        models.model_dump_json(),
        json.dumps([recipe.model_dump(mode="json") for recipe in recipes]),
    ]
    root = str(Path(__file__).parents[3])
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), mode, str(rank), "2", *arguments],
            env={
                **os.environ,
                **LAUNCHER,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "PYTHONPATH": root,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    found = []
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
        found.append(json.loads(output.strip().splitlines()[-1]))
    return found


@pytest.mark.parametrize("mode", ["placed", "tp_plan"])
def test_two_ranks_gather_to_the_bits_of_the_whole_merge(
    tiny_pool: TinyPool, tmp_path: Path, mode: str
) -> None:
    models = Models.model_validate(tiny_pool.models)
    sources = resolve_sources(models)
    linear = method_recipe(sources, "linear", [0.5, 0.25, 0.25])
    learned = write_learned(tmp_path / "learned", sources)
    sources = with_coefficients(sources, learned, tmp_path / "learned")
    recipes = [
        linear,
        learned,
        method_recipe(sources, "delta_guided", [1.0, 1.0, 1.0]),
        method_recipe(sources, "dare_linear", [0.7, -0.2, 0.9]),
        method_recipe(sources, "ties", [0.7, 0.2, 0.9]),
        method_recipe(sources, "della", [0.7, 0.2, 0.9]),
        linear,
    ]
    whole = LlamaForCausalLM.from_pretrained(sources.reference.directory, dtype=torch.float32)
    materializer = Materializer(sources, backend="eager")
    expected = []
    for recipe in recipes:
        materializer.into(whole, recipe)
        expected.append(materializer.digest_of(whole))
    assert len(set(expected)) == 6
    for found in run_ranks(mode, tmp_path, models, recipes):
        assert found["digests"] == expected
        assert "model.layers.1.mlp.up_proj.weight" in found["sharded"]
        assert "model.layers.1.mlp.down_proj.weight" in found["sharded"]


def test_rank_reads_its_own_slice_of_the_checkpoints(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    shapes = {"rows.weight": (2**12, 2**12), "columns.weight": (2, 2**23)}
    directories = [
        make_checkpoint(
            name,
            {key: torch.full(shape, value, dtype=torch.bfloat16) for key, shape in shapes.items()},
        )
        for name, value in (("origin", 0.5), ("math", 0.75))
    ]
    models = Models.model_validate(
        {"base": str(directories[0]), "checkpoints": {"math": str(directories[1])}}
    )
    sources = resolve_sources(models)
    # Last what has to know whole tensors.
    methods = ("linear", "dare_linear", "ties")
    recipes = [method_recipe(sources, method, [1.0], dtype="bfloat16") for method in methods]
    total = 2 * 2 * 2**24
    # A page fault brings neighbours along, up to 2 MiB at either end of each of three runs.
    slack = 2**23 + 2**22
    for found in run_ranks("pages", tmp_path, models, recipes):
        linear, dare, ties = found["read"]
        assert linear["base"] < slack
        assert total / 2 - slack < linear["math"] < total / 2 + slack
        assert total / 2 - slack < dare["base"] < total / 2 + slack
        assert total / 2 - slack < dare["math"] < total / 2 + slack
        assert ties["math"] > total - slack
