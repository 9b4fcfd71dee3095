"""Digests of weights and of sources, and the cache of the latter."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import xxhash

from workers.checkpoint import CheckpointReader
from workers.digest import DigestCache, source_digest, tensor_bytes, weights_digest

A, B = torch.tensor([1.0, 2.0]), torch.tensor([[3.0], [4.0]], dtype=torch.bfloat16)

Make = Callable[..., Path]


def test_weights_digest_is_xxh3_over_sorted_lines_of_tensors() -> None:
    lines = [
        json.dumps(["a", "float32", [2], xxhash.xxh3_128_hexdigest(A.numpy().tobytes())]),
        json.dumps(["b", "bfloat16", [2, 1], xxhash.xxh3_128_hexdigest(tensor_bytes(B))]),
    ]
    expected = xxhash.xxh3_128_hexdigest("".join(line + "\n" for line in lines).encode())
    assert weights_digest([("a", A), ("b", B)]) == expected


def test_weights_digest_does_not_depend_on_order_or_layout() -> None:
    transposed = torch.tensor([[1.0, 2.0], [3.0, 4.0]]).T
    assert weights_digest([("a", A), ("t", transposed)]) == weights_digest(
        [("t", transposed.contiguous()), ("a", A)]
    )


@pytest.mark.parametrize(
    "other",
    [
        [("a", A), ("c", B)],
        [("a", A), ("b", B.float())],
        [("a", A), ("b", B.reshape(1, 2))],
        [("a", torch.tensor([1.0, 2.0000002])), ("b", B)],
        [("a", A)],
    ],
    ids=["name", "dtype", "shape", "one bit", "missing"],
)
def test_weights_digest_tells_apart(other: list[tuple[str, torch.Tensor]]) -> None:
    assert weights_digest(other) != weights_digest([("a", A), ("b", B)])


def test_weights_digest_tells_signed_zeros_apart() -> None:
    zero = torch.zeros(1)
    assert weights_digest([("a", zero)]) != weights_digest([("a", -zero)])


def test_source_digest_does_not_depend_on_shards(make_checkpoint: Make, tmp_path: Path) -> None:
    single = make_checkpoint("single", {"a": A, "b": B})
    sharded = make_checkpoint("sharded", {"a": A}, {"b": B})
    other = make_checkpoint("other", {"a": A, "b": B + 1})
    cache = DigestCache(tmp_path / "digests.json")
    digests = []
    for directory in (single, sharded, other):
        with CheckpointReader(directory) as reader:
            digests.append(source_digest(reader, cache=cache))
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_source_digest_is_remembered_until_a_file_changes(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    directory = make_checkpoint("c", {"a": A})
    cache = DigestCache(tmp_path / "deep" / "digests.json")
    with CheckpointReader(directory) as reader:
        digest = source_digest(reader, cache=cache)
        assert cache.get(reader.deciding_files) == digest
        # What is found in the cache is believed.
        other = DigestCache(tmp_path / "other.json")
        other.find(reader.deciding_files, lambda: "0" * 64)
        assert source_digest(reader, cache=other) == "0" * 64
        path = directory / "model.safetensors"
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        assert cache.get(reader.deciding_files) is None
        assert source_digest(reader, cache=cache) == digest


def test_config_that_unties_a_tensor_is_another_digest(
    make_checkpoint: Make, tmp_path: Path
) -> None:
    tensors = {"model.embed_tokens.weight": B, "lm_head.weight": B.clone()}
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 2}
    directory = make_checkpoint("c", tensors, config={**config, "tie_word_embeddings": True})
    cache = DigestCache(tmp_path / "digests.json")
    with CheckpointReader(directory) as reader:
        tied = source_digest(reader, cache=cache)
    untied_config = json.dumps({**config, "tie_word_embeddings": False})
    (directory / "config.json").write_text(untied_config)
    with CheckpointReader(directory) as reader:
        untied = source_digest(reader, cache=cache)
        assert untied == source_digest(reader, cache=DigestCache(tmp_path / "fresh.json")) != tied


@pytest.mark.parametrize("is_overwritten", [False, True])
def test_copy_that_only_looks_like_the_file_is_not_taken_for_it(
    tmp_path: Path, is_overwritten: bool
) -> None:
    """A node's own copy under the same path, where nodes share the user's cache."""
    cache = DigestCache(tmp_path / "digests.json")
    file, copy = tmp_path / "model.safetensors", tmp_path / "copy"
    file.write_bytes(b"right")
    assert cache.find([file], lambda: "of the right bytes") == "of the right bytes"
    before = file.stat()

    copy.write_bytes(b"wrong")
    if is_overwritten:  # in place: the inode stays
        file.write_bytes(copy.read_bytes())
    else:
        copy.replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `rsync -a` does

    after = file.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert cache.get([file]) is None
    assert cache.find([file], lambda: "of the wrong bytes") == "of the wrong bytes"


def test_digest_of_a_file_that_changes_meanwhile_is_not_that_of_the_new_one(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")
    cache = DigestCache(tmp_path / "digests.json")

    def compute() -> str:
        file.write_text("afterwards")
        return "digest of what was there before"

    assert cache.find([file], compute) == "digest of what was there before"
    assert cache.get([file]) is None


@pytest.mark.parametrize("content", ["", "[]", "{", "\0"])
def test_damaged_cache_is_replaced(make_checkpoint: Make, tmp_path: Path, content: str) -> None:
    cache = DigestCache(tmp_path / "digests.json")
    cache.path.write_text(content)
    with CheckpointReader(make_checkpoint("c", {"a": A})) as reader:
        digest = source_digest(reader, cache=cache)
        assert cache.get(reader.deciding_files) == digest


def test_cache_that_cannot_be_written_is_no_error(make_checkpoint: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = DigestCache(tmp_path / "file" / "digests.json")
    with CheckpointReader(make_checkpoint("c", {"a": A})) as reader:
        assert len(source_digest(reader, cache=cache)) == 64


def test_cache_keeps_every_entry_of_concurrent_processes(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from workers.digest import DigestCache\n"
        "cache = DigestCache(Path(sys.argv[1]) / 'digests.json')\n"
        "for n in range(15):\n"
        "    file = Path(sys.argv[1]) / f'{sys.argv[2]}-{n}'\n"
        "    file.write_text(''); cache.find([file], lambda: sys.argv[2])\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path), f"p{index}"])
        for index in range(4)
    ]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    cache = DigestCache(tmp_path / "digests.json")
    for index in range(4):
        for n in range(15):
            assert cache.get([tmp_path / f"p{index}-{n}"]) == f"p{index}"


def test_cache_lives_under_the_xdg_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert DigestCache().path == Path("/somewhere/mergefront/digests.json")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert DigestCache().path == Path.home() / ".cache/mergefront/digests.json"
