"""A cluster whose hosts can be turned off and cut off, for the campaign of faults.

A head without room for workers, on which drivers run, and two hosts with room: namespaces of this
machine (``scripts.bench.hosts``), with the links between them.
"""

import contextlib
import random
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Self

import psutil

from scripts.bench.hosts import Host, Network

_SHORTEST_CUT_S, _LONGEST_CUT_S = 1.0, 30.0


class HostCluster:
    """Three hosts, until the context ends.

    Raises:
        HostsUnavailableError: They cannot be made on this machine.
    """

    suffers = frozenset({"node_killed", "link_cut", "head_killed"})

    def __init__(self) -> None:
        self._network = Network("head", "one", "two")
        self._nodes = [host for host in self._network.hosts.values() if host is not self._head]
        # Host -> when its link comes back, by ``time.monotonic``.
        self._cut: dict[Host, float] = {}
        try:
            self._network.turn_on()
        except BaseException:
            self._network.close()
            raise

    @property
    def address(self) -> str:
        """What a driver joins, on the head."""
        return f"{self._head.address}:6379"

    @property
    def num_up(self) -> int:
        """Nodes with room that are part of the cluster."""
        return len(self._up())

    def start(self, arguments: Sequence[str], errors: IO[bytes]) -> "subprocess.Popen[str]":
        """Start a driver on the head."""
        return self._head.start(*arguments, stderr=errors)

    def send(self, driver: "subprocess.Popen[str]", number: signal.Signals) -> None:
        """Send a signal to a driver, which the program that was started has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(driver.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)

    def worker(self, name: str) -> psutil.Process | None:
        """Return the process of a worker, whose name has its number on its host."""
        place = name.rpartition("@")[2]
        host_name, _, pid = place.rpartition(":")
        if (host := self._network.hosts.get(host_name)) is None:
            return None
        found = host.processes("ray::WorkerActor")
        return next((process for process in found if _inner_pid(process) == int(pid)), None)

    def break_part(self, kind: str, rng: random.Random) -> bool:
        """Turn a node or the head off, which come on again, or cut a node off for a while.

        Returns:
            Whether it could be; the last node is left alone until another has come up.
        """
        if kind == "head_killed":
            self._head.turn_off()
            return True
        if len(up := self._up()) < 2:
            return False
        node = rng.choice(up)
        if kind == "link_cut":
            node.cut()
            self._cut[node] = time.monotonic() + rng.uniform(_SHORTEST_CUT_S, _LONGEST_CUT_S)
        else:
            node.turn_off()
            node.turn_on_again()
        return True

    def mend(self) -> None:
        """Put cables back whose time has come, and start again what has ended.

        Where the head was off, the nodes go with it, as on a cluster that somebody manages: they
        know only the one that is gone. This waits for all of them.
        """
        now = time.monotonic()
        for node in [node for node, until in self._cut.items() if until <= now]:
            node.mend()
            del self._cut[node]
        for node in self._nodes:
            node.see_to_it()
        if not self._head.is_on:
            for node in self._nodes:
                node.turn_off()
                node.mend()
            self._cut.clear()
            self._network.turn_on()

    def close(self) -> None:
        """Turn everything off and remove it."""
        self._network.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def _head(self) -> Host:
        return self._network.head

    def _up(self) -> list[Host]:
        return [
            node
            for node in self._nodes
            if node not in self._cut and node.has_started and node.processes("raylet/raylet")
        ]


def _inner_pid(process: psutil.Process) -> int | None:
    """Return the number of a process in the innermost namespace that it is in."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("NSpid:"):
                return int(line.split()[-1])
    return None
