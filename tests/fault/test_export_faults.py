"""Exports that are killed or run out of disk: nothing under the final name, sources untouched."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.recipe import Group, MergeRecipe, Source
from configs.schema import Models
from tests.conftest import TinyPool
from workers.sources import resolve_sources

# Writes the checkpoint again and again, so that a kill comes at any point of it.
EXPORT = """
import resource, shutil, signal, sys
from pathlib import Path
from configs.errors import CheckpointError
from configs.recipe import MergeRecipe
from configs.schema import Models
from workers.materialize import write_checkpoint
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


def start_export(
    pool: TinyPool, out: Path, *, limit_bytes: int = 0, repeats: int = 1
) -> subprocess.Popen[str]:
    models = Models.model_validate(pool.models)
    sources = resolve_sources(models)
    assert sources.base is not None
    recipe = MergeRecipe(
        method="dare_linear",
        base=Source(name="base", digest=sources.base.digest),
        checkpoints=tuple(Source(name=c.name, digest=c.digest) for c in sources.checkpoints),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=((0.5,), (0.5,), (0.5,)),
        drop_ratios=((0.5,), (0.5,), (0.5,)),
        dtype="float32",
    )
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
    _, errors = process.communicate(timeout=60)
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
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    finished = sorted(exports.glob("out-*"))
    expected = sorted(path.name for path in finished[0].iterdir())
    assert "model.safetensors.index.json" in expected
    assert "README.md" in expected
    for directory in finished:
        assert sorted(path.name for path in directory.iterdir()) == expected
    # What was being written lies under a hidden name.
    assert all(path.name.startswith(".out-") for path in set(exports.iterdir()) - set(finished))
    assert source_bytes(tiny_pool) == before
