"""How much memory a merge into a live model takes beyond the model, watched in a process."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.schema import Models
from tests.small_models import recipe_of
from workers.methods import get_method
from workers.sources import resolve_sources

INTO = """
import sys, torch
from torch import nn
from configs.recipe import MergeRecipe
from configs.schema import Models
from configs.worker_settings import Residency
from scripts.bench.export import AnonPeak
from workers.materialize import Materializer
from workers.sources import resolve_sources

torch.set_num_threads(1)
sources = resolve_sources(Models.model_validate_json(sys.argv[1]))
recipe = MergeRecipe.model_validate_json(sys.argv[2])
dtype = getattr(torch, sys.argv[3])
model = nn.ParameterDict({"t": nn.Parameter(torch.ones(10_000, 4_000, dtype=dtype))})
materializer = Materializer(sources, backend="eager")
with AnonPeak() as peak:
    materializer.into(model, recipe)
print(peak.grown_mib)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "dtype", "most_mib"),
    [
        ("dare_linear", "bfloat16", 16),
        ("dare_linear", "float32", 32 + 16),
        ("della", "bfloat16", 64),
    ],
    ids=["same", "wider", "ranked"],
)
def test_into_takes_little_memory_beyond_the_model(
    make_checkpoint: Callable[..., Path], method: str, dtype: str, most_mib: int
) -> None:
    draw = torch.Generator().manual_seed(0)
    directories = [
        make_checkpoint(
            name, {"t": torch.empty(10_000, 4_000, dtype=torch.bfloat16).normal_(generator=draw)}
        )
        for name in ("origin", "math")
    ]
    models = Models(base=str(directories[0]), checkpoints={"math": str(directories[1])})
    recipe = recipe_of(
        resolve_sources(models),
        [0.5],
        drop_ratios=[0.5],
        dtype="bfloat16",
        method=method,
        options=get_method(method).complete_options({}),
    )
    done = subprocess.run(
        [sys.executable, "-c", INTO, models.model_dump_json(), recipe.model_dump_json(), dtype],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The tensor has 76 MiB in half precision; the watch sees at least a temporary.
    assert float(done.stdout) < most_mib
