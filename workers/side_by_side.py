"""Many pieces of work at once: by threads of our own, each of which has torch to itself.

Torch's own threads wait for each other after every operation, and while one thread prepares the
next operation all others idle; with tensors of a few million elements that is half of the time.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from queue import SimpleQueue

import torch

Work = Callable[[], object]

_Queue = SimpleQueue[tuple[int, Work] | None]


def do_side_by_side(works: Iterable[Work], *, device_type: str) -> None:
    """Do everything, as many at a time as torch may use threads; gradients are off.

    The first pieces are begun while later ones are made: where ``works`` is a generator, it runs in
    the calling thread. On a GPU, which one thread keeps busy, everything is done as it is made.
    When something fails, what has not begun is left.

    Args:
        works: What to do, begun in this order.
        device_type: Of the device where the work is done.

    Raises:
        BaseException: Of what failed, the first in the order given.
    """
    num_threads = torch.get_num_threads()
    if num_threads == 1 or device_type != "cpu":
        with torch.no_grad():
            for work in works:
                work()
        return
    waiting: _Queue = SimpleQueue()
    failures: dict[int, BaseException] = {}
    helpers = [
        threading.Thread(target=_drain, args=(waiting, failures)) for _ in range(num_threads - 1)
    ]
    numbers = count()
    try:
        for helper in helpers:
            helper.start()
        try:
            with torch.no_grad():
                for work in works:
                    waiting.put((next(numbers), work))
        except BaseException as error:  # noqa: BLE001 - raised below
            failures[next(numbers)] = error
        for _ in range(num_threads):
            waiting.put(None)
        _drain(waiting, failures)
    finally:
        _end(helpers, waiting)
        torch.set_num_threads(num_threads)
    if failures:
        raise failures[min(failures)]


def _end(helpers: Sequence[threading.Thread], waiting: _Queue) -> None:
    """Wait for the helpers, which end where they were interrupted, too, before they were told."""
    for _ in helpers:
        waiting.put(None)
    for helper in helpers:
        if helper.ident is not None:
            helper.join()


def _drain(waiting: _Queue, failures: dict[int, BaseException]) -> None:
    """Do what waits, until there is no more or something has failed."""
    # Of every thread its own, as is that gradients are off.
    torch.set_num_threads(1)
    with torch.no_grad():
        while (item := waiting.get()) is not None and not failures:
            index, work = item
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised by whoever gave the work
                failures[index] = error
