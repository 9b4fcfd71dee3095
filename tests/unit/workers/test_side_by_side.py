"""Work on many tensors at once."""

import threading
from collections.abc import Callable, Iterator

import pytest
import torch

from workers.side_by_side import do_side_by_side


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_work_is_done_by_as_many_threads_as_torch_has() -> None:
    meeting = threading.Barrier(2, timeout=30)
    seen = []

    def work() -> None:
        # Passes only when another thread is here at the same time.
        meeting.wait()
        seen.append((torch.get_num_threads(), torch.is_grad_enabled()))

    do_side_by_side([work] * 4, device_type="cpu")
    assert seen == [(1, False)] * 4
    assert torch.get_num_threads() == 2
    assert torch.is_grad_enabled()


def test_interrupted_start_leaves_no_thread_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def interrupted(thread: threading.Thread) -> None:
        if started:
            raise KeyboardInterrupt
        started.append(thread)
        start(thread)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    monkeypatch.setattr(threading.Thread, "start", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            do_side_by_side([lambda: None], device_type="cpu")
        assert torch.get_num_threads() == 3
        assert not started[0].is_alive()
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_first_pieces_are_begun_while_later_ones_are_made() -> None:
    begun = threading.Event()

    def make() -> Iterator[Callable[[], object]]:
        yield begun.set
        assert begun.wait(timeout=30)
        yield lambda: None

    do_side_by_side(make(), device_type="cpu")


@pytest.mark.usefixtures("two_threads")
def test_first_error_in_order_is_raised_and_what_has_not_begun_is_left() -> None:
    both, begun = threading.Barrier(2, timeout=30), []

    def fail(message: str) -> None:
        both.wait()
        raise ValueError(message)

    works = [lambda: fail("first"), lambda: fail("second")]
    works += [lambda index=index: begun.append(index) for index in range(100)]
    with pytest.raises(ValueError, match="first"):
        do_side_by_side(works, device_type="cpu")
    assert begun == []
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_error_while_work_is_made_stops_what_has_not_begun() -> None:
    gate, begun = threading.Event(), []

    def make() -> Iterator[Callable[[], object]]:
        yield lambda: gate.wait(timeout=30)
        for index in range(100):
            yield lambda index=index: begun.append(index)
        gate.set()
        raise KeyError("given up")

    with pytest.raises(KeyError, match="given up"):
        do_side_by_side(make(), device_type="cpu")
    # Some may have begun between the gate and the error, not all.
    assert len(begun) < 100
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize(("threads", "device_type"), [(1, "cpu"), (2, "cuda")])
def test_one_thread_does_its_work_as_it_is_made(threads: int, device_type: str) -> None:
    before, done = torch.get_num_threads(), []
    torch.set_num_threads(threads)

    def make() -> Iterator[Callable[[], object]]:
        yield lambda: done.append(threading.current_thread())
        assert done == [threading.current_thread()]

    try:
        do_side_by_side(make(), device_type=device_type)
    finally:
        torch.set_num_threads(before)
