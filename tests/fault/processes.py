"""Watching processes end."""

from collections.abc import Iterable

import psutil


def wait_until_gone(pids: Iterable[int], within_s: float) -> list[psutil.Process]:
    """Wait for processes to end (zombies have ended); returns those that are left."""
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    _, left = psutil.wait_procs(processes, timeout=within_s)
    return [process for process in left if _is_running(process)]


def _is_running(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
