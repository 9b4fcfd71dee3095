"""Archives that are kept open, and lists of many that leave them so."""

import json
import shutil
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient

from configs.errors import ConfigError
from optimizer.archive.archive import Archive
from optimizer.service import searches as module
from optimizer.service.app import create_app
from optimizer.service.client import ServiceClient
from optimizer.service.searches import Searches
from optimizer.service.settings import existing_directories
from tests.unit.optimizer.service.conftest import TOKEN, URL, has_all_streams
from tests.unit.optimizer.service.large_archive import build_large

NUM_ARCHIVES = 20


@pytest.fixture
def many(archives):
    """More searches than are kept open, whose files have not changed for a while."""
    for number in range(NUM_ARCHIVES):
        shutil.copytree(archives / "done", archives / f"copy-{number}")
    build_large(archives / "large.sqlite", 40, 30)
    time.sleep(0.2)
    return archives


@pytest.fixture
def openings(monkeypatch):
    """Counts how often archives are opened."""
    found = []
    opening = Archive.open.__func__

    def counted(cls, place, **options):
        found.append(place)
        return opening(cls, place, **options)

    monkeypatch.setattr(Archive, "open", classmethod(counted))
    return found


def test_list_of_many_leaves_open_and_believed_what_is_read(client, many, openings):
    assert client.front("large.sqlite", fresh=True).belief.state == "current"
    for _ in range(2):
        assert len(client.searches()) == NUM_ARCHIVES + 2
    assert client.front("large.sqlite", fresh=False).belief.state == "current"
    assert openings.count(many / "large.sqlite") == 1


def test_list_opens_again_what_has_changed_alone(client, many, openings):
    before = {one.id: one for one in client.searches()}
    openings.clear()
    path = many / "copy-3" / "archive.sqlite"
    with Archive.open(path, writable=True) as archive:
        openings.clear()
        archive.record_choice(2, "by hand")
        running = {one.id: one for one in client.searches()}
    after = {one.id: one for one in client.searches()}
    assert set(openings) == {path}
    assert (running["copy-3"].state, after["copy-3"].state) == ("running", "interrupted")
    assert after["copy-3"].choice == 2
    assert after["copy-3"].revision != before["copy-3"].revision
    del after["copy-3"], before["copy-3"]
    assert after == before


def test_names_that_are_not_utf8_are_left_out_and_others_need_no_care(client, archives, tmp_path):
    strange = 'a b?c#d&"\u20ac'
    shutil.copytree(archives / "done", archives / strange)
    shutil.copytree(archives / "done", archives / "bad\udcff")
    (archives / "bad\udcff.sqlite").write_bytes(b"")
    assert {one.id for one in client.searches()} == {"done", strange}
    assert client.search(strange).state == "finished"
    assert len(client.front(strange).front) == 2
    exports = archives / strange / "archive.sqlite.service" / "exports" / "0123abcd"
    (exports / f"{strange}-1").mkdir(parents=True)
    (exports / f"{strange}-1" / "config.json").write_text("{}")
    content = {
        "wanted": {"recipe_id": "0", "dtype": None},
        "name": f"{strange}-1",
        "candidate": 1,
        "rule": "",
        "expected_bytes": None,
        "started_at": "2026-11-28T00:00:00+00:00",
    }
    (exports / "export.json").write_text(json.dumps(content))
    path = client.download(strange, "0123abcd", tmp_path / "model.tar")
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"{strange}-1/config.json"]
    client.delete(strange)
    assert [one.id for one in client.searches()] == ["done"]


def test_directories_that_are_not_utf8_are_refused(tmp_path):
    bad, good = tmp_path / "bad\udcff", tmp_path / "good"
    bad.mkdir()
    good.mkdir()
    assert existing_directories("--model-root", [good]) == (good.resolve(),)
    with pytest.raises(ConfigError) as refused:
        existing_directories("--model-root", [good, bad, tmp_path / "none"])
    assert [problem.message.partition(": ")[2] for problem in refused.value.problems] == [
        "no such directory",
        "its path is not in UTF-8; rename it",
    ]


def test_only_as_many_as_may_stay_open_and_none_is_closed_while_it_is_read(many):
    found = Searches(many)
    everything = list(found.all().values())
    with found.reading(everything[0]) as first:
        for files in everything[1:]:
            with found.reading(files) as opened:
                assert opened.archive.counters()
        assert first.archive.counters()
        with found.reading(everything[0]) as again:
            assert again is first
    assert len(found._open) == module._MAX_OPEN
    found.close()


def test_archive_that_is_deleted_while_it_is_read_is_closed_when_that_is_over(many, monkeypatch):
    closed = []
    closing = Archive.close
    monkeypatch.setattr(Archive, "close", lambda self: (closed.append(self), closing(self)))
    found = Searches(many)
    files = found.find("copy-1")
    with found.reading(files) as opened:
        opened.hold()  # as who computes its belief does
        found.remove(files)
    assert closed == []
    opened.release()
    assert closed == [opened.archive]


def test_archive_that_takes_long_to_open_keeps_nobody_from_others(many, monkeypatch):
    found = Searches(many)
    slow, other = found.find("copy-1"), found.find("copy-2")
    is_opening, may_open = threading.Event(), threading.Event()
    opening = Archive.open.__func__
    num_slow = []

    def slowly(cls, place, **options):
        if place == slow.archive:
            num_slow.append(place)
            is_opening.set()
            assert may_open.wait(30)
        return opening(cls, place, **options)

    monkeypatch.setattr(Archive, "open", classmethod(slowly))

    def read(files):
        with found.reading(files) as opened:
            return opened

    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(read, slow) for _ in range(3)]
        try:
            assert is_opening.wait(30)
            pool.submit(read, other).result(timeout=30)
            assert not any(one.done() for one in waiting)
        finally:
            may_open.set()
        assert len({id(one.result()) for one in waiting}) == 1
    assert len(num_slow) == 1
    found.close()


def test_watchers_do_not_look_through_the_directory(client, archives, monkeypatch):
    looks = []
    looking = Searches.all

    def counted(self):
        looks.append(self)
        return looking(self)

    monkeypatch.setattr(Searches, "all", counted)
    assert [name for name, _ in client.follow("done")] == ["status"]
    assert len(looks) == 1  # to find it; afterwards it is looked at every 50 ms


def test_watcher_is_told_of_a_search_that_is_deleted(settings):
    app = create_app(settings(max_streams=1, stream_s=60.0), TOKEN)

    with TestClient(app, base_url=URL) as http, ThreadPoolExecutor() as pool:
        client = ServiceClient(URL, TOKEN, http=http)
        watching = pool.submit(lambda: list(client.follow("done")))
        while not has_all_streams(app):
            assert not watching.done(), "the stream ended before it was counted"
            time.sleep(0.01)
        client.delete("done")
        assert watching.result()[-1] == ("deleted", {"id": "done"})
