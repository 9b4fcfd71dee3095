"""Writing checkpoint directories: bytes, shards, and whole or not at all."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save

from configs.errors import CheckpointError
from workers import work_directory
from workers.checkpoint import CheckpointReader
from workers.checkpoint_writer import CheckpointWriter, config_with_dtype
from workers.digest import tensor_bytes
from workers.shard_header import TensorEntry

TENSORS = {
    "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a": torch.tensor([1.0, -0.0]),
    "c": torch.tensor([True, False, True]),
    "d": torch.zeros(0, 4),
    "e": torch.tensor(3.5),
}


def entries(tensors: dict[str, torch.Tensor] = TENSORS) -> list[TensorEntry]:
    return [
        TensorEntry(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), "", t.nbytes)
        for name, t in tensors.items()
    ]


def write(out_dir: Path, tensors: dict[str, torch.Tensor] = TENSORS, **options: int) -> None:
    with CheckpointWriter(out_dir, entries(tensors), **options) as writer:
        for name in writer.order:
            writer.write(name, tensor_bytes(tensors[name]))
        writer.add_file("config.json", b"{}")


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_written_file_is_what_the_reference_implementation_writes(tmp_path: Path) -> None:
    write(tmp_path / "out")
    expected = save(TENSORS, metadata={"format": "pt"})
    loaded = load_file(tmp_path / "out" / "model.safetensors")
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    # The same length: header padded alike, data without gaps.
    assert (tmp_path / "out" / "model.safetensors").stat().st_size == len(expected)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_file_may_stand_in_a_directory_but_not_elsewhere(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path / "out", entries()) as writer:
        for name in writer.order:
            writer.write(name, tensor_bytes(TENSORS[name]))
        for number in (1, 2):
            writer.add_file(f"1_Pooling/{number}.json", b"{}")
        for name in ("../x.json", "/x.json", "a/../x.json", "a/b/x.json", "a/", "1_Pooling/1.json"):
            with pytest.raises(ValueError, match="is not a free file name"):
                writer.add_file(name, b"")
    assert names_in(tmp_path / "out" / "1_Pooling") == ["1.json", "2.json"]
    assert names_in(tmp_path) == ["out"]


def test_tensors_are_aligned_to_their_elements(tmp_path: Path) -> None:
    write(tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert (8 + length) % 8 == 0
    assert header["e"]["data_offsets"][0] % 4 == 0
    assert header["b"]["data_offsets"][0] % 2 == 0


def test_shards_hold_at_most_the_given_bytes_and_an_index_names_them(tmp_path: Path) -> None:
    tensors = {f"t{index:02d}": torch.full((10,), float(index)) for index in range(7)}
    tensors["t03"] = torch.ones(100)
    write(tmp_path / "out", tensors, max_shard_bytes=90)
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    held = [sorted(load_file(path)) for path in files]
    assert held == [["t00", "t01"], ["t02"], ["t03"], ["t04", "t05"], ["t06"]]
    assert files[0].name == "model-00001-of-00005.safetensors"
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 6 * 40 + 400
    with CheckpointReader(tmp_path / "out") as reader:
        assert all(torch.equal(reader.tensor(name), tensor) for name, tensor in tensors.items())


def test_first_tensor_may_be_larger_than_a_shard(tmp_path: Path) -> None:
    write(tmp_path / "out", {"a": torch.ones(100), "b": torch.ones(1)}, max_shard_bytes=90)
    assert names_in(tmp_path / "out") == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


@pytest.mark.parametrize("max_shard_bytes", [16, 10**9])
def test_writing_again_gives_the_same_bytes(tmp_path: Path, max_shard_bytes: int) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, max_shard_bytes=max_shard_bytes)
    assert names_in(tmp_path / "one") == names_in(tmp_path / "two")
    for name in names_in(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_target_may_be_an_empty_directory(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out")
    assert names_in(tmp_path / "out") == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_target_in_use_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.write_text("mine")
    elif kind == "directory":
        out.mkdir()
        (out / "mine").write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    before = names_in(tmp_path)
    with pytest.raises(CheckpointError, match="already exists and is not an empty directory"):
        write(out)
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("kind", ["link", "mount"])
def test_target_whose_name_cannot_be_taken_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    (tmp_path / "disk").mkdir()
    if kind == "link":
        out.symlink_to(tmp_path / "disk")
    else:
        out.mkdir()
        monkeypatch.setattr(Path, "is_mount", lambda self: self == out)
    before = names_in(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a link or a mount point.*new directory within"):
        write(out)
    assert names_in(tmp_path) == before


def test_target_that_cannot_be_created_says_which_directory_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="out: cannot be created: Not a directory") as caught:
        write(tmp_path / "file" / "in" / "out")
    assert str(tmp_path / "file" / "in") in caught.value.message
    assert "choose a directory that you may write to" in caught.value.message


def test_nothing_is_left_after_an_error(tmp_path: Path) -> None:
    def interrupted() -> None:
        with CheckpointWriter(tmp_path / "out", entries()) as writer:
            writer.write(writer.order[0], tensor_bytes(TENSORS[writer.order[0]]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names_in(tmp_path) == []
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [target for target in links if target.is_relative_to(tmp_path)]


def test_name_that_the_disk_does_not_confirm_is_not_called_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = work_directory.sync_directory

    def fail_for_parent(path: Path) -> None:
        if path == tmp_path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(path)

    monkeypatch.setattr(work_directory, "sync_directory", fail_for_parent)
    with pytest.raises(CheckpointError, match="is there and whole") as caught:
        write(tmp_path / "out")
    assert "Input/output error" in caught.value.message
    assert "nothing was left" not in caught.value.message
    assert names_in(tmp_path) == ["out"]
    with CheckpointReader(tmp_path / "out") as reader:
        assert all(torch.equal(reader.tensor(name), TENSORS[name]) for name in TENSORS)


def test_incomplete_checkpoint_never_appears(tmp_path: Path) -> None:
    def incomplete() -> None:
        with CheckpointWriter(tmp_path / "out", entries()) as writer:
            writer.write(writer.order[0], tensor_bytes(TENSORS[writer.order[0]]))

    with pytest.raises(ValueError, match="4 tensors were not written"):
        incomplete()
    assert names_in(tmp_path) == []


def test_tensors_may_come_in_parts_into_a_shard_that_has_its_size_at_once(tmp_path: Path) -> None:
    values = torch.arange(100, dtype=torch.float32)
    data = tensor_bytes(values)
    with CheckpointWriter(tmp_path / "out", entries({"a": values})) as writer:
        sizes = set()
        for begin in range(0, 400, 60):
            writer.write("a", data[begin : begin + 60])
            sizes |= {path.stat().st_size for path in tmp_path.glob(".out.partial-*/*")}
    assert torch.equal(load_file(tmp_path / "out" / "model.safetensors")["a"], values)
    assert sizes == {(tmp_path / "out" / "model.safetensors").stat().st_size}


def test_tensors_out_of_turn_or_of_another_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="comes next, found `b`"), _writer(tmp_path) as writer:
        writer.write("b", tensor_bytes(TENSORS["b"]))
    with pytest.raises(ValueError, match="`a`, 8 bytes of it, comes"), _writer(tmp_path) as writer:
        writer.write("a", tensor_bytes(torch.zeros(3)))
    with pytest.raises(ValueError, match="`a`, 8 bytes of it, comes"), _writer(tmp_path) as writer:
        writer.write("a", memoryview(b""))


@pytest.mark.parametrize(
    "name", ["../evil", "a/b/c", "", ".hidden", "model.safetensors", "/etc/passwd", "twice.md"]
)
def test_names_of_further_files_are_plain_and_free(tmp_path: Path, name: str) -> None:
    writer = _writer(tmp_path)
    writer.add_file("twice.md", b"")
    with pytest.raises(ValueError, match="not a free file name"):
        writer.add_file(name, b"")


def test_more_bytes_than_the_disk_has_are_refused_before_writing(tmp_path: Path) -> None:
    huge = [TensorEntry("a", "float32", (2**60,), "", 2**62)]
    with pytest.raises(CheckpointError, match=r"needs 4611686018427387904 bytes, the disk has"):
        CheckpointWriter(tmp_path / "out", huge)
    assert names_in(tmp_path) == []


def test_directory_has_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write(tmp_path / "out")
    finally:
        os.umask(before)
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o750


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float16"}, {"torch_dtype": "bfloat16"}),
        ({}, {"dtype": "bfloat16"}),
        (
            {"dtype": "float32", "text_config": {"dtype": "float32", "size": 1}},
            {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "size": 1}},
        ),
    ],
)
def test_config_says_the_dtype_of_the_weights(
    config: dict[str, object], expected: dict[str, object]
) -> None:
    assert json.loads(config_with_dtype(config, "bfloat16")) == expected


def _writer(tmp_path: Path, order: Sequence[str] = ("a", "b")) -> CheckpointWriter:
    """A writer whose first tensor is `a`."""
    tensors = {name: TENSORS["a"] if name == "a" else TENSORS[name] for name in order}
    return CheckpointWriter(tmp_path / "out", entries(tensors))
