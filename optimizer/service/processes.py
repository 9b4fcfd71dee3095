"""Processes that the service starts, and finds again after it was killed itself.

All that is known of one is in files beside what it works on (``optimizer.service.detached``): the
service holds no handle, and is no parent.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optimizer
from optimizer.service import detached
from optimizer.service.errors import ConflictError

_START_S, _KILL_S = 60.0, 5.0
LAST_BYTES = 20_000
"""Of what was printed, how much is shown."""
KILLED = -9


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """What one look found of a process.

    Attributes:
        was_started: Whether there ever was one.
        is_alive: Whether it is at work.
        pid: Number of the one that works, or worked last.
        exit_code: How it ended; None while it works, where there was none, and where nobody knows.
        ended_at: When it ended: seconds since 1970; None while it works, and where nobody knows.
    """

    was_started: bool = False
    is_alive: bool = False
    pid: int | None = None
    exit_code: int | None = None
    ended_at: float | None = None


class DetachedProcess:
    """The process that works, or worked last, on what a directory is of.

    Args:
        directory: Where its record is; made when one is started.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def start(self, command: Sequence[str]) -> None:
        """Start a command in the directory, in a session of its own, and return.

        Raises:
            ConflictError: One is running already, or it cannot be started.
        """
        if self.is_alive:
            raise ConflictError(f"a process is at work there already ({self.facts().pid})")
        self.directory.mkdir(parents=True, exist_ok=True)
        # Not with -m: it need not wait for the imports of a package.
        starter = [sys.executable, "-I", str(detached.__file__), str(self.directory)]
        done = subprocess.run(
            [*starter, *command],
            cwd=self.directory,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START_S,
            check=False,
        )
        if done.returncode:
            reason = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise ConflictError(f"the process cannot be started: {' '.join(reason) or 'it ended'}")

    @property
    def is_alive(self) -> bool:
        """Whether it is at work."""
        return _is_alive(self._record())

    def facts(self) -> ProcessFacts:
        """Look at its records and whether it is still there, each once."""
        record = self._record()
        if not record:
            return ProcessFacts()
        known = record.get("process") or record.get("supervisor")
        pid = known.get("pid") if isinstance(known, Mapping) else None
        pid = pid if isinstance(pid, int) else None
        if _is_alive(record):
            return ProcessFacts(was_started=True, is_alive=True, pid=pid)
        # After the look at it: it writes down how it ended before it is gone.
        ended = read_record(self.directory / detached.ENDED)
        code, ended_at = ended.get("exit_code"), ended.get("ended_at")
        return ProcessFacts(
            was_started=True,
            pid=pid,
            exit_code=code if isinstance(code, int) else None,
            ended_at=float(ended_at) if isinstance(ended_at, int | float) else None,
        )

    @property
    def log(self) -> Path:
        """The file with what it printed."""
        return self.directory / detached.LOG

    def error(self) -> str | None:
        """Return the last error that it printed."""
        _, found, message = f"\n{self.last_output()}".rpartition("\nerror: ")
        return message.strip() if found else None

    def last_output(self) -> str:
        """Return the end of what it printed."""
        try:
            with self.log.open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - LAST_BYTES))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def ask_to_end(self, *, again: bool = False) -> None:
        """Send SIGTERM: a search finishes what is under way.

        Args:
            again: It was asked before, and a second signal would have it give up: only a
                supervisor, which hands one on and no more, gets this one.
        """
        record = self._record()
        for name in ("supervisor",) if again else ("supervisor", "process"):
            if _is_same(record.get(name)):
                with suppress(ProcessLookupError):
                    os.kill(int(record[name]["pid"]), signal.SIGTERM)
                return

    def kill(self) -> None:
        """End it and all that it started in its session, at once."""
        record = self._record()
        if not _is_alive(record):
            return
        for name in ("supervisor", "process"):
            if _is_same(record.get(name)):
                pid = int(record[name]["pid"])
                with suppress(ProcessLookupError):
                    # The group is the supervisor's, who may be gone while others of it are not.
                    os.killpg(os.getpgid(pid), signal.SIGKILL)
        end = time.monotonic() + _KILL_S
        while any(map(_is_same, record.values())) and time.monotonic() < end:
            time.sleep(0.01)
        ended = {"exit_code": KILLED, "ended_at": time.time()}
        detached.write_whole(self.directory / detached.ENDED, ended)

    def forget(self) -> None:
        """Remove the record of one that has ended; what it printed stays."""
        for name in (detached.PROCESS, detached.ENDED):
            (self.directory / name).unlink(missing_ok=True)

    def _record(self) -> dict[str, Any]:
        return read_record(self.directory / detached.PROCESS)


def command_line(*arguments: str | Path) -> list[str]:
    """Return the command ``mergefront`` with arguments, of this installation."""
    # -P: what lies in the working directory is no module.
    return [sys.executable, "-P", "-m", "optimizer.cli", *map(str, arguments)]


def child_environment() -> dict[str, str]:
    """Return the environment of processes that run this very code."""
    home = str(Path(str(optimizer.__file__)).parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _is_alive(record: Mapping[str, object]) -> bool:
    return any(_is_same(record.get(name)) for name in ("supervisor", "process"))


def _is_same(known: object) -> bool:
    """Whether a recorded process is still there, and not another of the same number."""
    if not isinstance(known, Mapping) or not isinstance(known.get("pid"), int):
        return False
    return detached.identity(known["pid"]) == dict(known)


def read_record(path: Path) -> dict[str, Any]:
    """Read a mapping from a JSON file; empty where there is none that can be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
