"""Where checkpoints are kept: the decision, and what a store does with it."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from configs.errors import ConfigError
from workers.block import Block, whole
from workers.checkpoint import CheckpointReader
from workers.residency import (
    Memory,
    Placement,
    TensorStore,
    choose_placement,
    measure_memory,
    page_out,
)

GB = 10**9
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wanted", "device", "source_gb", "memory", "expected"),
    [
        # 80 GB of GPU, of which 20 stay free.
        ("auto", "cuda", 40, Memory(500 * GB, 64 * GB, 80 * GB), "gpu"),
        ("auto", "cuda", 45, Memory(500 * GB, 64 * GB, 80 * GB), "pinned"),
        ("auto", "cuda", 260, Memory(500 * GB, 64 * GB, 80 * GB), "streamed"),
        ("auto", "cpu", 60, Memory(100 * GB), "mapped"),
        ("auto", "cpu", 90, Memory(100 * GB), "streamed"),
        ("gpu", "cuda", 40, Memory(10 * GB, 64 * GB, 80 * GB), "gpu"),
        ("host", "cuda", 40, Memory(500 * GB, 64 * GB, 80 * GB), "pinned"),
        ("host", "cpu", 40, Memory(100 * GB), "mapped"),
        ("disk", "cuda", 1, Memory(500 * GB, 64 * GB, 80 * GB), "streamed"),
        ("disk", "cpu", 1, Memory(500 * GB), "streamed"),
    ],
)
def test_fastest_place_with_room_is_chosen(
    wanted: str, device: str, source_gb: int, memory: Memory, expected: Placement
) -> None:
    assert expected == choose_placement(
        wanted, device_type=device, source_bytes=source_gb * GB, memory=memory
    )


@pytest.mark.parametrize(
    ("wanted", "device", "message"),
    [
        ("gpu", "cpu", "`gpu` needs `workers.device: cuda`, found cpu"),
        ("gpu", "cuda", r"`gpu` needs 90\.0 GB for the checkpoints, the GPU has room for 44\.0 GB"),
        ("host", "cuda", r"the memory of this machine has room for 50\.0 GB of them; use `auto`"),
    ],
)
def test_place_asked_for_by_name_is_refused_when_there_is_no_room(
    wanted: str, device: str, message: str
) -> None:
    memory = Memory(100 * GB, 64 * GB, 80 * GB)
    with pytest.raises(ConfigError, match=message):
        choose_placement(wanted, device_type=device, source_bytes=90 * GB, memory=memory)


@pytest.fixture
def reader(make_checkpoint: Callable[..., Path]) -> CheckpointReader:
    return CheckpointReader(make_checkpoint("a", {"t": torch.arange(2**22, dtype=torch.float32)}))


def resident_kib() -> int:
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(r"RssFile:\s+(\d+)", text)[1])


def test_streamed_pages_leave_memory_after_use_and_mapped_ones_stay(
    reader: CheckpointReader,
) -> None:
    for placement, leaves in (("mapped", False), ("streamed", True)):
        store = TensorStore(placement)
        tensor = store.block("d", reader, "t", whole(2**22), CPU)
        expected = tensor.sum()
        before = resident_kib()
        store.release(tensor)
        # 16 MiB, and what else the process maps.
        assert (before - resident_kib() > 15 * 1024) == leaves
        assert tensor.sum() == expected


def test_streamed_columns_leave_memory_after_use(reader: CheckpointReader) -> None:
    # Half of every row of 16 KiB, as a rank reads it whose share are columns.
    columns = Block(start=2**11, width=2**11, rows=2**10, stride=2**12)
    store = TensorStore("streamed")
    tensor = store.block("d", reader, "t", columns, CPU)
    expected = tensor.sum()
    before = resident_kib()
    store.release(tensor)
    assert before - resident_kib() > 7 * 1024
    assert tensor.sum() == expected


def test_pages_of_memory_that_is_no_file_keep_what_they_hold() -> None:
    tensor = torch.arange(2**20)
    page_out(tensor)
    assert torch.equal(tensor, torch.arange(2**20))


def test_kept_block_is_read_once_and_holds_nothing_else(reader: CheckpointReader) -> None:
    store, block = TensorStore("gpu"), Block(8, 4, 3, 16)
    kept = store.block("d", reader, "t", block, CPU)
    assert kept.tolist() == [[8, 9, 10, 11], [24, 25, 26, 27], [40, 41, 42, 43]]
    assert store.block("d", reader, "t", block, CPU) is kept
    assert store.block("other", reader, "t", block, CPU) is not kept
    store.clear()
    assert store.block("d", reader, "t", block, CPU) is not kept


def test_momentary_read_is_cut_from_what_is_kept_whole(reader: CheckpointReader) -> None:
    store = TensorStore("gpu")
    part = store.read("d", reader, "t", Block(5, 3), CPU)
    assert part.tolist() == [5, 6, 7]
    kept = store.block("d", reader, "t", whole(2**22), CPU)
    store._kept = {key: torch.zeros_like(kept) for key in store._kept}
    assert store.read("d", reader, "t", Block(5, 3), CPU).tolist() == [0, 0, 0]


@pytest.mark.parametrize("lacks", ["driver", "room"])
def test_what_cannot_be_page_locked_stays_mapped(
    reader: CheckpointReader, lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        if lacks == "driver":
            raise RuntimeError("no more page-locked memory")
        return tensor.clone()

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    available = 16 * GB if lacks == "driver" else 2 * GB
    memory = SimpleNamespace(available=available, total=20 * GB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    store = TensorStore("pinned")
    kept = store.block("d", reader, "t", whole(2**22), CPU)
    assert kept.data_ptr() == reader.tensor("t").data_ptr()
    assert store.block("d", reader, "t", whole(2**22), CPU) is kept


def test_process_counts_with_its_share_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 80 GB, two processes with models of 14 GB each have started."""
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (52 * GB, 80 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 14 * GB)
    whole_gpu, half = measure_memory(cuda), measure_memory(cuda, 0.5)
    assert (whole_gpu.gpu_free, whole_gpu.gpu_total) == (52 * GB, 80 * GB)
    assert (half.gpu_free, half.gpu_total) == (26 * GB, 40 * GB)


@pytest.mark.gpu
@pytest.mark.parametrize("placement", ["gpu", "pinned"])
def test_copies_are_on_the_device_or_pinned(reader: CheckpointReader, placement: Placement) -> None:
    cuda = torch.device("cuda", 0)
    kept = TensorStore(placement).block("d", reader, "t", whole(2**22), cuda)
    assert kept.is_cuda == (placement == "gpu")
    assert kept.is_pinned() == (placement == "pinned")
    assert torch.equal(kept.cpu(), reader.tensor("t"))
