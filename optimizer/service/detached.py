"""Runs a command that outlives whoever started it, and leaves a record of it in a directory.

Run by its path: ``python detached.py DIRECTORY COMMAND...``. It imports the standard library only.
It returns once ``process.json`` says which process it is; that one leads a session of its own,
waits for the command, hands the first SIGTERM on to it, and writes its exit code to ``ended.json``.
What the command prints is appended to ``log.txt``.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

PROCESS, ENDED, LOG = "process.json", "ended.json", "log.txt"


def identity(pid: int) -> dict[str, object] | None:
    """Name a process for good: another of the same number began at another time, or boot.

    Returns:
        ``pid``, ``start`` (clock ticks since boot) and ``boot``; None where it has ended.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    # The name of the program, in parentheses, may hold anything.
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return None
    return {"pid": pid, "start": int(fields[19]), "boot": boot}


def write_whole(path: Path, content: object) -> None:
    """Write JSON so that a reader sees all of it or what was there before."""
    # Of its own: threads of one process may write the same file at once.
    new = path.with_name(f".{path.name}.{os.urandom(6).hex()}")
    new.write_text(json.dumps(content), encoding="utf-8")
    new.replace(path)


def main() -> None:
    """Run the command."""
    directory, command = Path(sys.argv[1]), sys.argv[2:]
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        # The other side closes it when the record is there, or dies.
        sys.exit(0 if os.read(reader, 1) else 1)
    os.close(reader)
    os.setsid()
    log = os.open(directory / LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, target in enumerate((nothing, log, log)):
        os.dup2(target, number)
    _supervise(directory, command, writer)


def _supervise(directory: Path, command: list[str], writer: int) -> None:
    (directory / ENDED).unlink(missing_ok=True)
    record: dict[str, object] = {
        "supervisor": identity(os.getpid()),
        "command": command,
        "started_at": time.time(),
    }
    write_whole(directory / PROCESS, record)
    child: subprocess.Popen[bytes] | None = None
    # Handed on once: a second one would have a search that saves give up. Taking an element is a
    # single step, so no signal comes between a look and what follows from it.
    asked, unsent = [False], [signal.SIGTERM]

    def hand_on() -> None:
        if child is not None and asked[0]:
            with suppress(IndexError):
                child.send_signal(unsent.pop())

    def ask(_number: int, _frame: object) -> None:
        asked[0] = True
        hand_on()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        child = subprocess.Popen(command)
    except OSError as error:
        os.write(1, f"error: {error}\n".encode())
        write_whole(directory / ENDED, {"exit_code": 127, "ended_at": time.time()})
        os.write(writer, b"1")
        return
    write_whole(directory / PROCESS, {**record, "process": identity(child.pid)})
    hand_on()  # what came before there was somebody to hand it to
    os.write(writer, b"1")
    os.close(writer)
    code = child.wait()
    write_whole(directory / ENDED, {"exit_code": code, "ended_at": time.time()})


if __name__ == "__main__":
    main()
