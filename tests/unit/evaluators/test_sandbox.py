"""The sandbox: what passes, what fails, and what must not get out or stay behind."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Iterator

import pytest

from configs.errors import SandboxUnavailableError
from evaluators import sandbox as module
from evaluators.sandbox import Sandbox, shared_sandbox


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox() as opened:
        yield opened


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("assert 1 + 1 == 2", "passed", ""),
        ("", "passed", ""),
        ("print('x' * 100_000)", "passed", ""),
        ("assert 1 == 2, 'sums'", "failed", "AssertionError: sums"),
        ("def (", "failed", "SyntaxError"),
        ("import os\nos._exit(0)", "failed", "before the end"),
        ("import sys\nsys.exit(0)", "failed", "before the end"),
        ("raise SystemExit", "failed", "before the end"),
        ("import os\nos.write(3, b'x' * 16)\nos._exit(0)", "failed", "xxxx"),
        ("x = bytearray(4 << 30)", "failed", "MemoryError"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "SIGSEGV"),
        ("open('/usr/x', 'w')", "failed", "Read-only"),
        ("open('/x', 'w')", "failed", "Read-only"),
        ("open('/etc/passwd')", "failed", "FileNotFoundError"),
        ("import os\nos.listdir('/proc/%d/fd' % os.getppid())", "failed", "PermissionError"),
        ("open('/tmp/f', 'wb').write(b'0' * (20 << 20))", "failed", "File too large"),
        ("import socket\nsocket.create_connection(('192.0.2.1', 80), 1)", "failed", "unreachable"),
        ("import os\nassert os.getuid() != 0 and os.environ.get('HOME') is None", "passed", ""),
        ("class E(Exception):\n  __str__ = None\nraise E", "failed", "E"),
    ],
)
def test_program_gets_its_verdict(sandbox: Sandbox, program: str, status: str, detail: str) -> None:
    (result,) = sandbox.run([program])
    assert result.status == status, result
    assert detail in result.detail


def test_results_come_in_the_order_of_the_programs(sandbox: Sandbox) -> None:
    results = sandbox.run([f"assert {n} % 3" for n in range(30)])
    assert [r.status == "passed" for r in results] == [bool(n % 3) for n in range(30)]


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(60)"])
def test_endless_program_is_stopped_and_the_next_one_runs(sandbox: Sandbox, program: str) -> None:
    start = time.monotonic()
    late, fine = sandbox.run([program, "pass"], timeout_s=0.3)
    assert (late.status, fine.status) == ("timeout", "passed")
    assert time.monotonic() - start < 5


def test_fork_bomb_is_held(sandbox: Sandbox) -> None:
    bomb, fine = sandbox.run(["import os\nwhile True: os.fork()", "pass"], timeout_s=1)
    assert bomb.status in {"failed", "timeout"}
    assert fine.status == "passed"


def test_nothing_stays_behind_for_the_next_program(sandbox: Sandbox) -> None:
    messy = (
        "import os, time\nos.makedirs('/tmp/a/b')\nopen('/tmp/f', 'w').close()\n"
        "if os.fork() == 0:\n  os.setsid()\n  time.sleep(60)"
    )
    look = (
        "import os\nassert os.listdir('/tmp') == []\n"
        # init, the server and this program
        "assert len([p for p in os.listdir('/proc') if p.isdigit()]) == 3"
    )
    assert [r.status for r in sandbox.run([messy, look])] == ["passed", "passed"]


def test_program_that_kills_the_server_is_blamed_alone(sandbox: Sandbox) -> None:
    killers = ["import os\nos.kill(os.getppid(), 9)", "import os\nos.kill(-1, 9)"]
    results = sandbox.run([killers[0], "pass", killers[1], "pass"])
    assert [r.status for r in results] == ["crashed", "passed", "crashed", "passed"]


def test_server_that_died_innocently_is_replaced(sandbox: Sandbox) -> None:
    sandbox.run(["pass"])
    assert sandbox._server is not None
    sandbox._server._process.kill()
    sandbox._server._process.wait()
    assert sandbox.run(["pass"])[0].status == "passed"


def test_sandbox_outlives_the_thread_that_started_it() -> None:
    with Sandbox() as opened:
        thread = threading.Thread(target=opened.run, args=(["pass"],))
        thread.start()
        thread.join()
        assert [r.status for r in opened.run(["pass"] * 3)] == ["passed"] * 3


def test_closed_sandbox_leaves_no_process() -> None:
    with Sandbox() as opened:
        opened.run(["pass"])
        assert opened._server is not None
        process = opened._server._process
    assert process.poll() is not None
    assert opened._server is None


def _child_has_its_own(queue: multiprocessing.Queue[tuple[bool, str]], parents: int) -> None:
    own = shared_sandbox()
    queue.put((id(own) != parents, own.run(["pass"])[0].status))


def test_shared_sandbox_is_one_per_process() -> None:
    mine = shared_sandbox()
    assert mine is shared_sandbox()
    assert mine.run(["pass"])[0].status == "passed"
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_child_has_its_own, args=(queue, 0))
    child.start()
    assert queue.get(timeout=30) == (True, "passed")
    child.join()
    assert mine.run(["pass"])[0].status == "passed"


def test_shared_sandbox_is_new_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = shared_sandbox()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert shared_sandbox() is not mine
    module._shared.pop(-1).close()


def test_missing_bubblewrap_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda _: None)
    with pytest.raises(SandboxUnavailableError, match="apt-get install bubblewrap"):
        Sandbox().run(["pass"])


def test_sandbox_that_cannot_start_says_what_bubblewrap_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["sh", "-c", "echo 'No permissions to create new namespace' >&2; exit 1"]
    monkeypatch.setattr(module, "_command", lambda: command)
    with pytest.raises(SandboxUnavailableError, match="No permissions to create new namespace"):
        Sandbox().run(["pass"])


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_timeout_must_be_positive(sandbox: Sandbox, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s must be above 0"):
        sandbox.run(["pass"], timeout_s=timeout_s)
