"""Processes that outlive whoever started them, and are found again."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from optimizer.service import detached
from optimizer.service.errors import ConflictError
from optimizer.service.exports import tar_of
from optimizer.service.processes import KILLED, DetachedProcess
from tests.waiting import wait_until

SLEEP = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(60)"]
POLITE = [
    sys.executable,
    "-c",
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
    "print('up', flush=True)\n"
    "time.sleep(60)\n",
]


@pytest.fixture
def process(tmp_path):
    found = DetachedProcess(tmp_path / "work")
    yield found
    if found.is_alive:
        found.kill()


def test_command_is_recorded_before_start_returns_and_its_end_afterwards(process):
    process.start([sys.executable, "-c", "print('hello'); raise SystemExit(3)"])
    assert process.facts().was_started
    wait_until(lambda: process.facts().exit_code is not None)
    assert process.facts().exit_code == 3
    assert not process.is_alive
    assert process.last_output() == "hello\n"


def test_process_is_no_child_and_leads_a_session_of_its_own(process):
    process.start(SLEEP)
    assert os.getsid(process.facts().pid) != os.getsid(0)
    with pytest.raises(ChildProcessError):
        os.waitpid(process.facts().pid, os.WNOHANG)


def test_process_outlives_a_starter_that_is_killed(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from optimizer.service.processes import DetachedProcess\n"
        f"DetachedProcess(Path({str(tmp_path / 'work')!r})).start({SLEEP!r})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, start_new_session=True)
    assert done.returncode == -signal.SIGKILL
    found = DetachedProcess(tmp_path / "work")
    try:
        assert found.is_alive
        wait_until(lambda: found.last_output() == "up\n")
        with pytest.raises(ConflictError, match="at work there already"):
            found.start(SLEEP)
    finally:
        found.kill()
    wait_until(lambda: not found.is_alive)
    assert found.facts().exit_code == KILLED


def test_process_is_asked_to_end_and_says_how_it_did(process):
    process.start(POLITE)
    wait_until(lambda: process.last_output() == "up\n")
    process.ask_to_end()
    wait_until(lambda: process.facts().exit_code is not None)
    assert process.facts().exit_code == 143


def test_supervisor_hands_on_one_signal_however_many_come(process):
    code = POLITE[2].replace("sys.exit(143)", "print('asked', flush=True)")
    process.start([*POLITE[:2], code])
    wait_until(lambda: process.last_output() == "up\n")
    for _ in range(3):
        process.ask_to_end()
        wait_until(lambda: "asked" in process.last_output())
    time.sleep(0.2)
    assert process.last_output() == "up\nasked\n"


def test_process_whose_supervisor_was_killed_is_asked_once(process):
    code = POLITE[2].replace("sys.exit(143)", "print('asked', flush=True)")
    process.start([*POLITE[:2], code])
    wait_until(lambda: process.last_output() == "up\n")
    supervisor = json.loads((process.directory / detached.PROCESS).read_text())["supervisor"]
    os.kill(supervisor["pid"], signal.SIGKILL)
    wait_until(lambda: detached.identity(supervisor["pid"]) is None)
    process.ask_to_end()
    wait_until(lambda: "asked" in process.last_output())
    process.ask_to_end(again=True)
    time.sleep(0.2)
    assert process.last_output() == "up\nasked\n"


def test_kill_ends_what_the_process_started_when_its_supervisor_is_gone(process):
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    process.start([sys.executable, "-c", code])
    wait_until(lambda: process.last_output().endswith("\n"))
    child = int(process.last_output())
    supervisor = json.loads((process.directory / detached.PROCESS).read_text())["supervisor"]
    os.kill(supervisor["pid"], signal.SIGKILL)
    wait_until(lambda: detached.identity(supervisor["pid"]) is None)
    assert process.is_alive
    process.kill()
    wait_until(lambda: detached.identity(child) is None)
    assert process.facts().exit_code == KILLED


def test_threads_that_write_one_record_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "record.json"

    def write(number):
        for _ in range(100):
            detached.write_whole(path, {"number": number})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert json.loads(path.read_text())["number"] in range(8)
    assert [found.name for found in tmp_path.iterdir()] == ["record.json"]


def test_another_process_of_the_same_number_is_not_taken_for_it(process):
    process.start(SLEEP)
    record = json.loads((process.directory / detached.PROCESS).read_text())
    process.kill()
    wait_until(lambda: not process.is_alive)
    here = detached.identity(os.getpid())
    for name in ("supervisor", "process"):
        record[name] = {**here, "start": here["start"] - 1}
    (process.directory / detached.PROCESS).write_text(json.dumps(record))
    assert not process.is_alive
    process.ask_to_end()  # would end this test
    process.kill()


def test_damaged_record_counts_as_none(process):
    process.directory.mkdir()
    for text in ("", "[]", "{", '{"process": 1}', '{"process": {"pid": "x"}}'):
        (process.directory / detached.PROCESS).write_text(text)
        assert not process.is_alive
        assert process.facts().exit_code is None


def test_command_that_is_missing_is_an_end_like_others(process):
    process.start(["/nowhere/at/all"])
    wait_until(lambda: process.facts().exit_code is not None)
    assert process.facts().exit_code == 127
    assert "No such file" in (process.error() or "")


def test_last_error_is_found_in_the_output(process):
    process.directory.mkdir()
    process.log.write_text("error: first\nok\nerror: 2 problems in job.yaml\n  seed: must be\n")
    assert process.error() == "2 problems in job.yaml\n  seed: must be"
    process.log.write_text("no error: at the beginning of a line\n")
    assert process.error() is None


def test_tar_is_what_is_there_and_as_long_as_was_said(tmp_path):
    model = tmp_path / "model"
    (model / ("deep" * 30)).mkdir(parents=True)
    contents = {
        "config.json": b"{}",
        "empty": b"",
        "block": b"x" * 512,
        f"{'deep' * 30}/{'n' * 90}": b"long name",
        "model.safetensors": os.urandom(3_000_001),
    }
    for name, content in contents.items():
        (model / name).write_bytes(content)
    (model / "link").symlink_to("/etc/passwd")
    tar = tar_of(model, "merge")
    data = b"".join(tar.chunks)
    assert len(data) == tar.size_bytes
    (tmp_path / "file.tar").write_bytes(data)
    with tarfile.open(tmp_path / "file.tar") as archive:
        found = {member.name: archive.extractfile(member).read() for member in archive.getmembers()}
    assert found == {f"merge/{name}": content for name, content in contents.items()}


def test_file_that_shrinks_breaks_the_tar(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    tar = tar_of(tmp_path, "merge")
    (tmp_path / "a").write_bytes(b"x")
    with pytest.raises(OSError, match="shorter"):
        b"".join(tar.chunks)
