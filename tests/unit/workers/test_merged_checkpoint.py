"""From a recipe to a checkpoint directory: the bits of the live model, in bounded memory."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from configs.errors import CheckpointError
from configs.recipe import Source
from configs.schema import Models
from scripts.bench.export import AnonPeak
from tests.conftest import TinyPool
from tests.small_models import live_model, pool_of, recipe_of, saved_tensors
from workers import merged_checkpoint, part_stream, residency, source_pool
from workers.checkpoint import CheckpointReader
from workers.digest import weights_digest
from workers.materialize import Materializer
from workers.merged_checkpoint import write_checkpoint
from workers.methods import get_method
from workers.residency import Memory
from workers.sources import Sources, resolve_sources


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_exported_bits_are_the_bits_in_the_live_model(
    pools: Callable[..., Sources], tmp_path: Path, dtype: str, tied: bool
) -> None:
    sources = pools(dtype, tied)
    recipe = recipe_of(sources, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9], dtype=dtype)
    model = live_model(sources, dtype)
    materializer = Materializer(sources)
    materializer.into(model, recipe)
    digest = write_checkpoint(
        recipe, sources, tmp_path / "out", max_shard_bytes=40_000, extra_files={}
    )
    assert digest == materializer.digest_of(model)
    exported = LlamaForCausalLM.from_pretrained(tmp_path / "out")
    assert exported.dtype == getattr(torch, dtype)
    assert weights_digest(saved_tensors(exported).items()) == digest
    with CheckpointReader(tmp_path / "out") as reader:
        assert len(reader.files) > 1
        assert weights_digest((name, reader.tensor(name)) for name in reader.entries) == digest


def test_merge_does_not_depend_on_the_shards_of_its_sources(
    tiny_pool: TinyPool, make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    directories = []
    for source in sources.everything:
        with CheckpointReader(source.directory) as reader:
            tensors = {name: reader.tensor(name).clone() for name in reversed(reader.entries)}
            config = reader.config
        shards: list[dict[str, torch.Tensor]] = [{}, {}, {}]
        for index, name in enumerate(tensors):
            shards[index % 3][name] = tensors[name]
        directories.append(make_checkpoint(source.name, *shards, config=config))
    base, *others = map(str, directories)
    moved = Models.model_validate(
        {"base": base, "checkpoints": dict(zip(tiny_pool.checkpoints, others, strict=True))}
    )
    resharded = resolve_sources(moved)
    for method in ("dare_linear", "ties"):
        options = get_method(method).complete_options({})
        recipe = recipe_of(
            sources, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.1, 0.9], method=method, options=options
        )
        digests = {
            write_checkpoint(recipe, pool, tmp_path / f"{method}-{number}")
            for number, pool in enumerate((sources, resharded))
        }
        assert len(digests) == 1


def test_export_is_complete_and_loads_with_its_tokenizer(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    sources = pools("bfloat16")
    recipe = recipe_of(sources, [0.5, 0.5, 0.5], dtype="float32")
    write_checkpoint(
        recipe,
        sources,
        tmp_path / "out",
        extra_files={"README.md": b"# card", "recipe.json": b"{}"},
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "recipe.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    assert (tmp_path / "out" / "README.md").read_bytes() == b"# card"
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.decode(tokenizer("merge")["input_ids"]) == "merge"


def test_export_again_gives_the_same_bytes(pools: Callable[..., Sources], tmp_path: Path) -> None:
    sources = pools()
    recipe = recipe_of(sources, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9])
    for name in ("one", "two"):
        write_checkpoint(
            recipe, sources, tmp_path / name, max_shard_bytes=50_000, extra_files={"a.md": b"x"}
        )
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_export_leaves_nothing_when_a_source_does_not_fit(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    sources = pools()
    stranger = recipe_of(sources, [1.0, 0.0, 0.0], base=Source(name="x", digest="0" * 64))
    with pytest.raises(CheckpointError):
        write_checkpoint(stranger, sources, tmp_path / "out", extra_files={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_export_holds_parts_and_never_a_tensor(
    make_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    elements = 50_000_000
    draw = torch.Generator().manual_seed(0)
    directories = [
        make_checkpoint(name, {"t": torch.empty(elements).uniform_(generator=draw)})
        for name in ("origin", "math")
    ]
    sources = pool_of(directories[0], math=directories[1])
    with AnonPeak() as peak:
        digest = write_checkpoint(
            recipe_of(sources, [0.5]), sources, tmp_path / "out", extra_files={}, backend="eager"
        )
    # The parts in flight, and the eager path's temporaries; the tensor has 191 MiB.
    assert peak.grown_mib < 7 * 8 + 32
    with CheckpointReader(tmp_path / "out") as reader:
        assert weights_digest([("t", reader.tensor("t"))]) == digest


def test_export_from_checkpoints_larger_than_memory_takes_their_pages_out(
    pools: Callable[..., Sources], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = pools()
    recipe = recipe_of(sources, [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9])
    expected = write_checkpoint(recipe, sources, tmp_path / "one", extra_files={})
    released = []
    monkeypatch.setattr(residency, "page_out", lambda tensor: released.append(tensor.numel()))
    monkeypatch.setattr(merged_checkpoint, "measure_memory", lambda device: Memory(10_000))
    assert write_checkpoint(recipe, sources, tmp_path / "two", extra_files={}) == expected
    with CheckpointReader(tmp_path / "two") as reader:
        assert sum(released) == 4 * sum(entry.numel for entry in reader.entries.values())


def test_merge_that_is_not_finite_is_not_exported(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    sources = pools("bfloat16")
    # Finite weights whose merge overflows in half precision.
    recipe = recipe_of(sources, [1e38, 1e38, 1e38], dtype="float16")
    with pytest.raises(CheckpointError, match="the merge is not finite: element"):
        write_checkpoint(recipe, sources, tmp_path / "out", extra_files={})
    assert list(tmp_path.iterdir()) == []


def test_export_that_is_not_what_was_expected_never_appears(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    def refuse(digest: str) -> None:
        assert not (tmp_path / "out").exists()
        raise CheckpointError(f"not {digest}")

    recipe = recipe_of(pools(), [0.5, 0.5, 0.5])
    with pytest.raises(CheckpointError, match=r"not [0-9a-f]{32}"):
        write_checkpoint(recipe, pools(), tmp_path / "out", finish=refuse)
    assert list(tmp_path.iterdir()) == []


def test_export_leaves_the_number_of_threads_as_it_was(
    pools: Callable[..., Sources], tmp_path: Path
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        recipe = recipe_of(pools(), [0.7, -0.2, 0.9], drop_ratios=[0.5, 0.0, 0.9])
        three = write_checkpoint(recipe, pools(), tmp_path / "three", extra_files={})
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        assert write_checkpoint(recipe, pools(), tmp_path / "one", extra_files={}) == three
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ties", "dare_ties", "della"])
def test_parts_of_an_export_are_the_bits_of_the_whole_merge(
    pools: Callable[..., Sources], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = pools()
    recipe = recipe_of(
        sources,
        [0.7, 0.2, 0.9],
        drop_ratios=[0.5, 0.4, 0.9],
        method=method,
        options=get_method(method).complete_options({}),
    )
    model, materializer = live_model(sources), Materializer(sources)
    materializer.into(model, recipe)
    # 250 elements: no row of 32 or 64 ends there, and none of 96 fits.
    monkeypatch.setattr(part_stream, "PART_BYTES", 1000)
    monkeypatch.setattr(source_pool, "_PIECE_ELEMENTS", 77)
    digest = write_checkpoint(recipe, sources, tmp_path / "out", extra_files={})
    assert digest == materializer.digest_of(model)


@pytest.mark.parametrize("method", ["dare_linear", "linear", "ties", "dare_ties", "della", "slerp"])
def test_tensors_without_elements_are_exported_as_they_are(
    make_checkpoint: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"matrix": (4, 6), "no rows": (0, 6), "no columns": (4, 0), "scalar": (), "none": (0,)}
    base, *tuned = (
        make_checkpoint(name, {key: torch.randn(s, generator=draw) for key, s in shapes.items()})
        for name in ("base", "code", "math")
    )
    needs_base = get_method(method).needs_base
    sources = pool_of(base if needs_base else None, code=tuned[0], math=tuned[1])
    drops = [0.5, 0.5] if get_method(method).uses_drop_ratios else None
    options = get_method(method).complete_options({})
    recipe = recipe_of(sources, [0.5, 0.5], method=method, drop_ratios=drops, options=options)
    digest = write_checkpoint(recipe, sources, tmp_path / "out")
    with CheckpointReader(tmp_path / "out") as reader:
        assert {key: entry.shape for key, entry in reader.entries.items()} == shapes
        assert weights_digest((key, reader.tensor(key)) for key in reader.entries) == digest
