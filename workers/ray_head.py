"""The head of a cluster while a search runs on it: saying that it is gone before Ray ends us.

Who joined a cluster directly works on with its workers when the head goes, until the first call
that needs it: that one hangs, and after a minute without an answer Ray's core ends the process with
a line of its own, which nothing can catch. Over ``ray://`` calls raise bare errors instead. Where
to start: :func:`watching_head`.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray.exceptions

from configs.errors import ClusterError
from workers.ray_door import CLIENT, ask, port_of

_LOOK_S = 2.0
# Ray's own: how long its core waits for the head before it ends the process.
_VARIABLE, _ENDS_S = "RAY_gcs_rpc_server_reconnect_timeout_s", 60.0
# Shares of that time: a head that comes back in time (its state is
# in Redis then) goes on, and what follows its loss has to be over before.
_LOST_SHARE = 0.6
_LEAVE_SHARE = 0.2


@contextmanager
def watching_head(
    address: str | None, on_stuck: Callable[[ClusterError], None] | None = None
) -> Iterator[Callable[[], None]]:
    """Turn the loss of a cluster's head into a ClusterError, as long as the context lasts.

    Args:
        address: ``workers.address``; None for a Ray of our own, which is not watched.
        on_stuck: Called from another thread with the error when the context has not ended a while
            after the head was lost, since a call of Ray hangs; it must end the process.

    Yields:
        What the driver calls between two steps; raises the error where the head is lost.

    Raises:
        ClusterError: The head is lost.
    """
    if address is None:
        yield lambda: None
        return
    watch = None if address.startswith(CLIENT) else _Watch(address, on_stuck)
    try:
        yield watch.check if watch else lambda: None
    except (ConnectionError, ray.exceptions.RayError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ClusterError(f"the cluster at `{address}` is lost ({reason.rstrip('.')})") from error
    finally:
        if watch is not None:
            watch.close()


class _Watch:
    """A thread that asks the head every few seconds whether it is there."""

    def __init__(self, address: str, on_stuck: Callable[[ClusterError], None] | None) -> None:
        self._address = address
        self._on_stuck = on_stuck
        ray_ends_s = float(os.environ.get(_VARIABLE, _ENDS_S))
        self._lost_s, self._leave_s = _LOST_SHARE * ray_ends_s, _LEAVE_SHARE * ray_ends_s
        self._lost: ClusterError | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._look, name="head watch", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Raise the error where the head is lost."""
        if self._lost is not None:
            raise self._lost

    def close(self) -> None:
        """Look no further."""
        self._closed.set()
        self._thread.join(timeout=_LOOK_S)

    def _look(self) -> None:
        target, answered_at = port_of(self._address), time.monotonic()
        while target is not None and not self._closed.wait(_LOOK_S):
            answer = ask(target, timeout_s=_LOOK_S)
            if answer is None or answer.is_there:
                answered_at = time.monotonic()
            elif (silent_s := time.monotonic() - answered_at) >= self._lost_s:
                self._lost = ClusterError(
                    f"the head of the cluster at `{self._address}` is lost: nobody has answered "
                    f"there for {silent_s:.0f} s"
                )
                break
        if self._lost is not None and not self._closed.wait(self._leave_s) and self._on_stuck:
            self._on_stuck(self._lost)
