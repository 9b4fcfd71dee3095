"""Work on many tensors at once: by threads of our own, each of which has torch to itself.

Torch's own threads wait for each other after every operation, and while one thread prepares the
next operation all others idle; with tensors of a few million elements that is half of the time.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event

import torch
from torch import Tensor

Run = Callable[[Callable[[], None]], None]


@contextmanager
def side_by_side(tensors: Sequence[Tensor]) -> Iterator[Run]:
    """Give a function that runs work, as many at a time as torch may use threads.

    On a GPU, which one thread keeps busy, and for a single thread, work is done as it is given.
    All of it is done when the context ends, which raises what the first that failed, in the order
    given, raised; what has not begun when something fails is left. Gradients are off.

    Args:
        tensors: What the work writes to.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or any(tensor.device.type != "cpu" for tensor in tensors):
        with torch.no_grad():
            yield lambda work: work()
        return
    futures: list[Future[None]] = []
    has_failed = Event()

    def attempt(work: Callable[[], None]) -> None:
        if has_failed.is_set():
            return
        try:
            with torch.no_grad():
                work()
        except BaseException:
            has_failed.set()
            raise

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(num_threads, initializer=_start) as executor:
            try:
                yield lambda work: futures.append(executor.submit(attempt, work))
            except BaseException:
                has_failed.set()
                raise
    finally:
        torch.set_num_threads(num_threads)
    for future in futures:
        future.result()


def _start() -> None:
    # Of every thread its own, and not that of the one which started it.
    torch.set_num_threads(1)
