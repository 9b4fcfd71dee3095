"""Merges with a number per column: live, in blocks, exported; and files that do not fit."""

import contextlib
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError, ConfigError, CorruptCheckpointError
from configs.recipe import Group, Source
from tests.learned_merges import drawn_coefficients, with_coefficients, write_learned
from tests.small_models import live_model, recipe_of
from workers import column_coefficients
from workers.block import Block
from workers.checkpoint import CheckpointReader
from workers.column_coefficients import (
    CoefficientFile,
    Wanted,
    check_coefficients,
    recall_coefficients,
    resolve_coefficients,
)
from workers.materialize import Materializer
from workers.merged_checkpoint import write_checkpoint
from workers.projection import project_weights
from workers.residency import TensorStore
from workers.source_pool import SourcePool
from workers.sources import ResolvedSource, Sources

MATRIX = "model.layers.1.mlp.down_proj.weight"  # (32, 64)
VECTOR = "model.norm.weight"


@pytest.fixture
def learned(pools: Callable[..., Sources], tmp_path: Path):
    """Pool and recipe of a learned merge in a dtype."""

    def make(dtype: str = "float32", **recipe: object):
        sources = pools(dtype)
        directory = tmp_path / f"learned-{dtype}"
        found = write_learned(directory, sources, dtype=dtype, **recipe)
        return with_coefficients(sources, found, directory), found

    return make


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scored_bits_are_the_formula_and_exported_bits(learned, tmp_path: Path, dtype: str) -> None:
    sources, recipe = learned(dtype)
    model, materializer = live_model(sources, dtype), Materializer(sources)
    materializer.into(model, recipe_of(sources, [0.3] * 3, dtype=dtype))
    materializer.into(model, recipe)
    digest = materializer.digest_of(model)
    numbers = load_file(sources.coefficients[0].directory / "coefficients.safetensors")
    readers = [CheckpointReader(source.directory) for source in sources.checkpoints]
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        expected = torch.zeros(tensor.shape)
        for index, reader in enumerate(readers):
            expected = expected + reader.tensor(name).float() * numbers[f"{index}.{name}"]
        assert torch.equal(tensor, expected.to(tensor.dtype)), name
    shards = {"max_shard_bytes": 20_000}
    assert write_checkpoint(recipe, sources, tmp_path / "out", extra_files={}, **shards) == digest
    # What follows is not merged by what was prepared for it.
    materializer.into(model, recipe_of(sources, [0.0, 0.0, 0.0], dtype=dtype))
    assert materializer.digest_of(model) != digest


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("placement", ["mapped", "streamed"])
def test_a_block_gets_the_bits_of_the_whole(learned, backend: str, placement: str) -> None:
    sources, recipe = learned()
    blocks = [Block(0, 100), Block(77, 500), Block(40, 24, 32, 64), Block(64 * 5, 640), Block(9, 1)]
    with SourcePool(sources, backend=backend) as pool:
        whole = torch.empty(32 * 64)
        pool.merge(recipe, MATRIX, whole)
        pool.store = TensorStore(placement)
        for block in blocks:
            out = torch.full((block.numel,), torch.nan)
            pool.merge(recipe, MATRIX, out, block)
            assert torch.equal(block.shape_like(out), block.of(whole)), block


def test_groups_have_weights_of_their_own_besides(learned) -> None:
    groups = (
        Group(name="mlp", patterns=(r".*mlp.*",)),
        Group(name="rest", patterns=(r"(?!.*mlp).*",)),
    )
    sources, recipe = learned(groups=groups, weights=[(1.0, 0.5), (1.0, 0.0), (1.0, 0.0)])
    out = torch.empty(32)
    with SourcePool(sources) as pool, CheckpointReader(sources.checkpoints[0].directory) as reader:
        pool.merge(recipe, VECTOR, out)
        numbers = load_file(sources.coefficients[0].directory / "coefficients.safetensors")
        assert torch.equal(out, reader.tensor(VECTOR) * (numbers[f"0.{VECTOR}"] * 0.5))


def test_recipe_id_depends_on_the_numbers_and_not_on_their_name(learned) -> None:
    sources, recipe = learned()
    assert recipe.coefficients is not None
    renamed = recipe.coefficients.model_copy(update={"name": "other"})
    other = Source(name="learned", digest="0" * 64)
    assert recipe.model_copy(update={"coefficients": renamed}).recipe_id == recipe.recipe_id
    assert recipe.model_copy(update={"coefficients": other}).recipe_id != recipe.recipe_id
    # Recipes without them are written as before, in archives too.
    plain = recipe_of(sources, [1.0] * 3)
    assert "coefficients" not in plain.canonical_json()
    assert "coefficients" not in plain.model_dump(mode="json")


def test_method_and_coefficients_go_together(learned) -> None:
    sources, recipe = learned()
    model = live_model(sources)
    for changed, message in (
        ({"coefficients": None}, "`dam` needs one coefficient per input column"),
        ({"method": "linear"}, "`linear` takes none; remove them"),
    ):
        with pytest.raises(ConfigError, match=message):
            Materializer(sources).into(model, recipe.model_copy(update=changed))


def test_coefficients_that_were_not_given_are_missed(learned) -> None:
    sources, recipe = learned()
    with pytest.raises(CheckpointError, match="needs the coefficients `learned` with digest"):
        Materializer(Sources(sources.base, sources.checkpoints)).into(live_model(sources), recipe)


def spoil(tensors: dict[str, torch.Tensor]) -> None:
    """One file with every fault."""
    del tensors[f"2.{VECTOR}"]
    tensors[f"0.{MATRIX}"] = torch.ones(32)
    tensors[f"1.{VECTOR}"] = tensors[f"1.{VECTOR}"].half()
    tensors[f"1.{MATRIX}"][7] = torch.nan
    tensors[f"2.{MATRIX}"][:2] = -torch.inf
    tensors[f"3.{VECTOR}"] = torch.ones(32)


def test_every_fault_of_a_file_is_named_at_once(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    sources = pools()
    recipe = write_learned(tmp_path / "bad", sources, change=spoil)
    given = with_coefficients(sources, recipe, tmp_path / "bad")
    with pytest.raises(CorruptCheckpointError) as caught:
        check_coefficients(recipe, given)
    assert sorted(str(problem) for problem in caught.value.context["problems"]) == [
        f"0.{MATRIX}: expected shape (64,), found (32,)",
        f"1.{MATRIX}: holds NaN or infinity in 1 of 64 columns",
        f"1.{VECTOR}: expected float32, found float16",
        f"2.{MATRIX}: holds NaN or infinity in 2 of 64 columns",
        f"2.{VECTOR}: is missing; expected float32 of shape (32,)",
        f"3.{VECTOR}: belongs to no floating tensor of the 3 checkpoints",
    ]
    # A worker that was given it nevertheless merges nothing.
    with pytest.raises(CorruptCheckpointError, match="learn them again"):
        Materializer(given).into(live_model(sources), recipe)


def test_file_that_is_cut_gone_or_another_one_is_refused(learned, tmp_path: Path) -> None:
    sources, recipe = learned()
    path = tmp_path / "learned-float32" / "coefficients.safetensors"
    assert recipe.coefficients is not None
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(CorruptCheckpointError, match="header promises"):
        resolve_coefficients(recipe.coefficients, path)
    tensors = drawn_coefficients(sources, seed=1)
    save_file(tensors, path)
    with pytest.raises(CorruptCheckpointError, match="its coefficients have digest"):
        resolve_coefficients(recipe.coefficients, path)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        resolve_coefficients(recipe.coefficients, path)
    # What was kept is there still, until it changes or goes.
    kept = recall_coefficients(recipe.coefficients).directory / path.name
    save_file(tensors, kept)
    with pytest.raises(CorruptCheckpointError, match="has changed"):
        recall_coefficients(recipe.coefficients)
    kept.unlink()
    with pytest.raises(CheckpointError, match="are not on this machine"):
        recall_coefficients(recipe.coefficients)


def test_machines_that_share_a_cache_keep_the_same_file(
    learned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, recipe = learned()
    path = tmp_path / "learned-float32" / "coefficients.safetensors"
    assert recipe.coefficients is not None
    shutil.rmtree(recall_coefficients(recipe.coefficients).directory)
    # Locks of one machine say nothing to another.
    monkeypatch.setattr(column_coefficients, "machine_lock", lambda _: contextlib.nullcontext())
    both_copied = threading.Barrier(2)
    copy = shutil.copyfile

    def side_by_side(source: Path, target: Path) -> None:
        copy(source, target)
        both_copied.wait(timeout=30)

    monkeypatch.setattr(column_coefficients.shutil, "copyfile", side_by_side)
    found: list[ResolvedSource] = []

    def machine() -> None:
        found.append(resolve_coefficients(recipe.coefficients, path))

    threads = [threading.Thread(target=machine) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2
    kept = recall_coefficients(recipe.coefficients).directory
    assert [file.name for file in kept.iterdir()] == [path.name]


def test_file_of_another_number_of_checkpoints_does_not_fit(learned) -> None:
    sources, _ = learned()
    file = CoefficientFile(sources.coefficients[0].directory / "coefficients.safetensors")
    with CheckpointReader(sources.reference.directory) as reader:
        file.check(Wanted(3, reader.entries))
        with pytest.raises(CorruptCheckpointError, match="belongs to no floating tensor of the 2"):
            file.check(Wanted(2, reader.entries))


def test_projection_weighs_columns_by_their_squared_norms(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from tests.small_models import pool_of

    first = {"w.weight": torch.tensor([[3.0, 0.0, 1.0], [4.0, 2.0, 0.0]]), "b": torch.zeros(2)}
    second = {"w.weight": torch.ones(2, 3), "b": torch.tensor([1.0, 3.0])}
    sources = pool_of(None, a=make_checkpoint("a", first), c=make_checkpoint("c", second))
    numbers = {
        "0.w.weight": torch.tensor([1.0, 0.5, 0.0]),
        "1.w.weight": torch.tensor([0.0, 0.25, 0.5]),
        "0.b": torch.tensor([0.25, 0.75]),
        "1.b": torch.tensor([1.0, 0.0]),
    }
    recipe = write_learned(tmp_path / "l", sources, numbers, weights=[1.0, 2.0])
    pool = with_coefficients(sources, recipe, tmp_path / "l")
    groups = [Group(name="w", patterns=("w.*",)), Group(name="b", patterns=("b",))]
    found = project_weights(recipe, pool, groups)
    # Columns of the first: 25, 4, 1. Its vector is zero, where all columns count alike.
    assert found[0] == pytest.approx((27 / 30, 0.5), abs=1e-6)
    # Of the second: 2, 2, 2, and 1, 9; each weighted by 2.
    assert found[1] == pytest.approx((0.5, 0.2), abs=1e-6)
    together = project_weights(recipe, pool, [Group(name="all", patterns=(".*",))])
    assert together[0] == pytest.approx((27 / 30,), abs=1e-6)
    assert together[1] == pytest.approx((2 * (1.5 + 1) / 16,), abs=1e-6)
