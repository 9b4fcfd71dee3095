"""How a pool chooses between compiled and eager merging."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from configs.schema import Models
from tests.conftest import TinyPool
from tests.small_models import recipe_of
from workers import compiled, kernels, merge_backend
from workers.source_pool import SourcePool
from workers.sources import resolve_sources

# Everything is worth compiling here, and the compiler does not work.
MERGE = """
import sys, torch
from configs.recipe import Group, MergeRecipe, Source
from configs.schema import Models
from workers import compiled, kernels
from workers.digest import weights_digest
from workers.source_pool import SourcePool
from workers.sources import resolve_sources

compiled._SMALLEST_POOL = compiled._SMALLEST_CHUNK = kernels.COMPILED_WIDTH = 2
compiled.has_compiler = lambda _: True
sources = resolve_sources(Models.model_validate_json(sys.argv[1]))
recipe = MergeRecipe(
    method="dare_linear",
    base=Source(name="base", digest=sources.base.digest),
    checkpoints=tuple(Source(name=c.name, digest=c.digest) for c in sources.checkpoints),
    groups=(Group(name="all", patterns=(".*",)),),
    weights=((0.5,), (0.5,), (0.5,)), drop_ratios=((0.5,), (0.5,), (0.5,)), dtype="float32",
)

def merged(backend):
    with SourcePool(sources, backend=backend) as pool:
        for name, entry in pool.reference.entries.items():
            out = torch.empty(entry.numel)
            pool.merge(recipe, name, out)
            yield name, out

assert weights_digest(merged("auto")) == weights_digest(merged("eager"))
try:
    list(merged("compiled"))
except Exception as error:
    print("compiled:", type(error).__name__)
"""


@pytest.mark.slow
def test_auto_falls_back_to_the_eager_bits_when_the_compiler_does_not_work(
    tiny_pool: TinyPool, tmp_path: Path
) -> None:
    environment = {
        **os.environ,
        "CXX": "/bin/false",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    models = Models.model_validate(tiny_pool.models).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", MERGE, models],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "TORCH" in line or "without" in line]
    assert line.startswith("merging without a compiler from now on, which is slower: ")
    # Asked for by name, a compiler that does not work is an error.
    assert done.stdout.startswith("compiled: ")


def test_auto_compiles_when_it_is_worthwhile_for_the_whole_model(
    tiny_pool: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(
        merge_backend,
        "is_worthwhile",
        lambda total, device: bool(asked.append((total, device.type))),
    )
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    with SourcePool(sources) as pool:
        import torch

        for _ in range(2):
            assert pool._backend.choose(torch.device("cpu")) == "eager"
        total = sum(entry.numel for entry in pool.reference.entries.values())
    assert asked == [(total, "cpu")], "to look for a compiler is too slow to do it every time"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_tiles_that_are_kept_serve_every_recipe_that_may_use_them(
    tiny_pool: TinyPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Small enough for the tensors here to be compiled, and narrow.
    monkeypatch.setattr(compiled, "_SMALLEST_CHUNK", 64)
    monkeypatch.setattr(kernels, "COMPILED_WIDTH", 32)
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    name = "model.layers.0.mlp.up_proj.weight"
    recipes = [
        recipe_of(sources, weights, drop_ratios=[drop] * 3, mask_seed=seed, method=method)
        for weights, drop, seed, method in (
            ((0.5, 0.3, 0.2), 0.5, 0, "dare_linear"),
            ((0.5, 0.3, 0.2), 0.9, 0, "dare_linear"),
            ((0.5, 0.3, 0.2), 0.5, 1, "dare_linear"),
            ((0.5, 0.0, 0.2), 0.9, 0, "dare_linear"),
            ((0.5, 0.3, 0.2), 0.0, 1, "dare_linear"),
            ((0.5, 0.3, 0.2), 0.8, 0, "ties"),
            ((0.5, 0.3, 0.2), 0.6, 0, "ties"),
        )
    ]
    with (
        SourcePool(sources, backend="compiled", keeps_tiles=True) as kept,
        SourcePool(sources, backend="eager") as eager,
    ):
        out, expected = (torch.empty(eager.reference.entries[name].numel) for _ in range(2))
        for wanted in [*recipes, *recipes[::-1]]:
            eager.merge(wanted, name, expected)
            for _ in range(2):
                out.fill_(torch.nan)
                kept.merge(wanted, name, out)
                assert torch.equal(out, expected), wanted


def test_missing_compiler_is_said_once_and_only_for_large_models(
    tiny_pool: TinyPool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "has_compiler", lambda _: False)
    monkeypatch.setattr(merge_backend, "has_compiler", lambda _: False)
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    for smallest, num_lines in ((2**24, 0), (2, 1)):
        monkeypatch.setattr(merge_backend, "_WORTH_SAYING", smallest)
        with SourcePool(sources) as pool:
            chosen = {pool._backend.choose(torch.device("cpu")) for _ in range(3)}
        assert chosen == {"eager"}
        assert len(caplog.messages) == num_lines
    assert "merging without a C++ compiler (CXX, g++ or clang++), which was not" in caplog.text
