"""The lock of an archive: one holder, who is named, and nothing stale."""

import json
import os

import pytest

from configs.errors import ArchiveError, ArchiveLockedError
from optimizer.archive_lock import ArchiveLock


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
