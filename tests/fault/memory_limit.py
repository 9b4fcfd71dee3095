"""A limit on the memory of processes that the kernel enforces by killing them (cgroups; root)."""

import contextlib
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def memory_limit(directory: Path, limit_bytes: int) -> Iterator[Path]:
    """Make a control group; yields its file ``cgroup.procs``, which takes ids of processes.

    Args:
        directory: Empty, of the test: where there is no hierarchy of cgroups 2, one of version 1
            is mounted there.
        limit_bytes: Of what the processes use from then on.
    """
    root = Path("/sys/fs/cgroup")
    file, is_mounted = "memory.max", False
    if os.geteuid() != 0:
        pytest.skip("control groups need root")
    if "memory" not in _words(root / "cgroup.subtree_control"):
        root, file, is_mounted = directory, "memory.limit_in_bytes", True
        mount = ["mount", "-t", "cgroup", "-o", "memory", "none", str(root)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("no control groups with memory here")
    group = root / f"mergefront-{secrets.token_hex(4)}"
    try:
        group.mkdir()
        (group / file).write_text(str(limit_bytes))
        yield group / "cgroup.procs"
    finally:
        for pid in _words(group / "cgroup.procs"):
            with contextlib.suppress(OSError):
                (root / "cgroup.procs").write_text(pid)
        with contextlib.suppress(OSError):
            group.rmdir()
        if is_mounted:
            subprocess.run(["umount", "-l", str(root)], check=True)


def _words(path: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return path.read_text().split()
    return []
