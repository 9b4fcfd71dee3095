"""From the models section of a job to directories with digests."""

import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    CorruptCheckpointError,
)
from configs.schema import Models
from workers.checkpoint import CheckpointReader
from workers.digest import source_digest
from workers.sources import Sources, resolve_sources

Make = Callable[..., Path]


@pytest.fixture
def directories(make_checkpoint: Make) -> dict[str, Path]:
    return {
        name: make_checkpoint(name, {"w": torch.full((4,), float(index))})
        for index, name in enumerate(("origin", "math", "code"))
    }


def resolve(base: Path | str | None, /, **checkpoints: Path | str) -> Sources:
    named = {name: str(path) for name, path in checkpoints.items()}
    return resolve_sources(Models(base=None if base is None else str(base), checkpoints=named))


def test_directories_are_resolved_in_the_order_of_the_job(directories: dict[str, Path]) -> None:
    sources = resolve(directories["origin"], math=directories["math"], code=directories["code"])
    assert sources.base is not None
    assert [source.name for source in sources.everything] == ["base", "math", "code"]
    assert sources.reference is sources.base
    assert sources.checkpoints[0].directory == directories["math"]
    with CheckpointReader(directories["math"]) as reader:
        assert sources.checkpoints[0].digest == source_digest(reader)
    assert len({source.digest for source in sources.everything}) == 3


def test_reference_is_the_first_checkpoint_without_a_base(directories: dict[str, Path]) -> None:
    sources = resolve(None, math=directories["math"], code=directories["code"])
    assert sources.base is None
    assert sources.reference.name == "math"


def test_relative_paths_and_links_become_absolute(
    directories: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(directories["math"])
    monkeypatch.chdir(tmp_path)
    assert resolve(None, math="link").checkpoints[0].directory == directories["math"]


def test_sources_survive_pickling(directories: dict[str, Path]) -> None:
    sources = resolve(directories["origin"], math=directories["math"])
    assert pickle.loads(pickle.dumps(sources)) == sources  # noqa: S301 - our own bytes


def test_all_missing_checkpoints_are_named_at_once(directories: dict[str, Path]) -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve(directories["origin"], math="/nowhere/math", code="/nowhere/code")
    assert "2 models cannot be used" in caught.value.message
    assert "/nowhere/math" in caught.value.message
    assert "/nowhere/code" in caught.value.message


def test_problems_of_several_kinds_are_named_at_once(directories: dict[str, Path]) -> None:
    path = directories["math"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError) as caught:
        resolve(directories["origin"], math=directories["math"], code="/nowhere/code")
    assert "copy it again" in caught.value.message
    assert "/nowhere/code" in caught.value.message
    assert caught.value.exit_code == 3


def test_single_problem_keeps_its_class(directories: dict[str, Path]) -> None:
    path = directories["math"] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptCheckpointError, match="copy it again"):
        resolve(directories["origin"], math=directories["math"])


def test_file_in_place_of_a_directory_is_refused(directories: dict[str, Path]) -> None:
    with pytest.raises(CheckpointNotFoundError, match="is a file; name the directory"):
        resolve(None, math=directories["math"] / "model.safetensors")


def test_checkpoint_called_base_is_refused_beside_a_base(directories: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="the name `base` means the base; rename it"):
        resolve(directories["origin"], base=directories["math"])


def test_hub_id_that_is_not_cached_is_refused_offline() -> None:
    with pytest.raises(CheckpointNotFoundError) as caught:
        resolve(None, math="nobody/nothing-at-all")
    message = caught.value.message
    assert "no directory `nobody/nothing-at-all` here" in message
    assert "not in the Hugging Face cache" in message


@pytest.mark.slow
def test_hub_id_is_taken_from_the_cache_offline(
    directories: dict[str, Path], tmp_path: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--math"
    shutil.copytree(directories["math"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "v1").write_text(commit)
    # The client reads its environment once, when it is imported.
    program = (
        "from configs.schema import Models; from workers.sources import resolve_sources\n"
        "print(resolve_sources(Models(checkpoints={'m': 'org/math@v1'})).checkpoints[0].directory)"
    )
    environment = {
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(repository / "snapshots" / commit)


def test_of_a_repository_weights_and_small_files_are_wanted_and_no_other_layouts() -> None:
    from huggingface_hub.utils import filter_repo_objects

    from workers import sources

    wanted = [
        "config.json",
        "model-00001-of-00002.safetensors",
        "tokenizer.model",
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
    ]
    unwanted = [
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/params.json",
        "onnx/model.safetensors",
        "0_Transformer/model.safetensors",
        "4bit/model.safetensors",
        "7B/params.json",
        "modeling_x.py",
    ]
    found = filter_repo_objects(
        [*wanted, *unwanted],
        allow_patterns=list(sources._HUB_PATTERNS),
        ignore_patterns=list(sources._HUB_IGNORED),
    )
    assert list(found) == wanted


def test_resolving_imports_no_torch_when_digests_are_known(directories: dict[str, Path]) -> None:
    resolve(None, math=directories["math"])
    program = (
        "import sys; from configs.schema import Models\n"
        "from workers.sources import resolve_sources\n"
        f"resolve_sources(Models(checkpoints={{'m': {str(directories['math'])!r}}}))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
