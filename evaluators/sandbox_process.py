"""One sandbox with its fork server: how it is started, asked and ended.

``strict`` is a bubblewrap (namespaces, read-only mounts), ``weak`` a plain process that builds
Landlock's walls around itself; see ``evaluators.sandbox`` for what each contains. The server gets
its source by value: a sandboxed user may not be able to read the directory that holds the files.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import select
import shutil
import struct
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import SandboxUnavailableError
from configs.evaluation import SandboxKind

INTERPRETER = "/usr/bin/python3"
_HEADER = struct.Struct(">I")
_MAX_FRAME_BYTES = 1 << 20
_START_TIMEOUT_S = 20.0
_END_TIMEOUT_S = 2.0
# On top of a program's own limit, which the server enforces: only a server that hangs meets it.
_GRACE_S = 10.0
_PATIENCE = 5.0
_MAX_TASKS = 64
_LIMITS = {"AS": 512 << 20, "CORE": 0, "FSIZE": 8 << 20, "NOFILE": 64, "NPROC": _MAX_TASKS}
_SCRATCH_BYTES = 64 << 20
# Where programs expect it. No directory that is shared with other users, which S108 is about: every
# sandbox mounts a tmpfs of its own there, within its walls, and nobody else sees it.
_SCRATCH = "/tmp"  # noqa: S108
# Limits on processes count by user, so every sandbox that root starts takes a user of its own.
_FIRST_UID, _NUM_UIDS = 1_000_000_000, 1_000_000_000
# Nothing of the environment may get in: a program can read it in /proc, and keys are kept there.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin", "LANG": "C.UTF-8"}
_BUBBLEWRAP_HINT = (
    "check that `bwrap --unshare-all --ro-bind / / true` works for this user (user namespaces may "
    "be switched off)"
)
_BOOT = """
import sys, types
walls, server, kind, scratch, parent = sys.argv[1:]
for name, text in (("evaluators", ""), ("evaluators.sandbox_walls", walls),
                   ("evaluators.sandbox_server", server)):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(text, name, "exec"), module.__dict__)
module.main(kind, scratch, int(parent))
"""


class ServerDiedError(Exception):
    """The fork server closed its pipe, or did not answer in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server says of one program; ``worn`` if it ends itself after that."""

    status: str
    detail: str
    worn: bool


class ServerProcess:
    """One sandbox with its fork server, and the two pipes to it.

    The kernel ends it when the thread that built this object ends, also by ``kill -9``.

    Args:
        kind: Which walls.

    Raises:
        SandboxUnavailableError: This machine cannot build them.
    """

    def __init__(self, kind: SandboxKind) -> None:
        _check_interpreter()
        self._limits = limits_of(kind)
        with contextlib.ExitStack() as files:
            self._scratch = _make_scratch(files) if kind == "weak" else None
            self._log = files.enter_context(tempfile.TemporaryFile())
            self._process = self._start(kind)
            # The server uses them as long as it lives: `kill` closes them.
            self._files = files.pop_all()
        try:
            greeting = self._receive(_START_TIMEOUT_S)
        except ServerDiedError as error:
            self._log.seek(0)
            said = self._log.read().decode("utf-8", "replace").strip() or str(error)
            self.kill()
            hint = _BUBBLEWRAP_HINT if kind == "strict" else f"check that `{INTERPRETER}` works"
            raise SandboxUnavailableError(
                f"the sandbox did not start: {said[-500:]}; {hint}"
            ) from error
        if greeting["status"] != "ready":
            self.kill()
            raise SandboxUnavailableError(
                f"generated code cannot be run in the {kind} sandbox: {greeting['detail']}"
            )

    @property
    def pid(self) -> int:
        """The process that everything of the sandbox hangs from."""
        return self._process.pid

    def _start(self, kind: SandboxKind) -> subprocess.Popen[bytes]:
        arguments = ["-I", "-S", "-c", _BOOT, *read_sources(), kind, self._scratch or _SCRATCH]
        arguments.append(str(os.getpid()))
        user = _own_user()
        if kind == "strict":
            command = [*_bubblewrap(user), INTERPRETER, *arguments]
            user = None  # bubblewrap is started as it
        else:
            command = [INTERPRETER, *arguments]
            if user is not None and self._scratch:
                os.chown(self._scratch, user, user)
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    def request(self, program: str, timeout_s: float) -> Answer:
        """Send one program and wait for its result.

        Raises:
            ServerDiedError: There will be no answer; the server is of no more use.
        """
        limits = {**self._limits, "CPU": int(timeout_s) + 2}
        self._send({"program": program, "timeout_s": timeout_s, "limits": limits})
        answer = self._receive(_PATIENCE * timeout_s + _GRACE_S)
        return Answer(answer["status"], answer["detail"], answer["worn"])

    def _send(self, message: Mapping[str, object]) -> None:
        body = json.dumps(message).encode()
        if self._process.stdin is None:
            raise ServerDiedError("closed")
        try:
            self._process.stdin.write(_HEADER.pack(len(body)) + body)
            self._process.stdin.flush()
        except OSError as error:
            raise ServerDiedError(str(error)) from error

    def _receive(self, timeout_s: float) -> dict[str, Any]:
        deadline = time.monotonic() + timeout_s
        (size,) = _HEADER.unpack(self._read(_HEADER.size, deadline))
        if size > _MAX_FRAME_BYTES:
            raise ServerDiedError(f"frame of {size} bytes")
        answer: dict[str, Any] = json.loads(self._read(size, deadline))
        return answer

    def _read(self, size: int, deadline: float) -> bytes:
        if self._process.stdout is None:
            raise ServerDiedError("closed")
        descriptor, parts = self._process.stdout.fileno(), b""
        while len(parts) < size:
            left = max(0.0, deadline - time.monotonic())
            if not select.select([descriptor], [], [], left)[0]:
                raise ServerDiedError("no answer in time")
            part = os.read(descriptor, size - len(parts))
            if not part:
                raise ServerDiedError("the server ended")
            parts += part
        return parts

    def close(self) -> None:
        """End an idle sandbox; nothing of it is left when this returns."""
        # At the end of its input the server ends, and bubblewrap then collects every process.
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """Kill the sandbox with everything in it."""
        self._process.kill()
        self._await_end()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                # Closing flushes what the dead server never read.
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()
        self._files.close()

    def _await_end(self) -> None:
        """Wait until the last process of the sandbox has let go of its end of the pipe."""
        with contextlib.suppress(ServerDiedError):
            while True:
                self._read(1, time.monotonic() + _END_TIMEOUT_S)


def limits_of(kind: SandboxKind) -> dict[str, int]:
    """Return a program's limits for setrlimit(2), without the one on CPU seconds."""
    if kind == "weak" and os.geteuid() != 0:
        # It would count every process of this user, where no other user can be taken.
        return {name: value for name, value in _LIMITS.items() if name != "NPROC"}
    return dict(_LIMITS)


def _check_interpreter() -> None:
    if not Path(INTERPRETER).exists():
        raise SandboxUnavailableError(
            f"generated code cannot be run: there is no `{INTERPRETER}`, which every user of this "
            "machine can read; install it with `apt-get install python3-minimal`"
        )


@functools.cache
def read_sources() -> tuple[str, ...]:
    """Return what the server is made of, read once."""
    here = Path(__file__)
    names = ("sandbox_walls.py", "sandbox_server.py")
    return tuple(here.with_name(name).read_text(encoding="utf-8") for name in names)


def _own_user() -> int | None:
    """Return a user id that nothing else has, where this process may take one."""
    return _FIRST_UID + secrets.randbelow(_NUM_UIDS) if os.geteuid() == 0 else None


def _make_scratch(files: contextlib.ExitStack) -> str:
    path = tempfile.mkdtemp(prefix="mergefront-sandbox-")
    # Not `TemporaryDirectory`: before Python 3.11.8 it changes the mode of what links lead to.
    files.callback(shutil.rmtree, path, ignore_errors=True)
    return path


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


def _bubblewrap(user: int | None) -> list[str]:
    """Return the command that runs another command in a new bubblewrap.

    There is no /proc in it: no program needs one, and the entries of bubblewrap's own process
    would show the environment that it was started with.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxUnavailableError(
            "generated code cannot be run: `bwrap` is not on the PATH; install it with "
            "`apt-get install bubblewrap`, or accept a weaker sandbox with "
            "`evaluation.sandbox: weak` (DESIGN.md D13 says what it does not contain)"
        )
    prefix: list[str] = []
    if user is not None:
        # The kernel exempts root from process limits, whatever uid the namespace shows.
        prefix = ["prlimit", f"--nproc={_MAX_TASKS + 8}", "--", "setpriv", "--reuid", str(user)]
        prefix += ["--regid", str(user), "--clear-groups", "--no-new-privs"]
    return [
        *prefix,
        *(bwrap, "--unshare-all", "--unshare-user", "--uid", "65534", "--gid", "65534"),
        *("--die-with-parent", "--new-session", "--clearenv", "--hostname", "sandbox"),
        *_system_binds(),
        *("--dev", "/dev", "--remount-ro", "/dev"),
        *("--size", str(_SCRATCH_BYTES), "--tmpfs", _SCRATCH),
        *("--remount-ro", "/", "--"),
    ]
