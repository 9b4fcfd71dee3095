"""Waiting for what another process or thread does."""

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def wait_until(
    condition: Callable[[], Found],
    what: str = "it",
    timeout_s: float = 300.0,
    every_s: float = 0.05,
) -> Found:
    """Ask until the answer is true, and return it; fails when the time is up."""
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(every_s)
    return found
