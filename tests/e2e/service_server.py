"""Services for tests: the application behind a real uvicorn, and the whole command."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from optimizer.service.processes import DetachedProcess

ROOT = Path(__file__).parents[2]
_LINK = re.compile(r"(http://\S+)/login\?token=(\S+)\n")


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application in a thread of this process; yields its URL."""
    listening = socket.socket(proto=socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(64)
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()


def printed_link(service: subprocess.Popen[bytes], said: Path) -> tuple[str, str]:
    """Wait until a service prints its login link into a file; returns its URL and token."""
    while (found := _LINK.search(said.read_text())) is None:
        assert service.poll() is None, said.read_text()
        time.sleep(0.05)
    return found[1], found[2]


class ServeCommand:
    """``mergefront serve`` in a process of its own.

    Attributes:
        url: Where it answers.
        token: What it printed.
    """

    def __init__(self, archives: Path, state: Path, *options: str) -> None:
        self._command = [
            *(sys.executable, "-m", "optimizer.cli", "serve", "--archive-dir", str(archives)),
            *options,
        ]
        self._port = 0
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(state)}
        self._said = state.with_suffix(".log")
        self.start()

    def start(self) -> None:
        """Start it, or start it again where it was, and wait for the link that it prints."""
        command = [*self._command, "--port", str(self._port)]
        with self._said.open("w") as said:
            self._process = subprocess.Popen(
                command, env=self._environment, stderr=said, start_new_session=True
            )
        self.url, self.token = printed_link(self._process, self._said)
        self._port = urlsplit(self.url).port or 0

    def kill(self) -> None:
        """Kill it with all that is in its process group, as kill -9 does."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def end(self) -> int:
        """Ask it to end; returns its exit code."""
        self._process.terminate()
        return self._process.wait(timeout=30)


@contextmanager
def serving(root: Path, *options: str) -> Iterator[ServeCommand]:
    """Run ``mergefront serve`` on archives below a directory; ends what it started, too."""
    found = ServeCommand(root / "archives", root / "state", *options)
    try:
        yield found
    finally:
        found.kill()
        for record in (root / "archives").rglob("process.json"):
            DetachedProcess(record.parent).kill()
