"""Telemetry neither changes, slows nor ends a search, and what it lacks is said before."""

import sys
import threading
import time
from pathlib import Path

import pytest

from configs.errors import ConfigError
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.preflight.telemetry_check import check_telemetry
from optimizer.telemetry import tracking
from optimizer.telemetry.tracker import TrackedRun
from optimizer.telemetry.tracking import TrackerThread, tracked_run
from tests.fault import scripted_search
from tests.unit.optimizer.telemetry.watched_search import KeptMeters, run_watched

RUN = TrackedRun("abc", "search", {}, 1)


def job_with(**telemetry: object) -> JobConfig:
    return scripted_search.make_job(Path("a.sqlite"), telemetry=telemetry)


class Tracker:
    """Remembers what it was asked to do, and does what it was made with on the way."""

    def __init__(self, action=lambda: None) -> None:
        self.calls = []
        self._action = action

    def start(self, run):
        self._do("start", run.uid)

    def log(self, step, metrics):
        self._do("log", step)

    def note(self, name, text):
        self._do("note", name)

    def close(self, end):
        self._do("close", end)

    def _do(self, *call):
        self.calls.append(call)
        self._action()


@pytest.mark.slow
def test_search_with_telemetry_records_what_one_without_does(tmp_path):
    plain, watched = tmp_path / "plain.sqlite", tmp_path / "watched.sqlite"
    run_watched(plain, {})
    telemetry = {
        "log_file": str(tmp_path / "log.jsonl"),
        "tensorboard": {"directory": str(tmp_path / "tb")},
    }
    run_watched(watched, telemetry, meters=KeptMeters())
    assert scripted_search.record(plain) == scripted_search.record(watched)


def test_watcher_that_raises_is_left_out_with_one_warning(tmp_path, caplog):
    class NoMeters(KeptMeters):
        def record(self, name, value, tags=None):
            super().record("calls_total", 1)
            raise RuntimeError("Ray is gone")

    meters, log = NoMeters(), tmp_path / "log.jsonl"
    run_watched(tmp_path / "a.sqlite", {"log_file": str(log)}, meters=meters)
    assert meters.of("calls_total") == {(): 1}
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning.startswith("telemetry.metrics failed: RuntimeError: Ray is gone. The search")
    # Others go on, and the log has the warning.
    text = log.read_text()
    assert text.count("Ray is gone") == 1
    assert '"event": "run_ended", "by": null' in text.splitlines()[-1]


def test_view_that_raises_ends_the_search_as_ever(tmp_path):
    def view(event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_watched(tmp_path / "a.sqlite", {"log_file": str(tmp_path / "log.jsonl")}, view=view)


def test_tracker_is_called_in_order_from_a_thread_of_its_own():
    threads = set()
    tracker = Tracker(lambda: threads.add(threading.get_ident()))
    thread = TrackerThread("wandb", tracker)
    thread.start(RUN)
    for step in range(3):
        thread.log(step, {})
    thread.note("report", "text")
    thread.close("finished")
    assert tracker.calls == [
        ("start", "abc"), ("log", 0), ("log", 1), ("log", 2), ("note", "report"),
        ("close", "finished"),
    ]  # fmt: skip
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_tracker_that_fails_is_not_asked_again(caplog):
    def fail():
        raise ConnectionError("no route to host\nand more")

    tracker = Tracker(fail)
    thread = TrackerThread("mlflow", tracker)
    thread.start(RUN)
    for step in range(3):
        thread.log(step, {})
    thread.close("finished")
    assert tracker.calls == [("start", "abc")]
    (warning,) = (record.getMessage() for record in caplog.records)
    assert warning == (
        "telemetry.mlflow failed: ConnectionError: no route to host. The search goes on without "
        "it; mend the cause and `mergefront resume`, which goes on with its charts, or set "
        "telemetry.mlflow to null"
    )


def test_tracker_that_hangs_holds_up_neither_events_nor_the_end(monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_LAST_S", {"finished": 0.2})
    monkeypatch.setattr(tracking, "_QUEUE_SIZE", 5)
    release = threading.Event()
    tracker = Tracker(release.wait)
    thread = TrackerThread("mlflow", tracker)
    began = time.monotonic()
    thread.start(RUN)
    thread.log(1, {})
    thread.close("finished")
    assert time.monotonic() - began < 5
    (warning,) = (record.getMessage() for record in caplog.records)
    assert "telemetry.mlflow had not taken everything 0 s after the end" in warning
    release.set()
    thread._thread.join(5)
    # What it was never asked for is not done any more.
    assert tracker.calls == [("start", "abc")]


def test_tracker_that_is_far_behind_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr(tracking, "_QUEUE_SIZE", 5)
    release = threading.Event()
    thread = TrackerThread("mlflow", Tracker(release.wait))
    thread.start(RUN)
    for step in range(20):
        thread.log(step, {})
    assert [record.getMessage()[:36] for record in caplog.records] == [
        "telemetry.mlflow is 5 calls behind. "
    ]
    release.set()
    thread._thread.join(5)
    assert not thread._thread.is_alive()


def test_parameters_of_a_run_are_those_that_resume_cannot_change(tmp_path):
    path = tmp_path / "a.sqlite"
    run_watched(path, {})
    with Archive.open(path) as archive:
        run = tracked_run(archive, 7)
        assert run.params["job_digest"] == archive.job.digest
    assert run.first_step == 8
    assert run.params["search.population_size"] == 6
    assert run.params["models.checkpoints.math.path"] == "zoo/math"
    assert not [key for key in run.params if key.startswith(("budget", "workers", "telemetry"))]


@pytest.mark.slow
def test_copy_of_an_archive_is_the_same_search_to_trackers(tmp_path):
    from optimizer.archive.copy import copy_archive

    first, other = tmp_path / "a.sqlite", tmp_path / "b.sqlite"
    run_watched(first, {})
    run_watched(other, {})
    copy_archive(str(first), str(tmp_path / "copy.sqlite"))
    uids = []
    for path in (first, tmp_path / "copy.sqlite", other):
        with Archive.open(path) as archive:
            uids.append(archive.uid)
    assert uids[0] == uids[1] != uids[2]


def test_absent_packages_are_named_with_what_installs_them(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    # Looks like a package without a file, but is where offline runs are.
    (tmp_path / "wandb").mkdir()
    for name in ("mlflow", "alembic", "tensorboard", "wandb"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ConfigError) as caught:
        check_telemetry(
            job_with(
                tensorboard={"directory": str(tmp_path)},
                mlflow={"uri": "http://localhost:5000"},
                wandb={"directory": str(tmp_path)},
            )
        )
    assert [str(problem) for problem in caught.value.problems] == [
        f"telemetry.{name}: needs the package `{name}`, which is not installed; run "
        f"`pip install 'mergefront[{name}]'`, or set the key to null"
        for name in ("tensorboard", "mlflow", "wandb")
    ]
    check_telemetry(job_with(log_file=str(tmp_path / "log.jsonl")))


def test_places_that_cannot_be_written_are_named(tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ConfigError) as caught:
        check_telemetry(
            job_with(
                log_file=str(tmp_path),
                tensorboard={"directory": str(file / "tb")},
                mlflow={"uri": str(file / "m.sqlite")},
            )
        )
    assert [str(problem) for problem in caught.value.problems] == [
        f"telemetry.log_file: cannot be written: {tmp_path} is a directory",
        f"telemetry.tensorboard.directory: cannot be written: {file} is no directory",
        f"telemetry.mlflow.uri: cannot be written: {file} is no directory",
    ]
