"""The lock of an archive: one holder, who is named, and nothing stale."""

import errno
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from configs.errors import ArchiveError, ArchiveLockedError
from optimizer.archive import lock
from optimizer.archive.archive import Archive
from optimizer.archive.lock import ArchiveLock, owner_of_file
from optimizer.archive.owner import SILENT_S, Heartbeat
from tests.contract.archive_examples import completed, example_archive, example_candidate


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "search.sqlite"


def test_lock_has_one_holder(archive) -> None:
    with ArchiveLock(archive):
        for _ in range(2):
            with pytest.raises(ArchiveLockedError) as caught:
                ArchiveLock(archive)
    assert f"by process {os.getpid()} on {os.uname().nodename} since 20" in caught.value.message
    assert caught.value.context["owner"]["pid"] == os.getpid()
    ArchiveLock(archive).release()


def test_lock_names_its_new_holder_when_the_old_text_is_longer(archive) -> None:
    lock_file = archive.with_name("search.sqlite.lock")
    lock_file.write_text("x" * 1000, encoding="utf-8")
    with ArchiveLock(archive):
        assert json.loads(lock_file.read_text(encoding="utf-8"))["pid"] == os.getpid()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 3}', "\0\0"])
def test_lock_is_refused_when_its_holder_is_unreadable(archive, text) -> None:
    with ArchiveLock(archive) as held:
        held.path.write_text(text, encoding="utf-8")
        with pytest.raises(ArchiveLockedError, match="being written by another process"):
            ArchiveLock(archive)


def test_lock_may_be_released_twice(archive) -> None:
    held = ArchiveLock(archive)
    held.release()
    held.release()
    ArchiveLock(archive).release()


def test_lock_says_so_when_its_file_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match=r"cannot be locked for writing: .*make its directory"):
        ArchiveLock(tmp_path / "file" / "search.sqlite")


def test_owner_is_who_holds_the_lock(archive) -> None:
    ArchiveLock(archive).release()
    assert owner_of_file(archive) is None  # this process lives, and let go
    with ArchiveLock(archive) as held:
        assert owner_of_file(archive).pid == os.getpid()
        owner = json.loads(held.path.read_text())
        for text in (
            # A later process with the same number; none with the number; half a text.
            json.dumps({**owner, "started_at": "2001-01-01T00:00:00+00:00"}),
            json.dumps({**owner, "pid": 2**22 + 1}),
            "{",
        ):
            held.path.write_text(text)
            assert owner_of_file(archive) is None


def test_asking_who_writes_keeps_no_writer_out(archive) -> None:
    ArchiveLock(archive).release()
    assert owner_of_file(archive) is None
    ArchiveLock(archive).release()


def test_owner_on_another_machine_counts_as_long_as_it_gives_signs_of_life(archive) -> None:
    """Where the file is shared by machines that do not see each other's locks."""
    text = {"pid": 1, "host": "another", "started_at": "2026-01-01T00:00:00+00:00"}
    lock_file = archive.with_name("search.sqlite.lock")
    lock_file.write_text(json.dumps(text))
    assert owner_of_file(archive).host == "another"
    silent_since = time.time() - SILENT_S - 1
    os.utime(lock_file, (silent_since, silent_since))
    assert owner_of_file(archive) is None


@pytest.fixture
def quick(monkeypatch):
    """Owners count as gone after half a second."""
    monkeypatch.setattr(lock, "SILENT_S", 0.5)
    monkeypatch.setattr(lock, "POLL_S", 0.02)
    monkeypatch.setattr(lock, "CHECK_EVERY_S", 0.05)


def left_behind(archive, silent_s=0.0, **changes) -> Path:
    """Write the text of an owner that did not end: by default of another machine."""
    lock_file = archive.with_name("search.sqlite.lock")
    text = {"pid": 1, "host": "another", "started_at": "2026-01-01T00:00:00+00:00"}
    lock_file.write_text(json.dumps({**text, "inode": "boot 1 2", **changes}))
    since = time.time() - silent_s
    os.utime(lock_file, (since, since))
    return lock_file


@pytest.mark.usefixtures("quick")
def test_owner_on_another_machine_that_lives_is_not_disturbed(archive) -> None:
    lock_file = left_behind(archive)
    text = lock_file.read_text()
    other = Heartbeat(lambda: os.utime(lock_file), every_s=0.1)
    with pytest.raises(ArchiveLockedError, match=r"by process 1 on another since 2026.*sign of"):
        ArchiveLock(archive)
    other.stop()
    assert lock_file.read_text() == text


def test_owner_on_another_machine_that_is_silent_is_not_waited_for(archive, caplog) -> None:
    left_behind(archive, silent_s=SILENT_S + 1)
    began = time.monotonic()
    ArchiveLock(archive).release()
    assert time.monotonic() - began < SILENT_S / 2
    assert not caplog.records


@pytest.mark.usefixtures("quick")
def test_owner_on_another_machine_that_left_without_a_word_is_waited_for(archive, caplog) -> None:
    left_behind(archive)
    began = time.monotonic()
    with ArchiveLock(archive) as held:
        assert time.monotonic() - began >= 0.5
        assert json.loads(held.path.read_text())["pid"] == os.getpid()
    assert "process 1 on another" in caplog.text
    assert "waiting for at most 0 s" in caplog.text or "waiting for at most 1 s" in caplog.text


@pytest.mark.usefixtures("quick")
def test_wait_ends_when_clocks_disagree(archive) -> None:
    left_behind(archive, silent_s=-3600)
    ArchiveLock(archive).release()


def test_kernel_knows_better_than_the_text_where_the_file_is_the_same(archive, caplog) -> None:
    """After kill -9 on this machine, be it in a container with another name and other numbers."""
    lock_file = left_behind(archive)
    began = time.monotonic()
    left_behind(archive, inode=lock._inode(lock_file))
    ArchiveLock(archive).release()
    left_behind(archive, inode=None, host=socket.gethostname())  # as older versions wrote it
    ArchiveLock(archive).release()
    assert time.monotonic() - began < SILENT_S / 2
    assert not caplog.records


def test_holder_that_ends_leaves_nothing_behind(archive) -> None:
    ArchiveLock(archive).release()
    assert archive.with_name("search.sqlite.lock").read_text() == ""


@pytest.mark.usefixtures("quick")
def test_holder_that_was_silent_for_too_long_stops_and_leaves_the_next_alone(archive) -> None:
    held = ArchiveLock(archive)
    held.check()
    lock_file = left_behind(archive, silent_s=100)
    text, beaten_at = lock_file.read_text(), lock_file.stat().st_mtime
    held._beat()
    assert lock_file.stat().st_mtime == beaten_at, "it beat for another"
    time.sleep(0.06)
    with pytest.raises(ArchiveLockedError, match=r"process 1 on another.*it counted as gone"):
        held.check()
    held.release()
    assert lock_file.read_text() == text


def test_nothing_is_written_into_an_archive_that_another_took_over(tmp_path, quick) -> None:
    archive = example_archive(tmp_path / "search.sqlite")
    archive.record_proposal(example_candidate(0))
    left_behind(tmp_path / "search.sqlite")
    time.sleep(0.06)
    with pytest.raises(ArchiveLockedError, match="it counted as gone"):
        archive.record_outcome(completed(0))
    archive.close()
    with Archive.open(tmp_path / "search.sqlite") as reader:
        assert (len(reader.candidates()), reader.observations()) == (1, [])


@pytest.mark.usefixtures("quick")
def test_of_all_that_waited_for_one_silence_one_goes_on(archive, monkeypatch) -> None:
    monkeypatch.setattr(lock.fcntl, "flock", lambda *_: None)  # no machine sees another's locks
    left_behind(archive)

    def take(_number) -> ArchiveLock | None:
        try:
            return ArchiveLock(archive)
        except ArchiveLockedError:
            return None

    with ThreadPoolExecutor(4) as threads:
        held = [found for found in threads.map(take, range(4)) if found is not None]
    assert len(held) == 1
    held[0].check()
    held[0].release()


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK])
def test_file_system_without_locks_is_refused(archive, monkeypatch, code) -> None:
    def flock(*_) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    with pytest.raises(ArchiveError, match=r"its file system has no file locks .*PostgreSQL"):
        ArchiveLock(archive)


def test_holder_gives_signs_of_life(archive) -> None:
    with ArchiveLock(archive) as held:
        os.utime(held.path, (0, 0))
        held._beat()
        with pytest.raises(ArchiveLockedError, match=r"last sign of life 0 s ago"):
            ArchiveLock(archive)


def test_heartbeat_beats_until_it_is_stopped() -> None:
    beats = threading.Semaphore(0)
    heartbeat = Heartbeat(beats.release, every_s=0.001)
    for _ in range(3):
        assert beats.acquire(timeout=30)
    heartbeat.stop()
    while beats.acquire(blocking=False):
        pass
    assert not beats.acquire(timeout=0.05)
    heartbeat.stop()
