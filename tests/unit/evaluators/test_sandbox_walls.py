"""The walls where a machine lacks what they are made of, and the system calls they know."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import SandboxUnavailableError
from evaluators import sandbox_process, sandbox_walls
from evaluators.sandbox import Sandbox

ROOT = Path(__file__).parents[3]
# A filter under which the kernel has no Landlock, or an old one: the rest of the script runs in it.
WITHOUT_LANDLOCK = """
import ctypes, errno, struct, sys
from evaluators import sandbox_walls as walls
library = walls._libseccomp()
context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(0x7FFF0000)))
library.seccomp_rule_add_array(context, ctypes.c_uint32(0x00050000 | errno.ENOSYS), 444, 0, None)
assert library.seccomp_load(context) == 0
from evaluators.sandbox import Sandbox
try:
    Sandbox("weak").run(["pass"])
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""


def run_script(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_weak_sandbox_is_refused_where_the_kernel_has_no_landlock() -> None:
    said = run_script(WITHOUT_LANDLOCK)
    assert said.startswith("SandboxUnavailableError: generated code cannot be run in the weak")
    assert "the kernel has no Landlock, and version 3 is needed (Linux 6.2 or later" in said


def test_old_landlock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox_walls, "landlock_abi", lambda: 2)
    with pytest.raises(sandbox_walls.WallError, match="version 2 of Landlock, and version 3 is"):
        sandbox_walls.landlock("/nowhere")


@pytest.mark.parametrize("kind", ["strict", "weak"])
def test_missing_libseccomp_names_the_package(kind, monkeypatch: pytest.MonkeyPatch) -> None:
    walls, server = sandbox_process.read_sources()
    without = walls.replace("libseccomp.so.2", "libnothing.so.2")
    monkeypatch.setattr(sandbox_process, "read_sources", lambda: (without, server))
    with pytest.raises(SandboxUnavailableError, match="apt-get install libseccomp2"):
        Sandbox(kind).run(["pass"])


def test_every_denied_system_call_is_known_to_libseccomp() -> None:
    library = sandbox_walls._libseccomp()
    names = " ".join(sandbox_walls._DENIED.values()).split()
    names += sandbox_walls._DENIED_OUTSIDE_MOUNTS.split()
    names += [rule[0] for rule in sandbox_walls._DENIED_IF]
    assert [name for name in names if sandbox_walls._number(library, name) == -1] == []


def test_numbers_given_for_new_system_calls_are_those_of_their_names() -> None:
    library = sandbox_walls._libseccomp()
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    native = library.seccomp_arch_native()
    known = {}
    for number in (*sandbox_walls._DENIED_NUMBERS, sandbox_walls._CLONE3):
        text = library.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(native), number)
        if text:
            known[number] = ctypes.string_at(text).decode()
    assert known[435] == "clone3"
    assert {known[424], known[425], known[434], known[438]} == {
        "pidfd_send_signal",
        "io_uring_setup",
        "pidfd_open",
        "pidfd_getfd",
    }
    assert known[440] == "process_madvise"


def test_programs_may_still_do_what_solutions_do() -> None:
    programs = [
        "import os\nr, w = os.pipe()\nos.write(w, b'x')\nassert os.read(r, 1) == b'x'",
        "import resource\nassert resource.getrlimit(resource.RLIMIT_AS)[0] == 512 << 20",
        "import os\nos.sched_setaffinity(0, os.sched_getaffinity(0))",
        "import socket\na, b = socket.socketpair()\na.send(b'x')\nassert b.recv(1) == b'x'",
        "import concurrent.futures as f\nwith f.ThreadPoolExecutor(4) as e: list(e.map(abs, [1]))",
    ]
    for kind in ("strict", "weak"):
        with Sandbox(kind) as sandbox:
            assert {(r.status, r.detail) for r in sandbox.run(programs)} == {("passed", "")}
