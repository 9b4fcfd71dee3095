"""Several hosts on this machine, each with an address, a Ray node and a power switch of its own.

A host is a network namespace on a bridge, with its own processes and its own directory for Ray's
files; the file system is shared, as on a cluster with a network file system. Needs root and
iproute2. What Ray does when a host, a link or the head fails, it does here as on real machines.
"""

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Self

import psutil

ROOT = Path(__file__).parents[2]
TOKEN = secrets.token_hex(16)

# Losses show after about ten seconds instead of a minute, but not where a busy machine answers
# late. A node that was cut off is left to itself, so that its old actors run on for a while.
_FAST_DETECTION = {
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1500",
    "RAY_health_check_timeout_ms": "4000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_raylet_start_wait_time_s": "60",
}
# Of a worker that imports no torch; Ray asks for at least 75 MB.
_OBJECT_STORE_BYTES = 80_000_000
_START_S = 240
# Every host has its ports to itself. A raylet gives up after 15 s where it waits for agents to
# choose theirs.
_PORTS = (
    "--dashboard-agent-listen-port=52365 --dashboard-agent-grpc-port=52366 "
    "--metrics-export-port=52367 --runtime-env-agent-port=52368"
)


class HostsUnavailableError(Exception):
    """This machine makes no network namespaces for us."""


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise HostsUnavailableError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Host:
    """One host of a network: a namespace, and the Ray node in it while it is on."""

    def __init__(self, network: "Network", number: int, name: str) -> None:
        self.name = name
        self.namespace = f"{network.tag}{name}"
        self.address = f"{network.prefix}.{10 + number}"
        self.link = f"{network.tag}v{number}"
        self.directory = network.directory / name
        self.directory.mkdir()
        self._network = network
        self._process: subprocess.Popen[bytes] | None = None
        self._again: tuple[int, str] = (0, "true")
        self._log_start = 0

    @property
    def is_on(self) -> bool:
        """Whether it was turned on, and not off again."""
        return self._process is not None

    @property
    def has_ended(self) -> bool:
        """Whether its ``ray start`` has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    @property
    def log(self) -> str:
        """What Ray has said since the host was turned on."""
        path = self.directory / "start.log"
        return path.read_bytes()[self._log_start :].decode() if path.exists() else ""

    @property
    def has_started(self) -> bool:
        """Whether the Ray node is part of the cluster."""
        return self.is_on and not self.has_ended and "Ray runtime started." in self.log

    def wire(self) -> None:
        """Make the namespace and its link to the bridge."""
        _ip("netns", "add", self.namespace)
        _ip(
            "link",
            "add",
            self.link,
            "type",
            "veth",
            "peer",
            "name",
            "eth0",
            "netns",
            self.namespace,
        )
        _ip("link", "set", self.link, "master", self._network.bridge, "up")
        _ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        _ip("-n", self.namespace, "link", "set", "eth0", "up")
        _ip("-n", self.namespace, "link", "set", "lo", "up")
        # Else names would be looked up over a network that is not there.
        files = Path("/etc/netns", self.namespace)
        files.mkdir(parents=True, exist_ok=True)
        (files / "hosts").write_text(f"127.0.0.1 localhost\n{self.address} {self.name}\n")
        (files / "resolv.conf").write_text("")

    def unwire(self) -> None:
        """Remove what ``wire`` made, as far as it is there."""
        for command in (("netns", "del", self.namespace), ("link", "del", self.link)):
            with contextlib.suppress(HostsUnavailableError):
                _ip(*command)
        shutil.rmtree(Path("/etc/netns", self.namespace), ignore_errors=True)

    def environment(self, **more: str) -> dict[str, str]:
        """Variables of this host's processes; nothing of the test runner's own Ray."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONPATH"))}
        return {
            **kept,
            **_FAST_DETECTION,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.directory),
            "XDG_CACHE_HOME": str(self.directory / "cache"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
            "OMP_NUM_THREADS": "1",
            **self._network.variables,
            **more,
        }

    def turn_on(self, *, num_cpus: int, before: str = "true") -> None:
        """Start Ray here, as the head where this is the first host; does not wait for it.

        ``before`` is a shell command that runs first, inside the host.
        """
        self._again = num_cpus, before
        head = self._network.head
        dashboard = (
            "--dashboard-host=0.0.0.0 --dashboard-port=8265 --ray-client-server-port=10001"
            if self._network.has_dashboard
            else "--include-dashboard=false"
        )
        where = (
            f"--head --port=6379 --no-monitor {dashboard}"
            if head is self
            else f"--address={head.address}:6379"
        )
        start = (
            f"hostname {self.name}; mount -t tmpfs tmpfs /dev/shm; {before}; "
            f"exec {sys.executable} -m ray.scripts.scripts start "
            f"{where} --node-ip-address={self.address} --num-cpus={num_cpus} "
            f"--temp-dir={self.directory}/ray "
            f"--object-store-memory={_OBJECT_STORE_BYTES} --disable-usage-stats --block "
            f"--include-log-monitor=false {_PORTS}"
        )
        with (self.directory / "start.log").open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*self._inside(), *_OWN_PROCESSES, "sh", "-c", start],
                env=self.environment(),
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def turn_on_again(self) -> None:
        """Start Ray as before."""
        num_cpus, before = self._again
        self.turn_on(num_cpus=num_cpus, before=before)

    def see_to_it(self) -> None:
        """Start Ray again where it has ended, or gave up to start as a busy machine may make it."""
        if self.has_ended:
            self.turn_on_again()

    def turn_off(self) -> None:
        """Pull the plug: every process of the host is gone at once."""
        if self._process is not None:
            # Kills the first process of the namespace of processes, and so all of them.
            with contextlib.suppress(psutil.NoSuchProcess):
                for process in psutil.Process(self._process.pid).children()[:1]:
                    process.kill()
            self._process.kill()
            self._process.wait()
            self._process = None

    def start(
        self, *arguments: str, stderr: IO[bytes] | int = subprocess.PIPE, **variables: str
    ) -> "subprocess.Popen[str]":
        """Start a program on the running host, beside its Ray; signals go to its children.

        Raises:
            RuntimeError: The host is off.
        """
        if self._process is None:
            raise RuntimeError(f"{self.name} is off")
        (first,) = psutil.Process(self._process.pid).children()
        enter = ["nsenter", "-t", str(first.pid), "-m", "-u", "-p", "-n", "env", "-C", str(ROOT)]
        return subprocess.Popen(
            [*enter, *arguments],
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )

    def processes(self, name: str) -> list[psutil.Process]:
        """Return the processes here whose command or name contains a text, oldest first."""
        if self._process is None:
            return []
        found = []
        for process in psutil.Process(self._process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if name in process.name() or name in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def kill(self, name: str) -> int:
        """Kill -9 the processes of a name; returns how many there were."""
        found = self.processes(name)
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        return len(found)

    def cut(self) -> None:
        """Pull the network cable out."""
        _ip("link", "set", self.link, "down")

    def mend(self) -> None:
        """Put the network cable back in."""
        _ip("link", "set", self.link, "up")

    def _inside(self) -> list[str]:
        # Who started the host is killed, and the host with them.
        return ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", self.namespace]


# Own mounts, processes and host name; `--kill-child` ends all with the first.
_OWN_PROCESSES = [
    "unshare", "-m", "-p", "-u", "--fork", "--mount-proc", "--kill-child",
]  # fmt: skip


class Network:
    """A head and further hosts, on a bridge that this machine is on, too.

    Raises:
        HostsUnavailableError: Namespaces, bridges or links cannot be made here.
    """

    def __init__(self, *names: str, has_dashboard: bool = False, **variables: str) -> None:
        self.has_dashboard = has_dashboard
        self.tag = f"mf{secrets.token_hex(2)}"
        self.bridge = f"{self.tag}b"
        self.prefix = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(250)}"
        self.variables = variables
        # Sockets have short paths.
        self.directory = Path(tempfile.mkdtemp(prefix="mf", dir="/tmp"))
        self.hidden = self.directory / "hidden"
        self.hidden.mkdir()
        self.hosts = {name: Host(self, number, name) for number, name in enumerate(names)}
        self.head = next(iter(self.hosts.values()))
        if os.geteuid() != 0 or shutil.which("ip") is None:
            self.close()
            raise HostsUnavailableError("needs root and iproute2")
        try:
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("addr", "add", f"{self.prefix}.1/24", "dev", self.bridge)
            _ip("link", "set", self.bridge, "up")
            for host in self.hosts.values():
                host.wire()
        except BaseException:
            self.close()
            raise

    @property
    def dashboard(self) -> str:
        """Address of the Jobs API."""
        return f"http://{self.head.address}:8265"

    def turn_on(self) -> None:
        """Start every host that is off, one after another, and wait until all are there.

        The head has no CPUs for workers, the others one each; the last does not see what is in
        ``hidden``.
        """
        for number, host in enumerate(self.hosts.values(), start=1):
            if not host.is_on:
                is_last = number == len(self.hosts)
                hide = f"mount -t tmpfs tmpfs {self.hidden}" if is_last else "true"
                host.turn_on(num_cpus=0 if host is self.head else 1, before=hide)
                self.wait_until_started()

    def close(self) -> None:
        """Turn everything off and remove it."""
        for host in self.hosts.values():
            host.turn_off()
        for host in self.hosts.values():
            host.unwire()
        with contextlib.suppress(HostsUnavailableError, FileNotFoundError):
            _ip("link", "del", self.bridge)
        shutil.rmtree(self.directory, ignore_errors=True)

    def wait_until_started(self) -> None:
        """Wait until every host that is on is part of the cluster, and the Jobs API answers."""
        end = time.monotonic() + _START_S
        while not all(host.has_started for host in self.hosts.values() if host.is_on):
            if time.monotonic() > end:
                logs = [f"{name}: {host.log[-1500:]}" for name, host in self.hosts.items()]
                raise TimeoutError("\n".join([f"not started after {_START_S} s", *logs]))
            for host in self.hosts.values():
                host.see_to_it()
            time.sleep(0.3)
        while self.has_dashboard and not self._answers():
            if time.monotonic() > end:
                raise TimeoutError(f"no dashboard after {_START_S} s")
            time.sleep(0.5)

    def _answers(self) -> bool:
        """Whether the Jobs API is there."""
        connection = http.client.HTTPConnection(self.head.address, 8265, timeout=5)
        try:
            connection.request("GET", "/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
