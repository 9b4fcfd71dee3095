"""The lock of an archive: one holder, who is named, and nothing stale."""

import json
import os
import threading
import time

import pytest

from configs.errors import ArchiveError, ArchiveLockedError
from optimizer.archive.lock import ArchiveLock, owner_of_file
from optimizer.archive.owner import SILENT_S, Heartbeat


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
    with ArchiveLock(archive) as lock:
        lock.path.write_text(text, encoding="utf-8")
        with pytest.raises(ArchiveLockedError, match="being written by another process"):
            ArchiveLock(archive)


def test_lock_may_be_released_twice(archive) -> None:
    lock = ArchiveLock(archive)
    lock.release()
    lock.release()
    ArchiveLock(archive).release()


def test_lock_says_so_when_its_file_cannot_be_made(tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match=r"cannot be locked for writing: .*make its directory"):
        ArchiveLock(tmp_path / "file" / "search.sqlite")


def test_owner_is_who_holds_the_lock(archive) -> None:
    ArchiveLock(archive).release()
    assert owner_of_file(archive) is None  # this process lives, and let go
    with ArchiveLock(archive) as lock:
        assert owner_of_file(archive).pid == os.getpid()
        owner = json.loads(lock.path.read_text())
        for text in (
            # A later process with the same number; none with the number; half a text.
            json.dumps({**owner, "started_at": "2001-01-01T00:00:00+00:00"}),
            json.dumps({**owner, "pid": 2**22 + 1}),
            "{",
        ):
            lock.path.write_text(text)
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


def test_holder_gives_signs_of_life(archive) -> None:
    with ArchiveLock(archive) as lock:
        os.utime(lock.path, (0, 0))
        lock._beat()
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
