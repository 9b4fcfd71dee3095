"""The log of a search, as whoever collects logs reads it."""

import json
import logging
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from optimizer.archive.archive import Archive
from optimizer.events import WorkersSeen
from optimizer.telemetry.event_log import EventLog
from tests.fault import scripted_search
from tests.unit.optimizer.telemetry.watched_search import run_watched


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def paths(tmp_path):
    return tmp_path / "archive.sqlite", tmp_path / "logs" / "log.jsonl"


def fail() -> None:
    pytest.fail("a line could not be written")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["racing", "screening"])
def test_log_has_every_evaluation_and_every_candidate_once(paths, name):
    path, log = paths
    run_watched(path, {"log_file": str(log)}, **scripted_search.SEARCHES[name])
    lines = lines_of(log)
    with Archive.open(path) as archive:
        evaluations, observations = archive.evaluations(), archive.observations()
        uid = archive.uid
    assert {line["search"] for line in lines} == {uid}
    logged = [line for line in lines if line["event"] in ("evaluated", "failed")]
    assert Counter(
        (line["candidate"], line["split"], line["block"] or "", line["signal"]) for line in logged
    ) == Counter((o.key.candidate, o.key.split, o.key.block, o.key.signal) for o in evaluations)
    assert {line["worker"] for line in logged} == {"scripted"}
    finished = [line for line in lines if line["event"] == "finished" and line["split"] == "search"]
    assert [(line["candidate"], line["stopped"] or "") for line in finished] == [
        (seen.candidate.index, seen.stopped) for seen in observations
    ]
    assert [line["scores"] for line in finished] == [
        seen.scores and {name: score.value for name, score in seen.scores.items()}
        for seen in observations
    ]


def test_log_says_how_an_evaluation_failed(paths):
    path, log = paths
    # One recipe of 17 fails, by a hash of it: with so many, some do on every kind of processor.
    run_watched(
        path,
        {"log_file": str(log)},
        search={"strategy": "dirichlet"},
        budget={"evaluations": 150},
    )
    with Archive.open(path) as archive:
        failed = [o.key.candidate for o in archive.outcomes("search") if o.scores is None]
    assert failed
    lines = [line for line in lines_of(log) if line["event"] == "failed"]
    assert [line["candidate"] for line in lines if line["split"] == "search"] == failed
    assert {
        (line["level"], line["stage"], line["error_class"], line["message"], line["items"])
        for line in lines
    } == {("warning", "evaluate", "EvaluationError", "logits are not finite", 0)}


def test_log_is_appended_to_when_the_search_goes_on(paths):
    path, log = paths

    def kill(event):
        if getattr(event, "num_outcomes", 0) == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_watched(path, {"log_file": str(log)}, view=kill)
    run_watched(path, {"log_file": str(log)})
    lines = lines_of(log)
    ends = [line["by"] for line in lines if line["event"] == "run_ended"]
    assert ends == ["KeyboardInterrupt", None]
    started = [line["recorded"] for line in lines if line["event"] == "search_started"]
    assert started == [0, 10]
    times = [datetime.fromisoformat(line["time"]) for line in lines]
    assert times == sorted(times)
    assert times[0].utcoffset() == timedelta(0)


def test_log_records_of_the_process_are_lines_too(tmp_path):
    path = tmp_path / "log.jsonl"
    log = EventLog(path, "abc", on_error=fail)
    with log:
        logging.getLogger("workers.ray_pool").warning("lost %s\nat once", "worker-1")
        error = ValueError("näh")
        logging.getLogger("else").error("what", exc_info=error)
    logging.getLogger("workers.ray_pool").warning("not of this search")
    first, second, _ = lines_of(path)
    assert first.pop("time")
    assert first == {
        "level": "warning", "search": "abc", "event": "log", "logger": "workers.ray_pool",
        "message": "lost worker-1\nat once", "worker": "worker-1",
    }  # fmt: skip
    assert second["level"] == "error"
    assert second["traceback"].endswith("ValueError: näh")


def test_log_tells_of_workers_that_start_are_lost_or_go(tmp_path):
    path = tmp_path / "log.jsonl"
    with EventLog(path, "abc", on_error=fail) as log:
        for states in (
            {"w1": "starting", "w2": "starting"},
            {"w1": "idle", "w2": "starting"},
            {"w1": "busy", "w2": "lost"},
            {"w1": "idle"},
        ):
            log.on_event(WorkersSeen(states))
    told = [(line.get("worker"), line.get("state"), line["level"]) for line in lines_of(path)[:-1]]
    assert told == [
        ("w1", "starting", "info"), ("w2", "starting", "info"), ("w1", "idle", "info"),
        ("w2", "lost", "warning"), ("w2", "gone", "info"),
    ]  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_search_goes_on_when_the_disk_of_its_log_is_full(tmp_path, caplog):
    path = tmp_path / "archive.sqlite"
    run_watched(path, {"log_file": "/dev/full"})
    warned = [record.getMessage() for record in caplog.records]
    assert len(warned) == 1
    assert "telemetry.log_file failed: OSError: [Errno 28] No space left on device" in warned[0]
    assert "The search goes on without it" in warned[0]
    with Archive.open(path) as archive:
        assert archive.choice() is not None


def test_search_goes_on_when_its_log_cannot_be_opened(tmp_path, caplog):
    path = tmp_path / "archive.sqlite"
    run_watched(path, {"log_file": str(tmp_path)})
    assert "telemetry.log_file failed: IsADirectoryError" in caplog.text
    with Archive.open(path) as archive:
        assert archive.choice() is not None
