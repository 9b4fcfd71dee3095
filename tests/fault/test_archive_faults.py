"""What an archive promises holds when its writer is killed or its disk is full."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.errors import ArchiveError, ArchiveLockedError
from optimizer.archive.archive import Archive
from tests.contract.archive_examples import (
    completed,
    example_archive,
    example_candidate,
)

ROOT = Path(__file__).parents[2]
WRITER = Path(__file__).with_name("archive_writer.py")
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def record_for_ever(archive: Archive, promised: set[int]) -> None:
    while True:
        index = len(archive.observations())
        if index == len(archive.candidates()):
            archive.record_proposal(example_candidate(index))
        assert archive.record_outcome(completed(index))
        promised.add(index)


@pytest.mark.parametrize(
    ("kills", "seed"),
    [
        pytest.param(20, 0, marks=pytest.mark.slow),
        pytest.param(200, 1, marks=pytest.mark.campaign),
    ],
)
def test_archive_keeps_what_it_promised_when_its_writer_is_killed(tmp_path, kills, seed) -> None:
    path = tmp_path / "search.sqlite"
    command = [sys.executable, str(WRITER), str(path), str(kills), str(seed)]
    done = subprocess.run(
        command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    lives = [json.loads(line) for line in done.stdout.splitlines()]

    assert len(lives) == kills
    promised: set[tuple[int, str]] = set()
    for life in lives:
        recorded = [tuple(key) for key in life["recorded"]]
        promised |= {tuple(key) for key in life["promised"]}
        assert life["wrong"] == []
        assert len(set(recorded)) == len(recorded)
        assert promised <= set(recorded)
        # At most the one outcome between its commit and its promise is recorded unpromised.
        promised |= set(recorded)
    assert len(promised) > 2 * kills


def test_second_writer_is_admitted_when_the_first_was_killed(tmp_path) -> None:
    path = tmp_path / "search.sqlite"
    example_archive(path).close()
    program = (
        "import sys, time; from pathlib import Path; "
        "from optimizer.archive.archive import Archive; "
        "from tests.contract.archive_examples import *; "
        "archive = Archive.open(Path(sys.argv[1]), writable=True); "
        "archive.record_proposal(example_candidate(0)); print('ready', flush=True); "
        "time.sleep(60)"
    )
    first = subprocess.Popen(
        [sys.executable, "-c", program, str(path)],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "ready\n"
        with pytest.raises(
            ArchiveLockedError, match=f"written by process {first.pid} on "
        ) as caught:
            Archive.open(path, writable=True)
        assert caught.value.context["owner"]["pid"] == first.pid
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()

    started = time.monotonic()
    with Archive.open(path, writable=True) as second:
        assert time.monotonic() - started < 30, "it waited for the lock"
        assert len(second.candidates()) == 1
        assert second.record_outcome(completed(0)) is True


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a small file system here: needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_archive_loses_nothing_when_the_disk_is_full(small_disk) -> None:
    path = small_disk / "search.sqlite"
    (small_disk / "ballast").write_bytes(bytes(200_000))
    archive = example_archive(path)
    promised: set[int] = set()
    with pytest.raises(ArchiveError, match=r"cannot be written: the disk is full.*is safe"):
        record_for_ever(archive, promised)
    index = len(promised)
    assert index > 5

    assert set(archive.scores("search")) == promised
    with Archive.open(path) as reader:
        assert set(reader.scores("search")) == promised
        assert reader.task_scores(index - 1, "search").keys() == completed(0).task_scores.keys()

    # The same process goes on when there is room again.
    (small_disk / "ballast").unlink()
    if len(archive.candidates()) == index:
        archive.record_proposal(example_candidate(index))
    assert archive.record_outcome(completed(index)) is True
    archive.close()
    with Archive.open(path, writable=True) as resumed:
        assert set(resumed.scores("search")) == promised | {index}


def test_archive_is_not_half_made_when_the_disk_is_full(small_disk) -> None:
    path = small_disk / "search.sqlite"
    ballast = small_disk / "ballast"
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    ballast.write_bytes(bytes(free - 40_000))

    with pytest.raises(ArchiveError, match="the disk is full"):
        example_archive(path)
    assert not path.exists()
    ballast.unlink()
    with example_archive(path) as archive:
        archive.record_proposal(example_candidate(0))


def test_resume_says_so_when_the_disk_is_full(small_disk) -> None:
    path = small_disk / "search.sqlite"
    with example_archive(path) as archive:
        archive.record_proposal(example_candidate(0))
        archive.record_outcome(completed(0))
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "ballast").write_bytes(bytes(free))

    with (
        pytest.raises(ArchiveError, match=r"search\.sqlite .*(full|No space left)"),
        Archive.open(path, writable=True) as archive,
    ):
        record_for_ever(archive, set())
    (small_disk / "ballast").unlink()
    with Archive.open(path, writable=True) as archive:
        assert 0 in archive.scores("search")
        archive.record_proposal(example_candidate(len(archive.candidates())))
