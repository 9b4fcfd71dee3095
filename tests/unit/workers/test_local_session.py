import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.local_session import LocalSession, session_root

HOLD = """
import subprocess, sys, time
from pathlib import Path
from workers.local_session import LocalSession
with LocalSession(Path(sys.argv[1])) as session:
    # A process that would outlive this one, and writes into the session's directory.
    with open(session.directory / "log", "w") as log:
        child = subprocess.Popen(["sleep", "600"], start_new_session=True, stdout=log)
    print(session.directory, child.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    yield process
    process.kill()
    process.communicate()


def wait_until(condition, within_s):
    end = time.monotonic() + within_s
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.fixture
def start_writer():
    """Starts processes that keep a file open."""
    writers = []

    def start(path):
        with path.open("w") as log:
            writers.append(subprocess.Popen(["sleep", "600"], stdout=log))
        return writers[-1]

    yield start
    for writer in writers:
        writer.kill()
        writer.wait()


def test_local_session_removes_its_directory_and_kills_nothing_when_closed(tmp_path, start_writer):
    with LocalSession(tmp_path) as session:
        writer = start_writer(session.directory / "log")
        assert session.directory.parent == tmp_path
        assert session.directory.stat().st_mode & 0o077 == 0
    assert list(tmp_path.iterdir()) == []
    time.sleep(0.2)
    assert writer.poll() is None


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_local_session_ends_processes_and_directory_when_its_process_is_killed(
    tmp_path, holder, end
):
    directory, pid = holder.stdout.readline().split()
    assert is_running(pid)
    holder.send_signal(end)
    holder.wait()
    assert wait_until(lambda: not is_running(pid), within_s=5)
    assert wait_until(lambda: not list(tmp_path.iterdir()), within_s=8), directory


def test_local_session_ends_only_processes_that_have_its_files_open(tmp_path, start_writer):
    with LocalSession(tmp_path) as session, (session.directory / "own").open("w"):
        inside = start_writer(session.directory / "log")
        outside = start_writer(tmp_path / f"{session.directory.name}-not")
        session.end_processes()
        assert inside.wait(timeout=5) == -signal.SIGKILL
        assert outside.poll() is None


def test_local_session_can_be_closed_twice(tmp_path):
    session = LocalSession(tmp_path)
    session.close()
    session.close()


def test_session_root_is_short_enough_for_sockets_when_the_temporary_directory_is_not(
    monkeypatch, tmp_path
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "a-rather-long-name-of-a-directory"))
    assert str(session_root()) == "/tmp"
