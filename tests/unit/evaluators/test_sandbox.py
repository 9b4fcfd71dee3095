"""The sandbox: what passes, what fails, how servers come, are shared, and go."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from configs.errors import SandboxUnavailableError
from configs.evaluation import SandboxKind
from evaluators import sandbox as module
from evaluators import sandbox_process as process_module
from evaluators.sandbox import (
    Sandbox,
    close_shared_sandboxes,
    select_sandbox,
    shared_sandbox,
)
from tests.fault.processes import wait_until_gone

KINDS: tuple[SandboxKind, ...] = ("strict", "weak")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    with Sandbox(request.param) as opened:
        yield opened


def below(process: psutil.Process | None = None) -> list[int]:
    """Pids of everything that a process (this one) has started, by way of others too."""
    found = (process or psutil.Process()).children(recursive=True)
    return [child.pid for child in found if child.name() in {"bwrap", "python3", "python3.11"}]


@pytest.mark.parametrize(
    ("program", "status", "detail"),
    [
        ("assert 1 + 1 == 2", "passed", ""),
        ("", "passed", ""),
        ("print('x' * 100_000)", "passed", ""),
        ("import asyncio\nasyncio.run(asyncio.sleep(0))", "passed", ""),
        ("import threading\nt = threading.Thread(target=print)\nt.start()\nt.join()", "passed", ""),
        ("import tempfile\nwith tempfile.TemporaryFile() as f: f.write(b'x')", "passed", ""),
        ("import math, re, heapq, itertools, collections, numbers, decimal", "passed", ""),
        # As in the original metric: a script's last lines are not for a test.
        ("if __name__ == '__main__': raise SystemExit", "passed", ""),
        ("assert 1 == 2, 'sums'", "failed", "AssertionError: sums"),
        ("def (", "failed", "SyntaxError"),
        ("x = bytearray(4 << 30)", "failed", "MemoryError"),
        ("import ctypes\nctypes.string_at(0)", "crashed", "SIGSEGV"),
        ("open('/usr/x', 'w')", "failed", "OSError"),
        ("open('f', 'wb').write(b'0' * (20 << 20))", "failed", "File too large"),
        ("import os\nassert os.getuid() != 0 and os.environ.get('HOME') is None", "passed", ""),
    ],
)
def test_program_gets_its_verdict(sandbox: Sandbox, program: str, status: str, detail: str) -> None:
    (result,) = sandbox.run([program])
    if "OSError" in detail:  # read-only where there are mounts, not permitted where there are none
        assert result.status == status
        assert result.detail.split(":")[0] in {"OSError", "PermissionError"}
        return
    assert result.status == status, result
    assert detail in result.detail


def test_results_come_in_the_order_of_the_programs(sandbox: Sandbox) -> None:
    results = sandbox.run([f"assert {n} % 3" for n in range(30)])
    assert [r.status == "passed" for r in results] == [bool(n % 3) for n in range(30)]


def test_endless_program_is_stopped_and_the_next_one_runs(sandbox: Sandbox) -> None:
    start = time.monotonic()
    late, fine = sandbox.run(["while True: pass", "pass"], timeout_s=0.3)
    assert (late.status, fine.status) == ("timeout", "passed")
    assert time.monotonic() - start < 5


def test_busy_machine_does_not_change_a_verdict(sandbox: Sandbox) -> None:
    # Needs 0.15 s of a processor, and gets a third of one.
    program = "import time\nwhile time.process_time() < 0.15: pass"
    spin = [sys.executable, "-c", "while True: pass"]
    cpu = min(os.sched_getaffinity(0))
    rivals = [subprocess.Popen(["taskset", "-c", str(cpu), *spin]) for _ in range(2)]
    try:
        pinned = f"import os\nos.sched_setaffinity(0, {{{cpu}}})\n{program}"
        (result,) = sandbox.run([pinned], timeout_s=0.25)
    finally:
        for rival in rivals:
            rival.kill()
            rival.wait()
    assert result.status == "passed"


def test_sleeping_is_no_computing(sandbox: Sandbox) -> None:
    start = time.monotonic()
    (result,) = sandbox.run(["import time\ntime.sleep(60)"], timeout_s=0.3)
    assert result.status == "timeout"
    assert time.monotonic() - start < 1.2


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_timeout_must_be_positive(sandbox: Sandbox, timeout_s: float) -> None:
    with pytest.raises(ValueError, match="timeout_s must be above 0"):
        sandbox.run(["pass"], timeout_s=timeout_s)


def test_at_least_one_server_is_asked_for() -> None:
    with pytest.raises(ValueError, match="servers must be at least 1, got 0"):
        Sandbox(servers=0)


def run_in_threads(sandbox: Sandbox, count: int, program: str) -> float:
    """Run one program in each of several threads at once; return the seconds it took."""
    statuses: list[str] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(sandbox.run([program])[0].status))
        for _ in range(count)
    ]
    start = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == ["passed"] * count
    return time.monotonic() - start


def test_servers_start_when_they_are_needed_and_run_at_once() -> None:
    with Sandbox(servers=3) as opened:
        assert opened._idle == []
        opened.run(["pass"] * 3)
        assert len(opened._idle) == 1
        assert run_in_threads(opened, 3, "import time\ntime.sleep(0.5)") < 1.4
        assert len(opened._idle) == 3


def test_programs_beyond_the_number_of_servers_wait() -> None:
    with Sandbox(servers=1) as opened:
        assert run_in_threads(opened, 3, "import time\ntime.sleep(0.2)") > 0.6
        assert len(opened._idle) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_server_that_died_is_replaced(kind: SandboxKind) -> None:
    with Sandbox(kind) as opened:
        opened.run(["pass"])
        opened._idle[0]._process.kill()
        opened._idle[0]._await_end()
        assert [r.status for r in opened.run(["pass"] * 2)] == ["passed"] * 2


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_program_that_takes_two_servers_down_is_blamed(
    kind: SandboxKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = process_module.ServerProcess.request

    def request(server, program, timeout_s):
        if "murder" in program:
            server._process.kill()
            server._await_end()
        return ask(server, program, timeout_s)

    monkeypatch.setattr(process_module.ServerProcess, "request", request)
    with Sandbox(kind) as opened:
        results = opened.run(["pass", "murder = 1", "pass"])
    assert [r.status for r in results] == ["passed", "crashed", "passed"]
    assert "took the sandbox down" in results[1].detail


def test_interrupted_run_does_not_hand_its_verdict_to_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    receive = process_module.ServerProcess._receive

    def interrupt(server, timeout_s):
        monkeypatch.setattr(process_module.ServerProcess, "_receive", receive)
        raise KeyboardInterrupt

    with Sandbox(servers=1) as opened:
        opened.run(["pass"])
        monkeypatch.setattr(process_module.ServerProcess, "_receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            opened.run(["pass"])
        assert opened.run(["assert False"])[0].status == "failed"


def test_sandbox_outlives_the_thread_that_started_it() -> None:
    with Sandbox() as opened:
        thread = threading.Thread(target=opened.run, args=(["pass"],))
        thread.start()
        thread.join()
        (server,) = opened._idle
        assert [r.status for r in opened.run(["pass"] * 3)] == ["passed"] * 3
        assert opened._idle == [server]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_closed_sandbox_leaves_no_process_and_no_directory(kind: SandboxKind) -> None:
    before = set(below())
    with Sandbox(kind, servers=2) as opened:
        run_in_threads(opened, 2, "import time\ntime.sleep(0.2)")
        mine = set(below()) - before
        assert len(mine) >= 2
        scratches = [server._scratch for server in opened._idle]
    # At once, but for the kernel's own time to bury bubblewrap's first process.
    assert wait_until_gone(mine, 0.5) == []
    assert all(scratch is None or not Path(scratch).exists() for scratch in scratches)
    assert opened.run(["pass"])[0].status == "passed"
    opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("busy", [False, True])
def test_nothing_survives_a_killed_parent(kind: SandboxKind, busy: bool) -> None:
    script = (
        "import json, psutil, threading, time\nfrom evaluators.sandbox import Sandbox\n"
        f"s = Sandbox({kind!r})\ns.run(['pass'])\n"
        f"if {busy}: threading.Thread(target=s.run, args=(['while True: pass'],),\n"
        "  kwargs={'timeout_s': 60}).start()\n"
        "time.sleep(0.2)\n"
        "pids = [p.pid for p in psutil.Process().children(recursive=True)]\n"
        "print(json.dumps(pids), flush=True)\n"
        "time.sleep(60)"
    )
    # What the killed parent leaves of its own directories goes with this one.
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        parent = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": scratch},
        )
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        assert len(pids) >= 1 + busy
        os.kill(parent.pid, signal.SIGKILL)
        parent.communicate()
        assert wait_until_gone(pids, 5) == []


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
    module._shared.pop((-1, "strict")).close()


def test_closing_shared_sandboxes_removes_their_directories(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_shared", {})
    select_sandbox("weak")
    try:
        mine = shared_sandbox()
        (result,) = mine.run(["pass"])
        scratches = [Path(str(server._scratch)) for server in mine._idle]
        assert result.status == "passed"
        assert all(scratch.is_dir() for scratch in scratches)
        assert scratches
        close_shared_sandboxes()
        assert not any(scratch.exists() for scratch in scratches)
        assert mine.run(["pass"]) == [result]
        close_shared_sandboxes()
    finally:
        select_sandbox("strict")


def test_shared_sandbox_is_strict_until_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shared_sandbox().kind == "strict"
    monkeypatch.setattr(module._selected, "kind", "strict")  # restored afterwards
    select_sandbox("weak")
    assert shared_sandbox().kind == "weak"
    select_sandbox("strict")
    assert shared_sandbox().kind == "strict"


def test_missing_bubblewrap_names_the_package_and_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process_module.shutil, "which", lambda _: None)
    with pytest.raises(SandboxUnavailableError, match="apt-get install bubblewrap") as caught:
        Sandbox().run(["pass"])
    assert "`evaluation.sandbox: weak`" in str(caught.value)
    with Sandbox("weak") as weak:
        assert weak.run(["pass"])[0].status == "passed"


def test_missing_interpreter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_module, "INTERPRETER", "/usr/bin/python0")
    for kind in KINDS:
        with pytest.raises(SandboxUnavailableError, match="there is no `/usr/bin/python0`"):
            Sandbox(kind).run(["pass"])


def test_sandbox_that_cannot_start_says_what_bubblewrap_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["sh", "-c", "echo 'No permissions to create new namespace' >&2; exit 1"]
    monkeypatch.setattr(process_module, "_bubblewrap", lambda user: command)
    opened = Sandbox(servers=1)
    for _ in range(2):  # a failed start gives its place back
        with pytest.raises(SandboxUnavailableError, match="No permissions to create new namesp"):
            opened.run(["pass"])
    opened.close()
