"""What one request reads: no file, lock or count of the record twice."""

import json
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from optimizer.archive import sqlite_store
from optimizer.archive.archive import Archive
from optimizer.service.client import ServiceRefusedError
from optimizer.service.processes import DetachedProcess

RECORDS = {"process.json", "ended.json", "cluster.json", "cluster-end.json"}


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """What was read since it was cleared: names of records, "counters" and "owner" -> how often."""
    found = Counter[str]()
    read_text, counters, owner = Path.read_text, Archive.counters, sqlite_store.owner_of_file

    def reading(path, *args, **kwargs):
        found[path.name] += path.name in RECORDS
        return read_text(path, *args, **kwargs)

    def counting(archive):
        found["counters"] += 1
        return counters(archive)

    def looking(path):
        found["owner"] += 1
        return owner(path)

    monkeypatch.setattr(Path, "read_text", reading)
    monkeypatch.setattr(Archive, "counters", counting)
    monkeypatch.setattr(sqlite_store, "owner_of_file", looking)
    return found


def ended(archives) -> None:
    """Give the search a process that has failed."""
    process = DetachedProcess(archives / "done" / "archive.sqlite.service")
    process.start([sys.executable, "-c", "print('error: no models'); raise SystemExit(2)"])
    while not (process.directory / "ended.json").exists() or process.is_alive:
        time.sleep(0.02)


def launched(archives) -> None:
    """Make the search one of a cluster that the service does not use."""
    state = archives / "done" / "archive.sqlite.service"
    state.mkdir()
    launch = {"job": "job-1", "address": "http://elsewhere.example:8265"}
    (state / "cluster.json").write_text(json.dumps(launch))


@pytest.mark.parametrize("before", [None, ended, launched], ids=["other", "failed", "cluster"])
def test_how_a_search_is_takes_one_look_at_each_record(client, archives, reads, before):
    if before is not None:
        before(archives)
    for look, most in ((client.searches, 0), (lambda: client.search("done"), 1)):
        look()
        reads.clear()
        look()
        assert reads["owner"] == 1
        assert reads["counters"] == most
        assert max(reads.values()) == 1, reads


@pytest.mark.parametrize("raw", [False, True])
def test_results_count_the_record_once_before_and_once_after_they_are_read(client, reads, raw):
    for look in (lambda: client.front("done", raw=raw), lambda: client.candidates("done", raw=raw)):
        look()
        reads.clear()
        look()
        assert reads["counters"] == 2


def test_refusal_to_delete_takes_one_look_as_well(client, archives, reads):
    launched(archives)
    reads.clear()
    with pytest.raises(ServiceRefusedError, match="nobody can say"):
        client.delete("done")
    assert max(reads.values()) == 1, reads
