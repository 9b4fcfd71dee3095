"""Reading checkpoint directories: what is there, and what is refused."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from configs.errors import CheckpointError, CheckpointNotFoundError, CorruptCheckpointError
from tests.unit.workers.sparse_checkpoint import write_shard
from workers.checkpoint import CheckpointReader

A = torch.arange(6, dtype=torch.float32).reshape(2, 3)
B = torch.tensor([1.5, -2.0], dtype=torch.bfloat16)
SECOND_SHARD = "model-00002-of-00002.safetensors"

Make = Callable[..., Path]


def refusal(directory: Path) -> str:
    with pytest.raises(CorruptCheckpointError) as caught:
        CheckpointReader(directory)
    return caught.value.message


def test_reader_lists_and_reads_the_tensors_of_one_file(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"b": B, "a": A}, config={"model_type": "bert"})
    with CheckpointReader(directory) as reader:
        assert list(reader.entries) == ["a", "b"]
        entry = reader.entries["a"]
        assert (entry.dtype, entry.shape, entry.size_bytes) == ("float32", (2, 3), 24)
        assert torch.equal(reader.tensor("a"), A)
        assert torch.equal(reader.tensor("b"), B)
        assert reader.config == {"model_type": "bert"}
        assert reader.dtype == "float32"
        assert reader.size_bytes == 28


def test_reader_joins_the_shards_of_an_index(make_checkpoint: Make) -> None:
    with CheckpointReader(make_checkpoint("c", {"a": A}, {"b": B})) as reader:
        assert reader.entries["b"].shard == SECOND_SHARD
        assert torch.equal(reader.tensor("a"), A)
        assert torch.equal(reader.tensor("b"), B)
        assert [path.name for path in reader.files] == [
            "model-00001-of-00002.safetensors",
            SECOND_SHARD,
        ]


def test_tensors_are_memory_mapped_and_outlive_their_reader(make_checkpoint: Make) -> None:
    count = 8_000_000
    directory = make_checkpoint("c", {"a": torch.ones(count)})

    def anonymous_kib() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    with CheckpointReader(directory) as reader:
        before = anonymous_kib()
        tensor = reader.tensor("a")
        assert float(tensor[::4096].sum()) == len(range(0, count, 4096))
        assert anonymous_kib() - before < count * 4 / 1024 / 4
    assert float(tensor[-1]) == 1.0


@pytest.mark.parametrize("spaces", range(8))
def test_tensors_are_read_wherever_they_begin(make_checkpoint: Make, spaces: int) -> None:
    """The format recommends a header that aligns the elements, and takes any."""
    directory = make_checkpoint("c", {"a": A, "b": B, "none": torch.zeros(0, 3)})
    path = directory / "model.safetensors"
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    header = content[8 : 8 + length].rstrip() + b" " * spaces
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])
    with CheckpointReader(directory) as reader:
        a = reader.tensor("a")
        assert torch.equal(a, A)
        assert torch.equal(reader.tensor("b"), B)
        assert reader.tensor("none").shape == (0, 3)
        assert a.data_ptr() == reader.tensor("a").data_ptr(), "mapped, and not copied"
    assert torch.equal(a, A)


def test_file_that_was_replaced_since_its_header_was_read_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A, "b": A + 1})
    path = directory / "model.safetensors"
    content, other = path.read_bytes(), make_checkpoint("d", {"b": A}) / "model.safetensors"
    swapped = content.replace(b"[0,24]", b"[?]").replace(b"[24,48]", b"[0,24]")
    for changed, reason in (
        (swapped.replace(b"[?]", b"[24,48]"), "holds other tensors than a moment ago"),
        (other.read_bytes(), "holds other tensors than a moment ago"),
        (content[:-1], r"model\.safetensors: header promises .* copy it again"),
    ):
        path.write_bytes(content)
        reader = CheckpointReader(directory)
        path.write_bytes(changed)
        with pytest.raises(CorruptCheckpointError, match=reason):
            reader.tensor("a")


def test_closed_reader_has_no_open_files(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": B})
    reader = CheckpointReader(directory)
    reader.close()
    targets = {path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    assert not [target for target in targets if target.is_relative_to(directory)]


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"nowhere: no such directory"):
        CheckpointReader(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file_name", "advice"),
    [
        ("pytorch_model.bin", "a pickle, which is never loaded; convert it"),
        ("adapter_config.json", "LoRA adapter; merge the adapter into its base"),
        ("notes.txt", "found notes.txt; copy the weights there"),
    ],
)
def test_directory_without_weights_says_what_to_do(
    tmp_path: Path, file_name: str, advice: str
) -> None:
    (tmp_path / file_name).write_text("{}")
    with pytest.raises(CheckpointNotFoundError, match=advice):
        CheckpointReader(tmp_path)


def test_missing_config_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A})
    (directory / "config.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match=r"no config\.json beside the weights"):
        CheckpointReader(directory)


def test_truncated_shard_says_how_many_bytes_are_missing(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": torch.zeros(500)})
    path = directory / SECOND_SHARD
    assert path.stat().st_size == 2072
    path.write_bytes(path.read_bytes()[:1000])
    message = f"{SECOND_SHARD}: header promises 2 072 bytes, file has 1 000; copy it again"
    assert message in refusal(directory)


def test_shard_cut_inside_its_header_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A})
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:40])
    assert "file has 40; copy it again" in refusal(directory)


def test_file_with_bytes_after_its_tensors_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A})
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    assert "copy it again" in refusal(directory)


@pytest.mark.parametrize(
    "content", [b"", b"\0\0", struct.pack("<Q", 2**60) + b"{}", b"<!DOCTYPE html>"]
)
def test_file_that_is_no_safetensors_is_refused(make_checkpoint: Make, content: bytes) -> None:
    directory = make_checkpoint("c", {"a": A})
    (directory / "model.safetensors").write_bytes(content)
    assert "no safetensors header" in refusal(directory)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("shape", [2, 4], "header lies: `a` float32 (2, 4) needs 32 bytes from 0"),
        ("shape", [2, -3], "header is damaged"),
        ("dtype", "BF16", "header lies: `a` bfloat16 (2, 3) needs 12 bytes"),
        ("dtype", "X99", "unknown dtype X99"),
        ("data_offsets", [4, 28], "header lies"),
        ("data_offsets", [0, 10**12], "header lies"),
        ("data_offsets", "all", "header is damaged"),
    ],
)
def test_header_that_lies_is_refused(
    make_checkpoint: Make,
    rewrite_header: Callable[..., None],
    field: str,
    value: object,
    message: str,
) -> None:
    directory = make_checkpoint("c", {"a": A})

    def change(header: dict[str, dict[str, object]]) -> None:
        header["a"][field] = value

    rewrite_header(directory / "model.safetensors", change)
    assert message in refusal(directory)


def test_header_without_a_tensor_that_has_data_is_refused(
    make_checkpoint: Make, rewrite_header: Callable[..., None]
) -> None:
    directory = make_checkpoint("c", {"a": A, "b": A.clone()})
    rewrite_header(directory / "model.safetensors", lambda header: header.pop("a"))
    assert "header lies: `b`" in refusal(directory)


def test_index_naming_a_missing_shard_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": B})
    (directory / SECOND_SHARD).unlink()
    assert f"{SECOND_SHARD}: named by the index but missing" in refusal(directory)


def test_index_that_does_not_fit_the_shards_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": B})
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["a"]
    index["weight_map"]["c"] = "model-00001-of-00002.safetensors"
    path.write_text(json.dumps(index))
    message = refusal(directory)
    assert "puts `c` into model-00001-of-00002.safetensors, which does not hold it" in message
    assert "does not name `a`" in message


def test_tensor_in_two_shards_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": B})
    save_file({"a": A, "b": B}, directory / SECOND_SHARD)
    assert "`a` is also in model-00001-of-00002.safetensors; keep one" in refusal(directory)


def test_index_reaching_out_of_the_directory_is_refused(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": B})
    index = {"weight_map": {"a": "../other/model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "no file name of a shard" in refusal(directory)


@pytest.mark.parametrize("text", ["", "[]", '{"weight_map": []}', "{"])
def test_damaged_index_is_refused(make_checkpoint: Make, text: str) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": B})
    (directory / "model.safetensors.index.json").write_text(text)
    assert "copy it again" in refusal(directory)


def test_all_damaged_shards_are_named_at_once(make_checkpoint: Make) -> None:
    directory = make_checkpoint("c", {"a": A}, {"b": B})
    for path in directory.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    message = refusal(directory)
    assert message.count("header promises") == 2


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.float64])
def test_dtypes_that_cannot_be_merged_are_refused(
    make_checkpoint: Make, dtype: torch.dtype
) -> None:
    directory = make_checkpoint("c", {"a": A, "b": A.to(dtype)})
    with pytest.raises(CheckpointError, match=r"unsupported weights: b .*merge the float32"):
        CheckpointReader(directory)


def test_causal_masks_of_older_models_are_read(make_checkpoint: Make) -> None:
    mask = torch.ones(1, 1, 6, 6).tril().to(torch.uint8)
    with CheckpointReader(make_checkpoint("c", {"a": A, "attention.bias": mask})) as reader:
        assert torch.equal(reader.tensor("attention.bias"), mask)


def test_quantized_checkpoint_is_refused_by_its_config(make_checkpoint: Make) -> None:
    config = {"quantization_config": {"quant_method": "gptq"}}
    directory = make_checkpoint("c", {"a": A}, config=config)
    with pytest.raises(CheckpointError, match="quantization_config gptq"):
        CheckpointReader(directory)


def test_file_larger_than_the_memory_says_how_to_make_it_readable(tmp_path: Path) -> None:
    if Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "1":
        pytest.skip("the kernel of this machine maps files of any size")
    memory = psutil.virtual_memory().total + psutil.swap_memory().total
    write_shard(tmp_path / "model.safetensors", {"a": (memory,), "b": (4,)})
    (tmp_path / "config.json").write_text("{}")
    with (
        CheckpointReader(tmp_path) as reader,
        pytest.raises(CheckpointError, match="cannot be mapped into the memory") as caught,
    ):
        reader.tensor("b")
    message = caught.value.message
    assert str(tmp_path / "model.safetensors") in message
    assert f"this file of {2 * memory / 1e9:.1f} GB" in message
    assert "--max-shard-size 5GB" in message
