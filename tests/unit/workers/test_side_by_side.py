"""Work on many tensors at once."""

import threading
import time

import pytest
import torch

from workers.side_by_side import side_by_side

CPU = [torch.empty(1)]


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_work_is_done_by_as_many_threads_as_torch_has(two_threads) -> None:
    meeting = threading.Barrier(2, timeout=30)
    threads = []

    def work() -> None:
        # Passes only when another thread is here at the same time.
        meeting.wait()
        threads.append((torch.get_num_threads(), torch.is_grad_enabled()))

    with side_by_side(CPU) as run:
        for _ in range(4):
            run(work)
    assert threads == [(1, False)] * 4
    assert torch.get_num_threads() == 2


def test_first_error_is_raised_and_what_has_not_begun_is_left(two_threads) -> None:
    begun = []

    def fail() -> None:
        raise ValueError("broken")

    def give_work() -> None:
        with side_by_side(CPU) as run:
            run(fail)
            time.sleep(0.1)
            for index in range(100):
                run(lambda index=index: begun.append(index))

    with pytest.raises(ValueError, match="broken"):
        give_work()
    assert begun == []
    assert torch.get_num_threads() == 2


def test_one_thread_does_its_work_at_once() -> None:
    before, done = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with side_by_side(CPU) as run:
            run(lambda: done.append(threading.current_thread()))
            assert done == [threading.current_thread()]
    finally:
        torch.set_num_threads(before)


def test_work_is_left_when_whoever_gives_it_fails(two_threads) -> None:
    begun, gate = [], threading.Event()

    def give_work() -> None:
        with side_by_side(CPU) as run:
            for _ in range(2):
                run(lambda: gate.wait(timeout=0.2))
            for index in range(100):
                run(lambda index=index: begun.append(index))
            raise KeyError("given up")

    with pytest.raises(KeyError, match="given up"):
        give_work()
    assert begun == []
