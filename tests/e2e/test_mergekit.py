"""mergekit itself beside mergefront: the same files, the same merges.

``MERGEFRONT_MERGEKIT`` is the path of ``mergekit-yaml`` in a virtual environment of its own, where
``pip install mergekit==0.1.5`` was run.
``MERGEFRONT_ZOO`` is a directory with the checkpoints of ``scripts/make_zoo.py``; where there is
none, the tiny pool of random weights is merged.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.slow

MERGEKIT = "MERGEFRONT_MERGEKIT"
ZOO = "MERGEFRONT_ZOO"
GRADIENT = [
    {"filter": "self_attn", "value": [0.2, 0.9]},
    {"filter": "mlp", "value": [0.8, 0.1, 0.5]},
    {"value": 0.6},
]


@pytest.fixture(scope="module")
def mergekit():
    """Runs ``mergekit-yaml`` on a configuration; returns the merged tensors."""
    program = os.environ.get(MERGEKIT)
    if not program:
        pytest.skip(f"{MERGEKIT} is not set: no mergekit-yaml to compare with")
    if not Path(program).is_file():
        pytest.fail(f"{MERGEKIT}={program}: no such file")

    def run(config: Path, out: Path) -> dict[str, torch.Tensor]:
        environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            [program, str(config), str(out), "--quiet"],
            env=environment, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return load_file(out / "model.safetensors")

    return run


@pytest.fixture(scope="module")
def pool(tiny_pool) -> dict[str, str]:
    """Name -> directory of a base and three checkpoints."""
    zoo = Path(os.environ.get(ZOO) or Path(__file__).parents[2] / "runs" / "zoo")
    if (zoo / "base" / "config.json").is_file():
        return {name: str(zoo / name) for name in ("base", "instruct", "code", "math")}
    return {"base": str(tiny_pool.base)} | {n: str(p) for n, p in tiny_pool.checkpoints.items()}


def of_models(
    method: str, pool: Mapping[str, str], own: Mapping[str, object], **more: object
) -> dict[str, object]:
    """A configuration; sums are in float32 and rounded once, as ours are."""
    models = [{"model": pool[name], "parameters": given} for name, given in own.items()]
    common = {"dtype": "float32", "out_dtype": "bfloat16"}
    return {"merge_method": method, "models": models, **common, **more}


def ours(mergefront, config: Path, out: str) -> dict[str, torch.Tensor]:
    mergefront.succeed("merge", str(config), "--out", out)
    return load_file(mergefront.directory / out / "model.safetensors")


def steps(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """How many bfloat16 values lie between two tensors, element by element."""
    assert left.dtype == right.dtype == torch.bfloat16

    def ordered(tensor: torch.Tensor) -> torch.Tensor:
        bits = tensor.view(torch.int16).to(torch.int32)
        return torch.where(bits < 0, -(bits & 0x7FFF), bits)

    return (ordered(left) - ordered(right)).abs()


def largest_difference(here, there) -> int:
    assert here.keys() == there.keys()
    counts = torch.cat([steps(here[name], there[name]).flatten() for name in here])
    print({int(n): int((counts == n).sum()) for n in counts.unique()})
    return int(counts.max())


CASES = {
    "linear": lambda pool: of_models(
        "linear", pool, {"instruct": {"weight": 1.0}, "code": {"weight": 0.5},
                         "math": {"weight": GRADIENT}},
    ),
    "task_arithmetic": lambda pool: of_models(
        "task_arithmetic", pool, {"instruct": {"weight": 0.4}, "code": {"weight": -0.2},
                                  "math": {"weight": GRADIENT}},
        base_model=pool["base"], parameters={"lambda": 0.9},
    ),
    "ties": lambda pool: of_models(
        "ties", pool, {"instruct": {"weight": 0.7, "density": 0.5},
                       "code": {"weight": 0.3, "density": 0.7},
                       "math": {"weight": GRADIENT, "density": 1.0}},
        base_model=pool["base"], parameters={"lambda": 1.1, "int8_mask": True},
    ),
    "slerp": lambda pool: of_models(
        "slerp", pool, {"code": {}, "math": {}},
        base_model=pool["code"], parameters={"t": GRADIENT},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_merge_equals_mergekits_within_one_bfloat16_step(mergekit, mergefront, pool, case):
    config = mergefront.directory / "config.yml"
    config.write_text(yaml.safe_dump(CASES[case](pool)))
    theirs = mergekit(config, mergefront.directory / "theirs")
    assert largest_difference(ours(mergefront, config, "ours"), theirs) <= 1


def test_trimming_bfloat16_models_differs_only_in_which_of_equal_magnitudes_are_kept(
    mergekit, mergefront, pool
):
    """Differences of bfloat16 tensors often have equal magnitudes; mergekit keeps any of them."""
    narrow = {}
    for name, directory in pool.items():
        copy = Path(shutil.copytree(directory, mergefront.directory / name))
        tensors = load_file(copy / "model.safetensors")
        rounded = {key: tensor.bfloat16() for key, tensor in tensors.items()}
        save_file(rounded, copy / "model.safetensors", metadata={"format": "pt"})
        narrow[name] = str(copy)
    content = CASES["ties"](narrow)
    config = mergefront.directory / "config.yml"
    config.write_text(yaml.safe_dump(content))
    here, there = (
        ours(mergefront, config, "ours"),
        mergekit(config, mergefront.directory / "theirs"),
    )
    base = load_file(Path(narrow["base"]) / "model.safetensors")
    tied = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in base.items()}
    for entry in content["models"]:
        density = entry["parameters"]["density"]
        tuned = load_file(Path(entry["model"]) / "model.safetensors")
        for name, origin in base.items():
            if density < 1:
                sizes = (tuned[name].float() - origin.float()).abs()
                kept = int(density * sizes.numel())
                tied[name] |= sizes == sizes.flatten().sort(descending=True).values[kept - 1]
    for name, where in tied.items():
        assert (steps(here[name], there[name])[~where] <= 1).all()


def test_mergekit_reads_an_exported_recipe_as_the_same_merge(mergekit, mergefront, pool):
    count = json.loads((Path(pool["base"]) / "config.json").read_text())["num_hidden_layers"]
    layers = {"layer_range": [0, 1]}, {"layer_range": [1, count]}
    weights = {"instruct": (0.5, 0.3), "math": (0.25, [0.1, 0.7])}
    config = mergefront.directory / "config.yml"
    content = {
        "merge_method": "ties",
        "base_model": pool["base"],
        "slices": [
            {
                "sources": [
                    {"model": pool["base"], **part},
                    *(
                        {"model": pool[name], **part,
                         "parameters": {"weight": pair[index], "density": 0.4}}
                        for name, pair in weights.items()
                    ),
                ]
            }
            for index, part in enumerate(layers)
        ],
        "dtype": "float32",
        "out_dtype": "bfloat16",
    }  # fmt: skip
    config.write_text(yaml.safe_dump(content))
    here = ours(mergefront, config, "ours")
    assert largest_difference(here, mergekit(config, mergefront.directory / "theirs")) <= 1
    exported = mergefront.directory / "exported.yml"
    mergefront.succeed("recipe", "ours/recipe.json", "--format", "mergekit", "--out", str(exported))
    again = mergekit(exported, mergefront.directory / "again")
    assert largest_difference(here, again) <= 1
