"""Parts of tensors are made in the memory of the file, side by side, and written in order."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from configs.errors import CheckpointError
from workers import part_stream, shard_file
from workers.block import Block
from workers.checkpoint_writer import CheckpointWriter
from workers.compiled import Step
from workers.digest import weights_digest
from workers.part_stream import write_parts
from workers.shard_header import TensorEntry

BLOCK = 4096
CPU = torch.device("cpu")

DRAW = torch.Generator().manual_seed(0)
TENSORS = {
    "a": torch.randn(7, 1111, generator=DRAW).to(torch.bfloat16),
    "b": torch.randn(50, 333, generator=DRAW),
    "c": torch.randn(3, generator=DRAW),
    "counter": torch.tensor([3, 1, 2]),
    "d": torch.zeros(0, 5),
    "e": torch.randn(20_001, generator=DRAW),
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors that go round the memory of a file several times."""
    monkeypatch.setattr(shard_file, "BLOCK_BYTES", BLOCK)
    waiting = (shard_file._NUM_BLOCKS - 1) * BLOCK
    monkeypatch.setattr(part_stream, "MAX_WAITING_BYTES", waiting)
    monkeypatch.setattr(part_stream, "PART_BYTES", BLOCK)


def entries_of(tensors: dict[str, Tensor]) -> list[TensorEntry]:
    return [
        TensorEntry(name, str(t.dtype).removeprefix("torch."), tuple(t.shape), "", t.nbytes)
        for name, t in tensors.items()
    ]


class Copying:
    """Prepares copies of parts, some of which take longer than the next ones."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors
        self.blocks: list[tuple[str, Block]] = []
        self.prepared_by: set[int] = set()
        self.num_done = 0

    def __call__(self, name: str, part: Tensor, block: Block) -> Step:
        self.blocks.append((name, block))
        self.prepared_by.add(threading.get_ident())
        is_last = block.end == self.tensors[name].numel()
        delay = 0.02 if is_last else 0.003 * (len(self.blocks) % 3)

        def copy() -> None:
            time.sleep(delay)
            part.copy_(self.tensors[name].reshape(-1)[block.start : block.end])
            self.num_done += 1

        return copy


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: request.param)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_file_holds_what_the_parts_were_filled_with(tmp_path: Path, max_shard_bytes: int) -> None:
    prepare, entries = Copying(TENSORS), entries_of(TENSORS)
    finished: list[tuple[int, bool]] = []

    def merged() -> None:
        finished.append((prepare.num_done, (tmp_path / "out").exists()))

    with CheckpointWriter(tmp_path / "out", entries, max_shard_bytes=max_shard_bytes) as writer:
        digest = write_parts(
            writer, {e.name: e for e in entries}, prepare, device=CPU, merged=merged
        )
    found = {
        name: tensor
        for path in (tmp_path / "out").glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    assert digest == weights_digest(TENSORS.items())
    # Once, after the last part and before the directory has its name.
    assert finished == [(len(prepare.blocks), False)]
    assert prepare.prepared_by == {threading.get_ident()}


def test_parts_end_where_rows_do_and_where_the_memory_does(tmp_path: Path) -> None:
    prepare, entries = Copying(TENSORS), entries_of(TENSORS)
    with CheckpointWriter(tmp_path / "out", entries) as writer:
        write_parts(writer, {e.name: e for e in entries}, prepare, device=CPU)
    ends = [block.end for name, block in prepare.blocks if name == "b"]
    assert ends[-1] == TENSORS["b"].numel()
    elsewhere = [end for end in ends if end % 333]
    # 66,600 bytes go three or four times around 24 KiB.
    assert len(elsewhere) <= 4
    assert len(ends) > 10


@pytest.mark.parametrize("values", [(1.0, float("nan")), (float("inf"), -float("inf"))])
def test_element_that_is_not_finite_stops_everything(
    tmp_path: Path, values: Sequence[float]
) -> None:
    wrong = TENSORS["e"].clone()
    wrong[15_000], wrong[15_001] = values
    tensors = TENSORS | {"e": wrong}
    entries = entries_of(tensors)
    with (
        pytest.raises(CheckpointError, match=r"`e`: the merge is not finite: element 1500"),
        CheckpointWriter(tmp_path / "out", entries) as writer,
    ):
        write_parts(writer, {e.name: e for e in entries}, Copying(tensors), device=CPU)
    assert list(tmp_path.iterdir()) == []
