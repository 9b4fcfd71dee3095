"""Exports that are killed, run out of disk or find damage: no half-written directory, ever.

Nothing appears under the final name, the error says what was wrong, and the sources stay as they
were.
"""

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from configs.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from configs.recipe import MergeRecipe
from configs.schema import Models
from tests.conftest import TinyPool
from tests.small_models import recipe_of
from workers.merged_checkpoint import write_checkpoint
from workers.sources import Sources, resolve_sources
from workers.work_directory import WorkDirectory, remove_leftovers

# Writes the checkpoint again and again, so that a kill comes at any point of it.
EXPORT = """
import resource, shutil, signal, sys
from pathlib import Path
from configs.errors import CheckpointError
from configs.recipe import MergeRecipe
from configs.schema import Models
from workers.merged_checkpoint import write_checkpoint
from workers.sources import resolve_sources

recipe, models, out, limit, repeats = sys.argv[1:]
sources = resolve_sources(Models.model_validate_json(models))
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
print("ready", flush=True)
for index in range(int(repeats)):
    try:
        write_checkpoint(
            MergeRecipe.model_validate_json(recipe), sources, Path(out) / f"out-{index}",
            max_shard_bytes=30_000, extra_files={"README.md": b"x" * 200_000},
        )
    except CheckpointError as error:
        sys.exit(f"CheckpointError: {error}")
"""


def half_of_each(sources: Sources) -> MergeRecipe:
    return recipe_of(sources, [0.5] * 3, drop_ratios=[0.5] * 3)


def start_export(
    pool: TinyPool, out: Path, *, limit_bytes: int = 0, repeats: int = 1
) -> subprocess.Popen[str]:
    models = Models.model_validate(pool.models)
    recipe = half_of_each(resolve_sources(models))
    arguments = [recipe.model_dump_json(), models.model_dump_json(), str(out)]
    return subprocess.Popen(
        [sys.executable, "-c", EXPORT, *arguments, str(limit_bytes), str(repeats)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def source_bytes(pool: TinyPool) -> str:
    digest = hashlib.sha256()
    for directory in (pool.base, *pool.checkpoints.values()):
        for path in sorted(directory.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


@pytest.fixture(autouse=True)
def _own_digest_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Shards have 30 kB or little more, the README has 200 kB.
@pytest.mark.parametrize("limit_bytes", [5_000, 100_000], ids=["in a shard", "in a side file"])
def test_export_that_cannot_write_on_says_so_and_leaves_nothing(
    tiny_pool: TinyPool, tmp_path: Path, limit_bytes: int
) -> None:
    before = source_bytes(tiny_pool)
    (tmp_path / "exports").mkdir()
    process = start_export(tiny_pool, tmp_path / "exports", limit_bytes=limit_bytes)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "out-0: writing failed: File too large; nothing was left under that name" in errors
    assert list((tmp_path / "exports").iterdir()) == []
    assert source_bytes(tiny_pool) == before


@pytest.mark.slow
def test_killed_export_leaves_whole_directories_only(tiny_pool: TinyPool, tmp_path: Path) -> None:
    before = source_bytes(tiny_pool)
    exports = tmp_path / "exports"
    exports.mkdir()
    process = start_export(tiny_pool, exports, repeats=100_000)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    while len(list(exports.glob("out-*"))) < 20:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=300)
    finished = sorted(exports.glob("out-*"))
    expected = sorted(path.name for path in finished[0].iterdir())
    assert "model.safetensors.index.json" in expected
    assert "README.md" in expected
    for directory in finished:
        assert sorted(path.name for path in directory.iterdir()) == expected
    # What was being written lies under a hidden name.
    assert all(path.name.startswith(".out-") for path in set(exports.iterdir()) - set(finished))
    assert source_bytes(tiny_pool) == before


@pytest.mark.slow
def test_export_killed_at_any_moment_leaves_nothing_that_the_next_one_keeps(
    tiny_pool: TinyPool, tmp_path: Path
) -> None:
    before = source_bytes(tiny_pool)
    exports = tmp_path / "exports"
    exports.mkdir()
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    draw = random.Random(0)
    leftovers = kills = 0
    # Now and then a kill comes between two exports.
    while kills < 3 or (leftovers == 0 and kills < 30):
        kills += 1
        process = start_export(tiny_pool, exports, repeats=100_000)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(draw.uniform(0.2, 1.0))
        process.kill()
        process.communicate(timeout=300)
        for hidden in list(exports.glob(".out-*")):
            leftovers += 1
            target = exports / hidden.name[1:].partition(".partial-")[0]
            assert not target.exists()
            write_checkpoint(half_of_each(sources), sources, target)
            assert not hidden.exists()
        for directory in exports.iterdir():
            shutil.rmtree(directory)
    assert leftovers >= 1
    assert source_bytes(tiny_pool) == before


def test_export_removes_what_is_dead_and_leaves_what_another_one_writes(
    tiny_pool: TinyPool, tmp_path: Path
) -> None:
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    exports = tmp_path / "exports"
    dead, foreign = exports / ".out.partial-01234567", exports / ".out.partial-notes"
    for directory in (dead, foreign):
        directory.mkdir(parents=True)
        (directory / "model.safetensors").write_bytes(b"half")
    alive = WorkDirectory(exports / "out")
    write_checkpoint(half_of_each(sources), sources, exports / "out")
    assert sorted(exports.iterdir()) == sorted([alive.path, foreign, exports / "out"])
    alive.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Mounts file systems of a size in memory, where this process may."""
    mounted: list[Path] = []

    def mount(size_bytes: int) -> Path:
        path = tmp_path / f"disk-{len(mounted)}"
        path.mkdir()
        options = ["-t", "tmpfs", "-o", f"size={size_bytes}", "tmpfs"]
        done = subprocess.run(
            ["mount", *options, str(path)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no small disk without the right to mount one: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted:
        subprocess.run(["umount", str(path)], check=True)


def test_full_disk_is_said_and_nothing_is_left_on_it(
    tiny_pool: TinyPool, small_disk: Callable[[int], Path], tmp_path: Path
) -> None:
    before = source_bytes(tiny_pool)
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    whole = tmp_path / "whole"
    write_checkpoint(half_of_each(sources), sources, whole)
    size = sum(path.stat().st_size for path in whole.iterdir())
    disk = small_disk(size // 2)
    with pytest.raises(CheckpointError, match=r"the checkpoint needs \d+ bytes, the disk has \d+"):
        write_checkpoint(half_of_each(sources), sources, disk / "out")
    assert list(disk.iterdir()) == []
    # Room for the tensors, not for what comes with them.
    disk = small_disk((size // 4096 + 8) * 4096)
    with pytest.raises(CheckpointError, match="writing failed: No space left on device; nothing"):
        write_checkpoint(
            half_of_each(sources), sources, disk / "out", extra_files={"a.md": b"x" * 2**20}
        )
    assert list(disk.iterdir()) == []
    write_checkpoint(half_of_each(sources), sources, disk / "out")
    assert source_bytes(tiny_pool) == before


def test_disk_that_fills_up_while_a_shard_is_begun_is_said(
    tiny_pool: TinyPool,
    small_disk: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = resolve_sources(Models.model_validate(tiny_pool.models))
    disk = small_disk(2**17)
    # Another process takes the space after it was counted.
    monkeypatch.setattr("workers.checkpoint_writer.CheckpointWriter._require_space", lambda _: None)
    with pytest.raises(CheckpointError, match="writing failed: No space left on device; nothing"):
        write_checkpoint(half_of_each(sources), sources, disk / "out", max_shard_bytes=40_000)
    assert list(disk.iterdir()) == []


@pytest.fixture
def damaged_pool(tiny_pool: TinyPool, tmp_path: Path) -> tuple[TinyPool, Path]:
    """A pool whose checkpoint `math` is a copy, to be damaged."""
    copy = Path(shutil.copytree(tiny_pool.checkpoints["math"], tmp_path / "math"))
    return TinyPool(tiny_pool.base, {**tiny_pool.checkpoints, "math": copy}), copy


def truncate(directory: Path) -> None:
    shard = directory / "model.safetensors"
    os.truncate(shard, shard.stat().st_size - 100)


def lie_in_header(directory: Path) -> None:
    shard = directory / "model.safetensors"
    content = shard.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + length])
    header["model.norm.weight"]["shape"] = [31]
    text = json.dumps(header).encode()
    shard.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def name_a_missing_shard(directory: Path) -> None:
    shard = directory / "model.safetensors"
    names = dict.fromkeys(load_file(shard), "model-00001-of-00002.safetensors")
    names["model.norm.weight"] = "model-00002-of-00002.safetensors"
    shard.rename(directory / "model-00001-of-00002.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"math: damaged checkpoint\n.*header promises .* bytes, file has"),
        (lie_in_header, "header lies: `model.norm.weight`"),
        (name_a_missing_shard, "00002-of-00002.safetensors: named by the index but missing"),
        (shutil.rmtree, "no such directory"),
    ],
    ids=["truncated", "lying header", "missing shard", "missing"],
)
def test_checkpoint_damaged_after_the_search_is_named_by_the_export(
    damaged_pool: tuple[TinyPool, Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
    message: str,
) -> None:
    pool, copy = damaged_pool
    sources = resolve_sources(Models.model_validate(pool.models))
    damage(copy)
    (tmp_path / "exports").mkdir()
    with pytest.raises((CorruptCheckpointError, CheckpointNotFoundError), match=message):
        write_checkpoint(half_of_each(sources), sources, tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []


def test_nan_in_a_checkpoint_that_contributes_stops_the_export(
    damaged_pool: tuple[TinyPool, Path], tmp_path: Path
) -> None:
    pool, copy = damaged_pool
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, :] = torch.nan
    save_file(tensors, copy / "model.safetensors")
    before = source_bytes(pool)
    sources = resolve_sources(Models.model_validate(pool.models))
    (tmp_path / "exports").mkdir()
    with pytest.raises(
        CheckpointError, match=r"`model.layers.1.mlp.up_proj.weight`: .* element \d+ is nan, as are"
    ):
        write_checkpoint(half_of_each(sources), sources, tmp_path / "exports" / "out")
    assert list((tmp_path / "exports").iterdir()) == []
    # A checkpoint of weight 0 is no part of the merge.
    without = half_of_each(sources).model_copy(update={"weights": ((0.5,), (0.5,), (0.0,))})
    write_checkpoint(without, sources, tmp_path / "exports" / "out")
    assert source_bytes(pool) == before


def test_export_works_where_directories_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    directory = WorkDirectory(tmp_path / "out")
    (directory.path / "file").touch()
    # Nobody knows whether its owner lives.
    assert remove_leftovers(tmp_path / "out") == []
    directory.publish()
    directory.close()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]
