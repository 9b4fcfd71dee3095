"""Run generated Python programs in a bubblewrap sandbox, a few milliseconds each.

Start at :class:`Sandbox`. One bubblewrap holds one fork server (``sandbox_server.py``); every
program runs in a fork of it: no network, a read-only system, its own pid namespace, a user that
is not root, limits on time, memory, processes and file size.

What it does not stop: a program shares an interpreter with its own asserts, so one written for
that purpose can look up the token that stands for "ran to the end", or replace what the asserts
call. It gains a point, not the machine.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import secrets
import select
import shutil
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from configs.errors import SandboxUnavailableError

Status = Literal["passed", "failed", "timeout", "crashed"]
INTERPRETER = "/usr/bin/python3"
_HEADER = struct.Struct(">I")
_MAX_FRAME_BYTES = 1 << 20
_START_TIMEOUT_S = 20.0
# On top of a program's own limit, which the server enforces: only a server that hangs meets it.
_GRACE_S = 10.0
_MAX_PROCESSES = 64
_LIMITS = {
    "AS": 512 << 20,
    "CORE": 0,
    "FSIZE": 8 << 20,
    "NOFILE": 64,
    "NPROC": _MAX_PROCESSES,
}
_SCRATCH_BYTES = 64 << 20
# Process limits count by user, so every sandbox that root starts takes a user of its own.
_FIRST_UID, _NUM_UIDS = 1_000_000_000, 1_000_000_000


@dataclass(frozen=True, slots=True)
class ProgramResult:
    """What became of one program.

    Attributes:
        status: ``passed`` if it ran to its very end; ``failed`` if it raised or left early;
            ``timeout`` if it used up its seconds; ``crashed`` if a signal ended it, or if it
            took the server down with it.
        detail: The exception or the signal, for a person; empty when passed.
    """

    status: Status
    detail: str


class _ServerDiedError(Exception):
    """The fork server closed its pipe, or did not answer in time."""


def _system_binds() -> list[str]:
    """Return the arguments that show the system, read-only, where it stands."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib64", "/lib32"):
        path = Path(name)
        if path.is_symlink():
            arguments += ["--symlink", str(path.readlink()), name]
        elif path.is_dir():
            arguments += ["--ro-bind", name, name]
    return arguments


def _command() -> list[str]:
    """Return the command that starts a server in a new sandbox."""
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailableError(
            "generated code cannot be run: `bwrap` is not on the PATH; "
            "install it with `apt-get install bubblewrap`"
        )
    prefix: list[str] = []
    if os.geteuid() == 0:
        # The kernel exempts root from process limits, whatever uid the namespace shows.
        uid = str(_FIRST_UID + secrets.randbelow(_NUM_UIDS))
        prefix = ["prlimit", f"--nproc={_MAX_PROCESSES + 8}", "--", "setpriv", "--reuid", uid]
        prefix += ["--regid", uid, "--clear-groups", "--no-new-privs"]
    # By value: a sandboxed user may not be able to read the directory that holds the file.
    server = Path(__file__).with_name("sandbox_server.py").read_text(encoding="utf-8")
    return [
        *prefix,
        *(bwrap, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"),
        *("--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"),
        *_system_binds(),
        *("--proc", "/proc", "--dev", "/dev"),
        *("--size", str(_SCRATCH_BYTES), "--tmpfs", "/tmp", "--remount-ro", "/"),  # noqa: S108 - its own
        *("--", INTERPRETER, "-I", "-S", "-c", server),
    ]


class _Server:
    """One bubblewrap with its fork server, and the two pipes to it."""

    def __init__(self) -> None:
        command = _command()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the server
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, cwd="/"
        )
        try:
            self._receive(_START_TIMEOUT_S)
        except _ServerDiedError as error:
            self._log.seek(0)
            said = self._log.read().decode("utf-8", "replace").strip() or str(error)
            self.close()
            raise SandboxUnavailableError(
                f"the sandbox did not start: {said[-500:]}; check that `bwrap --unshare-all "
                f"--ro-bind / / true` works for this user (user namespaces may be switched off)"
            ) from error

    def request(self, message: Mapping[str, object], timeout_s: float) -> ProgramResult:
        """Send one program and wait for its result."""
        body = json.dumps(message).encode()
        if self._process.stdin is None:
            raise _ServerDiedError("closed")
        try:
            self._process.stdin.write(_HEADER.pack(len(body)) + body)
            self._process.stdin.flush()
        except OSError as error:
            raise _ServerDiedError(str(error)) from error
        answer = self._receive(timeout_s + _GRACE_S)
        return ProgramResult(answer["status"], answer["detail"])  # type: ignore[arg-type]

    def _receive(self, timeout_s: float) -> dict[str, str]:
        deadline = time.monotonic() + timeout_s
        (size,) = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if size > _MAX_FRAME_BYTES:
            raise _ServerDiedError(f"frame of {size} bytes")
        answer: dict[str, str] = json.loads(self._read(size, deadline))
        return answer

    def _read(self, size: int, deadline: float) -> bytes:
        if self._process.stdout is None:
            raise _ServerDiedError("closed")
        descriptor, parts = self._process.stdout.fileno(), b""
        while len(parts) < size:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise _ServerDiedError("no answer in time")
            part = os.read(descriptor, size - len(parts))
            if not part:
                raise _ServerDiedError("the server ended")
            parts += part
        return parts

    def close(self) -> None:
        """Kill the sandbox with everything in it."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout, self._log):
            if stream is not None:
                # Closing flushes what the dead server never read.
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._process.wait()


class Sandbox:
    """A place where generated programs run; start-up is lazy and takes about 50 ms.

    Thread-safe: programs of several threads wait for each other. Not for use across a fork:
    :func:`shared_sandbox` gives each process its own.
    """

    def __init__(self) -> None:
        self._server: _Server | None = None
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, programs: Sequence[str], *, timeout_s: float = 3.0) -> list[ProgramResult]:
        """Run programs one after another, each in a process of its own.

        Args:
            programs: Python source, asserts included; nothing is imported for them.
            timeout_s: Wall-clock limit per program in seconds, > 0.

        Returns:
            One result per program, in their order. A program never raises here.

        Raises:
            SandboxUnavailableError: bubblewrap is missing or may not create namespaces.
            ValueError: ``timeout_s`` is not above 0.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0 s, got {timeout_s}")
        with self._lock:
            return [self._run_one(program, timeout_s) for program in programs]

    def _run_one(self, program: str, timeout_s: float) -> ProgramResult:
        limits = {**_LIMITS, "CPU": math.ceil(timeout_s) + 1}
        message = {"program": program, "timeout_s": timeout_s, "limits": limits}
        died = ""
        # A server can die innocently (the thread that started it ended, the machine ran out of
        # memory), so only the program that takes two of them down is blamed.
        for _ in range(2):
            if self._server is None:
                self._server = _Server()
            try:
                return self._server.request(message, timeout_s)
            except _ServerDiedError as error:
                died = str(error)
                self._stop()
        return ProgramResult("crashed", f"took the sandbox down: {died}")

    def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Stop the server; a later :meth:`run` starts a new one."""
        with self._lock:
            self._stop()


_shared: dict[int, Sandbox] = {}


def shared_sandbox() -> Sandbox:
    """Return this process's sandbox, created at the first call and closed at exit."""
    pid = os.getpid()
    if pid not in _shared:
        sandbox = _shared.setdefault(pid, Sandbox())
        atexit.register(_close_shared, pid)
        return sandbox
    return _shared[pid]


def _close_shared(pid: int) -> None:
    # A fork inherits its parent's exit handlers: it must not kill the parent's server.
    if pid == os.getpid() and pid in _shared:
        _shared.pop(pid).close()
