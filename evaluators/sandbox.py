"""Run generated Python programs in sandboxes, a few milliseconds each.

Start at :class:`Sandbox`. Every program runs in a fork of a server (``sandbox_server``) that waits
inside a sandbox (``sandbox_process``), as a user that is not root, in one process that can start
no other, send no signal and open no socket (``sandbox_walls``), with limits on wall and CPU time,
memory, threads and the size of files. Two kinds of sandbox:

``strict``: a bubblewrap. The system is read-only; home directories, /etc, /proc, the network and
other processes are not there; /tmp is empty, holds 64 MB and is the program's own.

``weak``, where bubblewrap cannot be had: Landlock lets programs read the system (/usr, /lib) and
write to one directory. Beyond ``strict`` a program can find out which files exist anywhere, with
their sizes and times (stat); read what a user left below /usr; fill the disk with files of 8 MB
for as long as it may run (they are removed afterwards); see the host's name and uptime. Where
root runs it, each sandbox has a user of its own; else programs are the caller's user, and only
Landlock and seccomp stand between them and the caller's files and processes.

What neither stops: a program shares its interpreter with the asserts that judge it, as in the
original metric. One written for the purpose can replace what the asserts call, return an object
that equals everything, or speak the server's protocol by itself once it knows it. It gains a
point, nothing outside. Asserts in an interpreter of their own would need every argument and
result copied between the two, which generators, functions, own classes and changed arguments do
not survive, and tests use all of them: scores would no longer be the original's.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Self, cast

from configs.evaluation import SandboxKind
from evaluators.sandbox_process import Answer, ServerDiedError, ServerProcess

Status = Literal["passed", "failed", "timeout", "crashed"]


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


class Sandbox:
    """A place where generated programs run; start-up is lazy and takes about 50 ms per server.

    Thread-safe: programs of several threads run at once, each on a server of its own, and wait
    for each other beyond that number. Not for use across a fork: :func:`shared_sandbox` gives
    each process its own.

    Args:
        kind: Which walls; see the module.
        servers: How many programs may run at once, at least 1; None is one per CPU that this
            process may use.
    """

    def __init__(self, kind: SandboxKind = "strict", *, servers: int | None = None) -> None:
        if servers is not None and servers < 1:
            raise ValueError(f"servers must be at least 1, got {servers}")
        self.kind = kind
        self._num_servers = servers or len(os.sched_getaffinity(0))
        self._changed = threading.Condition()
        self._idle: list[ServerProcess] = []
        self._num_busy = 0
        # The kernel ends a server when the thread that started it ends: this one stays.
        self._starter: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, programs: Sequence[str], *, timeout_s: float = 3.0) -> list[ProgramResult]:
        """Run programs one after another, each in a process of its own.

        Args:
            programs: Python source, asserts included; nothing is imported for them.
            timeout_s: Limit per program in seconds, > 0: of the wall clock on a machine with
                a processor to spare, and of its own processor time on a busy one.

        Returns:
            One result per program, in their order. A program never raises here.

        Raises:
            SandboxUnavailableError: This machine cannot build the sandbox.
            ValueError: ``timeout_s`` is not above 0.
        """
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be above 0 s, got {timeout_s}")
        return [self._run_one(program, timeout_s) for program in programs]

    def _run_one(self, program: str, timeout_s: float) -> ProgramResult:
        died = ""
        # A server can die innocently (the machine ran out of memory), so only the program that
        # takes two of them down is blamed.
        for _ in range(2):
            try:
                answer = self._ask(program, timeout_s)
            except ServerDiedError as error:
                died = str(error)
            else:
                return ProgramResult(cast("Status", answer.status), answer.detail)
        return ProgramResult("crashed", f"took the sandbox down: {died}")

    def _ask(self, program: str, timeout_s: float) -> Answer:
        """Run a program on an idle server, waiting for one or starting one."""
        server = self._take()
        reusable = False
        try:
            if server is None:
                server = self._start()
            answer = server.request(program, timeout_s)
            # An interrupt above leaves an answer on its way, which the next program must not get.
            reusable = not answer.worn
        finally:
            if server is not None and not reusable:
                server.kill()
            with self._changed:
                self._num_busy -= 1
                if server is not None and reusable:
                    self._idle.append(server)
                self._changed.notify_all()
        return answer

    def _take(self) -> ServerProcess | None:
        """Claim the server used last, or None for the right to start one."""
        with self._changed:
            while self._num_busy >= self._num_servers:
                self._changed.wait()
            self._num_busy += 1
            return self._idle.pop() if self._idle else None

    def _start(self) -> ServerProcess:
        with self._changed:
            if self._starter is None:
                self._starter = ThreadPoolExecutor(1, thread_name_prefix="sandbox-starter")
            started = self._starter.submit(ServerProcess, self.kind)
        return started.result()

    def close(self) -> None:
        """Stop the servers after the programs that run now; a later :meth:`run` starts others."""
        with self._changed:
            while self._num_busy:
                self._changed.wait()
            for server in self._idle:
                server.close()
            self._idle.clear()
            if self._starter is not None:
                self._starter.shutdown()
                self._starter = None


@dataclass(slots=True)
class _Selection:
    """Which sandbox this process scores with."""

    kind: SandboxKind = "strict"


_selected = _Selection()
_shared: dict[tuple[int, SandboxKind], Sandbox] = {}


def select_sandbox(kind: SandboxKind) -> None:
    """Say which sandbox this process scores with: what :func:`shared_sandbox` returns from now on.

    Scorers are called by lm-eval, which passes no settings on; so whoever has the settings of the
    job calls this in every process that scores, before tasks are loaded: some run a program when
    their functions are imported. Without it a process is strict.
    """
    _selected.kind = kind


def shared_sandbox() -> Sandbox:
    """Return this process's sandbox, created at the first call and closed at exit."""
    kind = _selected.kind
    key = (os.getpid(), kind)
    sandbox = _shared.get(key)
    if sandbox is None:
        created = Sandbox(kind)
        sandbox = _shared.setdefault(key, created)
        if sandbox is created:
            atexit.register(_close_shared, key)
    return sandbox


def close_shared_sandboxes() -> None:
    """Stop the servers of this process's sandboxes; programs that come later start others."""
    for (pid, _), sandbox in list(_shared.items()):
        if pid == os.getpid():
            sandbox.close()


def _close_shared(key: tuple[int, SandboxKind]) -> None:
    # A fork inherits its parent's exit handlers: it must not kill the parent's server.
    if key[0] == os.getpid() and key in _shared:
        _shared.pop(key).close()
