"""What can be broken: a Ray of several nodes on this machine, and a disk that is soon full.

Every node is a ``ray start --block`` of its own: a head without room for workers, and nodes with
room. They share the machine's address; ``scripts.bench.fault_hosts`` has hosts with addresses of
their own, whose links can be cut, where this machine lets us make them.
"""

import contextlib
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, Self

import psutil

from configs.errors import ClusterError
from workers.local_session import LocalSession

_ROOT = Path(__file__).parents[2]
# Losses show after a few seconds instead of a minute, but not where a busy machine answers late.
_VARIABLES = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(_ROOT),
}
_OBJECT_STORE_BYTES = 80_000_000
_START_S = 240.0


class Breakable(Protocol):
    """A cluster on which searches are disturbed.

    ``suffers`` are the kinds of faults that ``break_part`` can do to it.
    """

    suffers: frozenset[str]

    @property
    def address(self) -> str:
        """What a driver joins."""

    @property
    def num_up(self) -> int:
        """Nodes that can take workers now."""

    def start(self, arguments: Sequence[str], errors: IO[bytes]) -> "subprocess.Popen[str]":
        """Start a driver, whose standard output is a pipe."""

    def send(self, driver: "subprocess.Popen[str]", number: signal.Signals) -> None:
        """Send a signal to a driver and whatever it started, as a terminal does."""

    def worker(self, name: str) -> psutil.Process | None:
        """Return the process of a worker by its name, ``SLOT@HOST:PID``, if it is there."""

    def break_part(self, kind: str, rng: random.Random) -> bool:
        """Let a fault strike; returns whether it could."""

    def mend(self) -> None:
        """See to it that what broke comes back; called again and again."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A ``ray start``, and where it says how it goes."""

    process: "subprocess.Popen[bytes]"
    log: Path

    def raylets(self) -> list[psutil.Process]:
        """Return the process that starts workers, if it is there."""
        try:
            children = psutil.Process(self.process.pid).children()
            return [child for child in children if child.name() == "raylet"]
        except psutil.NoSuchProcess:
            return []

    def wait_until_up(self) -> None:
        """Wait until the node is part of the cluster.

        Raises:
            ClusterError: It is not in time, or its processes have ended.
        """
        end = time.monotonic() + _START_S
        while "Ray runtime started." not in (said := self.log.read_text(errors="replace")):
            if self.process.poll() is not None or time.monotonic() > end:
                raise ClusterError(f"a node of Ray does not start on this machine: {said[-2000:]}")
            time.sleep(0.2)


class LocalCluster:
    """A head and nodes, until the context ends; kill -9 of this process ends them, too.

    Args:
        num_nodes: Nodes beside the head, with room for one CPU's work each.
        head_cpus: Room on the head itself.
        has_jobs: Whether it has a dashboard, which serves the Jobs API.

    Attributes:
        token: What everybody who talks to it must show.
    """

    suffers = frozenset({"node_killed"})

    def __init__(self, num_nodes: int = 2, *, head_cpus: int = 0, has_jobs: bool = False) -> None:
        self._session = LocalSession()
        self._port, self._client_port = _free_port(), _free_port()
        self._dashboard_port = _free_port()
        self.token = secrets.token_hex(16)
        self._number = 0
        # The agent starts the jobs; at its usual port may be that of another Ray.
        jobs = (
            f"--dashboard-port={self._dashboard_port}",
            f"--dashboard-agent-listen-port={_free_port()}",
        )
        self._head = self._start(
            "--head", f"--port={self._port}", f"--ray-client-server-port={self._client_port}",
            f"--num-cpus={head_cpus}", f"--include-dashboard={str(has_jobs).lower()}",
            *(jobs if has_jobs else ()),
        )  # fmt: skip
        self._nodes: list[_Node] = []
        try:
            self._head.wait_until_up()
            for _ in range(num_nodes):
                self._add()
                # One after another: on a busy machine two at once may both be too late.
                self._nodes[-1].wait_until_up()
        except BaseException:
            self.close()
            raise

    @property
    def address(self) -> str:
        """What a driver joins."""
        return f"127.0.0.1:{self._port}"

    @property
    def client_address(self) -> str:
        """What a driver joins that is no part of the cluster."""
        return f"ray://127.0.0.1:{self._client_port}"

    @property
    def dashboard(self) -> str:
        """Address of the Jobs API."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    def environment(self) -> dict[str, str]:
        """Variables of every process of the cluster and of its drivers; nobody else's Ray."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {**kept, **_VARIABLES, **token, "TMPDIR": str(self._session.directory)}

    @property
    def num_up(self) -> int:
        """Nodes with room whose raylet runs."""
        return sum(bool(node.raylets()) for node in self._nodes)

    def break_part(self, kind: str, rng: random.Random) -> bool:
        """Kill -9 the raylet of a node, and start another node; its workers end by themselves.

        Returns:
            Whether there was one to kill; the last is left alone until another has come up.
        """
        self.mend()
        up = [node for node in self._nodes if node.raylets()]
        if kind not in self.suffers or len(up) < 2:
            return False
        node = rng.choice(up)
        for raylet in node.raylets():
            raylet.kill()
        self._nodes.remove(node)
        self._add()
        return True

    def kill_head(self) -> None:
        """Kill -9 every process of the head, as if its machine were gone; nodes are left alone."""
        head = psutil.Process(self._head.process.pid)
        for process in [head, *head.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    def mend(self) -> None:
        """Start nodes again that gave up to start, as a busy machine makes them."""
        for node in [node for node in self._nodes if node.process.poll() is not None]:
            self._nodes.remove(node)
            self._add()

    def start(self, arguments: Sequence[str], errors: IO[bytes]) -> "subprocess.Popen[str]":
        """Start a driver on this machine."""
        return subprocess.Popen(
            arguments, cwd=_ROOT, env=self.environment(), stdout=subprocess.PIPE, stderr=errors,
            text=True, start_new_session=True,
        )  # fmt: skip

    def send(self, driver: "subprocess.Popen[str]", number: signal.Signals) -> None:
        """Send a signal to a driver's group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(driver.pid, number)

    def worker(self, name: str) -> psutil.Process | None:
        """Return a worker that was started by a node that is still there."""
        ours = {node.process.pid for node in [self._head, *self._nodes]}
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(name.rpartition(":")[2]))
            if any(parent.pid in ours for parent in process.parents()):
                return process
        return None

    def close(self) -> None:
        """End every process, and remove what they wrote."""
        for node in [*self._nodes, self._head]:
            node.process.kill()
        # `ray start` was killed before its children, which have their logs open.
        self._session.end_processes()
        for node in [*self._nodes, self._head]:
            node.process.wait()
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _add(self) -> None:
        self._nodes.append(self._start(f"--address={self.address}", "--num-cpus=1"))

    def _start(self, *options: str) -> _Node:
        self._number += 1
        log = self._session.directory / f"start{self._number}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block",
                    "--node-ip-address=127.0.0.1", "--include-log-monitor=false",
                    "--disable-usage-stats",
                    # One each: a node unpacks code where it is at work already for another.
                    f"--temp-dir={self._session.directory}/ray{self._number}",
                    f"--object-store-memory={_OBJECT_STORE_BYTES}",
                ],
                env=self.environment(), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True, cwd=self._session.directory,
            )  # fmt: skip
        return _Node(process, log)


class SmallDisk:
    """A file system of a few MB, or where none can be mounted, none at all."""

    def __init__(self, directory: Path, size_mb: int = 8) -> None:
        self.directory = directory
        directory.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size_mb}m", "tmpfs", str(directory)]
        done = None
        if os.geteuid() == 0:
            done = subprocess.run(mount, check=False, capture_output=True)
        self.is_there = done is not None and done.returncode == 0

    def fill(self) -> bool:
        """Leave no room, not a byte; returns True."""
        with contextlib.suppress(OSError), (self.directory / "ballast").open("ab") as file:
            while True:
                file.write(bytes(4096))
                file.flush()
        return True

    def empty(self) -> None:
        """Give the room back."""
        (self.directory / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Unmount it."""
        if self.is_there:
            subprocess.run(["umount", "-l", str(self.directory)], check=True)


def _free_port() -> int:
    """Return a port that nobody listens on, of those that are given to nobody who asks for any.

    Ray's servers share a port with whoever is on it already, without a word.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
