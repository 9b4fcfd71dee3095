"""The fork server inside the sandbox: one program in, one verdict out.

It needs the standard library only, is started by ``evaluators.sandbox`` with the system's
interpreter (Python 3.9 or later) and imports nothing of the project. A frame on
stdin or stdout is a length in 4 bytes (big-endian) and that many bytes of JSON.

Request ``{"program": str, "timeout_s": float, "limits": {...}}``; answer
``{"status": "passed" | "failed" | "timeout" | "crashed", "detail": str}``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import struct
import sys
from typing import Any, BinaryIO, NoReturn

HEADER = struct.Struct(">I")
TOKEN_BYTES = 16
VERDICT_FD = 3
SCRATCH = "/tmp"  # noqa: S108 - a tmpfs of the sandbox's own
PR_SET_DUMPABLE = 4


def read_frame(source: BinaryIO) -> dict[str, Any] | None:
    """Read one frame, or None at the end of the stream."""
    header = source.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    request: dict[str, Any] = json.loads(source.read(HEADER.unpack(header)[0]))
    return request


def write_frame(sink: BinaryIO, message: dict[str, str]) -> None:
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
    try:
        return f"{type(error).__name__}: {str(error)[:200]}"
    except BaseException:  # noqa: BLE001 - a program can define an exception that cannot print
        return type(error).__name__


def run_child(program: str, limits: dict[str, int], token: bytes, verdict_fd: int) -> NoReturn:
    """Run the program in this forked child; does not return.

    The token goes to the pipe only after the program has run to its last line, so leaving early
    by ``os._exit(0)`` or ``sys.exit(0)`` is not a pass.
    """
    detail, own_pid = "", os.getpid()
    try:
        os.setsid()
        # Only the verdict stays open: the protocol's own pipes must be out of reach.
        os.dup2(verdict_fd, VERDICT_FD)
        verdict_fd = VERDICT_FD
        os.closerange(VERDICT_FD + 1, 4096)
        null = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        set_limits(limits)
        code = compile(program, "<program>", "exec")
        exec(code, {"__name__": "__main__"})  # noqa: S102 - what this file is for
    except SystemExit:
        detail = "SystemExit: left before the end"
    except BaseException as error:  # noqa: BLE001 - whatever it raised, it failed
        detail = error_text(error)
    if os.getpid() != own_pid:
        os._exit(0)  # a process that the program forked: it has no verdict to give
    os.write(verdict_fd, detail.encode("utf-8", "replace") if detail else token)
    os._exit(0)


def read_verdict(verdict_fd: int, timeout_s: float) -> bytes | None:
    """Read what the child reports; empty when it ended silently, None when time is up.

    A report is one write of less than PIPE_BUF bytes, so one read has all of it. Waiting for the
    end of the stream instead would wait for every process that the program left behind.
    """
    if not select.select([verdict_fd], [], [], timeout_s)[0]:
        return None
    return os.read(verdict_fd, 4096)


def kill_all_others() -> None:
    """Kill every process of this namespace except the server, and its pid 1.

    Programs run one at a time, so what is left after one is its own: a grandchild that left the
    session by setsid() too. The kernel spares pid 1 of the namespace and the caller.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(-1, signal.SIGKILL)


def reap_all() -> dict[int, int]:
    """Wait for every child, those adopted included; return the last status per pid."""
    statuses: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, 0)
        except ChildProcessError:
            return statuses
        statuses[pid] = status


def clear_scratch() -> None:
    """Remove what a program left in the scratch directory, so that the next one finds it empty."""
    for entry in os.scandir(SCRATCH):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path, ignore_errors=True)
        else:
            os.unlink(entry.path)  # noqa: PTH108 - pathlib would double the start-up time


def run_program(request: dict[str, Any]) -> dict[str, str]:
    """Run one program in a fork and return the answer to its request."""
    token = os.urandom(TOKEN_BYTES)
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        run_child(request["program"], request["limits"], token, write_end)
    os.close(write_end)
    report = read_verdict(read_end, request["timeout_s"])
    os.close(read_end)
    kill_all_others()
    status = reap_all().get(pid, 0)
    clear_scratch()
    if report is None:
        return {"status": "timeout", "detail": f"ran past {request['timeout_s']:g} s"}
    if report == token:
        return {"status": "passed", "detail": ""}
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) != signal.SIGKILL:
        name = signal.Signals(os.WTERMSIG(status)).name
        kind = "timeout" if name == "SIGXCPU" else "crashed"
        return {"status": kind, "detail": "ended by " + name}
    if not report:
        return {"status": "failed", "detail": "left before the end"}
    return {"status": "failed", "detail": report.decode("utf-8", "replace")[:300]}


def main() -> None:
    """Answer requests until stdin closes."""
    # The protocol's own descriptors must not be 0 and 1, which programs may read and write.
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.chdir(SCRATCH)
    # Programs run as the same user; this keeps them out of /proc/<server>/fd and from ptrace.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    write_frame(sink, {"status": "ready", "detail": sys.version.split()[0]})
    while True:
        request = read_frame(source)
        if request is None:
            return
        write_frame(sink, run_program(request))


if __name__ == "__main__":
    main()
