"""The fork server inside the sandbox: one program in, one verdict out.

It needs the standard library and ``evaluators.sandbox_walls``, and is started by
``evaluators.sandbox_process`` with the system's interpreter (Python 3.9 or later), by value. A
frame on stdin or stdout is a length in 4 bytes (big-endian) and that many bytes of JSON.

First it says ``{"status": "ready" | "refused", "detail": str}``. Then each request
``{"program": str, "timeout_s": float, "limits": {...}}`` is answered by
``{"status": "passed" | "failed" | "timeout" | "crashed", "detail": str, "worn": bool}``; where
``worn`` is true, the program left something that could not be removed, and the server ends.

A program proves that it ran to its end by answering a challenge: the server sends one after the
program's process said that the last line was reached, and the answer is computed from it. Before
that there is nothing in the process to be found: not in frames, globals, memory or descriptors.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import select
import signal
import socket
import stat
import struct
import sys
import time
import types
from typing import Any, BinaryIO, NoReturn

from evaluators.sandbox_walls import (
    ProgramFilter,
    WallError,
    die_with,
    hide_from_same_user,
    landlock,
    refuse_privileges,
)

HEADER = struct.Struct(">I")
CHALLENGE_BYTES = 16
VERDICT_FD = 3
# A program that computes while others do may take this many times its limit by the wall clock.
PATIENCE = 5.0
COMPUTING_SHARE = 0.2
# No exception's text begins with it.
REACHED_END = b"\0end"
# Removing what a program made may take as long as making it; a new sandbox is quicker.
MAX_LEFT_OVER = 1000


def read_frame(source: BinaryIO) -> dict[str, Any] | None:
    """Read one frame, or None at the end of the stream."""
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    request: dict[str, Any] = json.loads(source.read(HEADER.unpack(header)[0]))
    return request


def write_frame(sink: BinaryIO, message: dict[str, Any]) -> None:
    """Write one frame."""
    body = json.dumps(message).encode()
    sink.write(HEADER.pack(len(body)) + body)
    sink.flush()


def set_limits(limits: dict[str, int]) -> None:
    """Apply resource limits to this process, soft and hard, in the units of setrlimit(2)."""
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))


def error_text(error: BaseException) -> str:
    """Return an exception's type and the start of its message; never raises."""
    # The exception is of the program's own class, whose `__str__` may raise anything, `SystemExit`
    # too; the verdict must be written whatever it does.
    with contextlib.suppress(BaseException):
        return f"{type(error).__name__}: {str(error)[:200]}"
    return type(error).__name__


def answer_to(challenge: bytes) -> bytes:
    """Return what a program's process answers; an echo of the challenge is no answer."""
    return hashlib.sha256(challenge).digest()


def run_child(request: dict[str, Any], wall: ProgramFilter, verdict: int) -> NoReturn:
    """Run the program in this forked child; does not return.

    Leaving early by ``os._exit(0)`` or ``sys.exit(0)`` is not a pass: only this function answers
    the challenge. What it needs afterwards it holds in locals, where a program that replaces
    functions of ``os`` does not reach by accident.
    """
    write, read, leave, answer, text = os.write, os.read, os._exit, answer_to, error_text
    try:
        detail = "could not be started"
        try:
            die_with(request["server"])
            _settle(request["limits"], verdict)
            wall.apply()
            code = compile(request["program"], "<program>", "exec")
            # Running a model's program is what this child is for, and it runs nowhere else: behind
            # the walls, the limits and the filter that the lines above have put up. The namespace
            # is empty, as in the original metric: `__name__` is not `__main__`.
            exec(code, {})  # noqa: S102
        except SystemExit:
            detail = "SystemExit: left before the end"
        # Whatever a program raises, `KeyboardInterrupt` and classes of its own too, it has failed,
        # and that is what is reported; nothing above this frame is to run.
        except BaseException as error:  # noqa: BLE001
            detail = text(error)
        else:
            write(VERDICT_FD, REACHED_END)
            write(VERDICT_FD, answer(read(VERDICT_FD, CHALLENGE_BYTES)))
            leave(0)
        write(VERDICT_FD, detail.encode("utf-8", "replace"))
    finally:
        leave(0)


def _settle(limits: dict[str, int], verdict: int) -> None:
    """Give this process its own session, its limits, and the verdict as its only open end."""
    os.setsid()
    os.dup2(verdict, VERDICT_FD)
    os.closerange(VERDICT_FD + 1, 4096)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    set_limits(limits)
    # A program that looks for `__main__` finds an empty module, not this one.
    sys.modules["__main__"] = types.ModuleType("__main__")


class Verdict:
    """What a program's process reports, waited for until its time is up.

    The limit is in seconds of a processor of its own, so that a busy machine does not change
    scores: where the wall clock has passed it, a program goes on as long as it has computed
    (not slept) for less, but never longer than ``PATIENCE`` times the limit.

    Args:
        end: Our end of the socket to the process.
        pid: The process.
        timeout_s: The limit.
    """

    def __init__(self, end: socket.socket, pid: int, timeout_s: float) -> None:
        self._end = end
        # clock_getcpuclockid(3), which Python has for threads only.
        self._clock = (~pid << 3) | 2
        self._timeout_s = timeout_s
        self._start = time.monotonic()

    def read(self) -> bytes | None:
        """Return what the process said; empty when it ended silently, None when time is up.

        ``REACHED_END`` means that the challenge was answered.
        """
        report = self._receive()
        if report != REACHED_END:
            return report
        challenge = os.urandom(CHALLENGE_BYTES)
        with contextlib.suppress(OSError):
            self._end.send(challenge)
        answer = self._receive()
        return REACHED_END if answer == answer_to(challenge) else answer and b"a forged verdict"

    def _receive(self) -> bytes | None:
        while not select.select([self._end], [], [], self._seconds_left())[0]:
            if self._seconds_left() <= 0:
                return None
        try:
            return self._end.recv(4096)
        except ConnectionError:
            return b""

    def _seconds_left(self) -> float:
        passed = time.monotonic() - self._start
        if passed < self._timeout_s or passed >= PATIENCE * self._timeout_s:
            return max(0.0, self._timeout_s - passed)
        try:
            computed = time.clock_gettime(self._clock)
        except OSError:
            return 0.0
        if computed < COMPUTING_SHARE * passed:
            return 0.0
        return max(0.0, self._timeout_s - computed)


def end_program(pid: int, *, own_namespace: bool) -> int:
    """Kill the program, with whatever else there is, and return its wait status."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    if own_namespace:
        # Programs cannot start processes; were there a way, none would outlive the verdict. The
        # kernel spares pid 1 of the namespace and the caller.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(-1, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def clear_scratch(scratch: str, most: int | None) -> bool:
    """Remove what a program left in the scratch directory, so that the next one finds it empty.

    The content of a directory is moved up before it is removed, so neither depth nor long paths
    matter; modes do not either, since all of it belongs to this process.

    Args:
        scratch: The directory.
        most: Entries after which to give up; None never does.

    Returns:
        Whether nothing is left.
    """
    moved = 0
    try:
        while entries := list(os.scandir(scratch)):
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    _open_up(entry.path)
                    for inner in list(os.scandir(entry.path)):
                        moved += 1
                        if inner.is_dir(follow_symlinks=False):
                            _open_up(inner.path)
                        os.rename(inner.path, f"{scratch}/.moved{moved}")
                    os.rmdir(entry.path)
                else:
                    os.unlink(entry.path)
                moved += 1
                if most is not None and moved > most:
                    return False
    except OSError:
        return False
    return True


def _open_up(directory: str) -> None:
    # Renaming a directory writes its `..`, and listing one reads it.
    os.chmod(directory, stat.S_IRWXU)


def verdict_of(report: bytes | None, status: int, timeout_s: float) -> dict[str, Any]:
    """Return status and detail from what the child said and how it ended."""
    if report is None:
        return {"status": "timeout", "detail": f"ran past {timeout_s:g} s"}
    if report == REACHED_END:
        return {"status": "passed", "detail": ""}
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        name = signal.Signals(os.WTERMSIG(status)).name
        kind = "timeout" if name == "SIGXCPU" else "crashed"
        return {"status": kind, "detail": "ended by " + name}
    if not report:
        return {"status": "failed", "detail": "left before the end"}
    return {"status": "failed", "detail": report.decode("utf-8", "replace")[:300]}


class Server:
    """Forks for every request.

    Args:
        own_namespace: The sandbox has mounts and process ids of its own (bubblewrap).
        scratch: The one directory that programs may write to.
    """

    def __init__(self, scratch: str, *, own_namespace: bool) -> None:
        self._scratch = scratch
        self._own_namespace = own_namespace
        self._wall = ProgramFilter(mounts_protect=own_namespace)

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        """Run one program in a fork and return the answer to its request."""
        request["server"] = os.getpid()
        # Messages, not a stream: a report is read whole or not at all.
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            run_child(request, self._wall, its.fileno())
        its.close()
        with ours:
            report = Verdict(ours, pid, request["timeout_s"]).read()
        status = end_program(pid, own_namespace=self._own_namespace)
        most = MAX_LEFT_OVER if self._own_namespace else None
        clean = clear_scratch(self._scratch, most)
        return {**verdict_of(report, status, request["timeout_s"]), "worn": not clean}


def main(kind: str, scratch: str, parent: int) -> None:
    """Answer requests until stdin closes, or until a program left what cannot be removed.

    Args:
        kind: ``strict`` inside bubblewrap; ``weak`` builds its own walls.
        scratch: The one directory that programs may write to.
        parent: Pid of the process that started this one; only ``weak`` needs it.
    """
    # The protocol's own descriptors must not be 0 and 1, which programs may read and write.
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    try:
        os.chdir(scratch)
        if kind == "weak":
            die_with(parent)
            os.environ["TMPDIR"] = scratch
        hide_from_same_user()
        refuse_privileges()
        server = Server(scratch, own_namespace=kind == "strict")
        if kind == "weak":
            landlock(scratch)
    except (WallError, OSError) as error:
        write_frame(sink, {"status": "refused", "detail": str(error)})
        return
    write_frame(sink, {"status": "ready", "detail": sys.version.split()[0]})
    while request := read_frame(source):
        answer = server.run(request)
        write_frame(sink, answer)
        if answer["worn"]:
            break
    # Nothing is worth the time that a tidy end of the interpreter takes.
    os._exit(0)
