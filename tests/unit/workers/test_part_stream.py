"""Parts of tensors are made in the memory of the file, side by side, and written in order."""

import threading
import time
from collections.abc import Iterator, Sequence
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
COMPILED = 500
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
    monkeypatch.setattr(part_stream, "_COMPILED_ELEMENTS", COMPILED)


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
        self.done: list[Block] = []
        # Of each part: how many of those before it were not made yet.
        self.num_under_way: list[int] = []

    def __call__(self, name: str, part: Tensor, block: Block) -> Step:
        self.num_under_way.append(len(self.blocks) - len(self.done))
        self.blocks.append((name, block))
        self.prepared_by.add(threading.get_ident())
        is_last = block.end == self.tensors[name].numel()
        delay = 0.02 if is_last else 0.003 * (len(self.blocks) % 3)

        def copy() -> None:
            time.sleep(delay)
            part.copy_(self.tensors[name].reshape(-1)[block.start : block.end])
            self.done.append(block)

        return copy


@pytest.fixture(params=[1, 3], ids=["one thread", "three threads"])
def _threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("max_shard_bytes", [10**9, 30_000])
def test_file_holds_what_the_parts_were_filled_with(tmp_path: Path, max_shard_bytes: int) -> None:
    prepare, entries = Copying(TENSORS), entries_of(TENSORS)
    finished: list[tuple[int, bool]] = []

    def merged() -> None:
        finished.append((len(prepare.done), (tmp_path / "out").exists()))

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


@pytest.mark.usefixtures("_threads")
def test_parts_are_made_ahead_once_the_first_large_one_is_there(tmp_path: Path) -> None:
    """The first compiles, and those beside it would compile the same."""
    prepare, entries = Copying(TENSORS), entries_of(TENSORS)
    with CheckpointWriter(tmp_path / "out", entries) as writer:
        write_parts(writer, {e.name: e for e in entries}, prepare, device=CPU)
    assert [name for name, _ in prepare.blocks[:3]] == ["counter", "b", "b"]
    assert prepare.num_under_way[:3] == [0, 0, 0]
    # To the end: what is there makes room again.
    assert max(prepare.num_under_way[len(prepare.blocks) // 2 :]) > 1


@pytest.mark.parametrize(("name", "place"), [("e", 15_000), ("a", 7_775)], ids=["amid", "last"])
@pytest.mark.parametrize("values", [(1.0, float("nan")), (float("inf"), -float("inf"))])
def test_element_that_is_not_finite_stops_everything(
    tmp_path: Path, values: Sequence[float], name: str, place: int
) -> None:
    wrong = TENSORS[name].clone()
    wrong.view(-1)[place], wrong.view(-1)[place + 1] = values
    tensors = TENSORS | {name: wrong}
    entries = entries_of(tensors)
    message = f"`{name}`: the merge is not finite: element {place // 10}"
    with (
        pytest.raises(CheckpointError, match=message),
        CheckpointWriter(tmp_path / "out", entries) as writer,
    ):
        write_parts(writer, {e.name: e for e in entries}, Copying(tensors), device=CPU)
    assert list(tmp_path.iterdir()) == []
