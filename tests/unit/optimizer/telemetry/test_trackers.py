"""Each tracker by its own library's reader: what a search wrote, killed and resumed on its way."""

import json
import logging
import struct
from collections import defaultdict
from pathlib import Path

import pytest

from optimizer.archive.archive import Archive
from optimizer.scalarize import preferred_mean
from optimizer.telemetry import tracking
from tests.unit.optimizer.telemetry.watched_search import run_watched

KILLED_AT = 9


@pytest.fixture(autouse=True)
def _patience(monkeypatch):
    """Libraries that are slow to start on a busy machine are waited for, as after long searches."""
    monkeypatch.setattr(tracking, "_LAST_S", dict.fromkeys(tracking._LAST_S, 120.0))


def run_killed_and_resumed(path: Path, telemetry) -> None:
    """A search of 24 evaluations whose driver ends after ``KILLED_AT``, and goes on."""

    def kill(event):
        if getattr(event, "num_outcomes", 0) == KILLED_AT:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_watched(path, telemetry, view=kill)
    run_watched(path, telemetry)


def recorded_means(path: Path) -> dict[str, dict[int, float]]:
    """Split -> evaluation, counted from 1 -> preferred mean, as the archive has it."""
    with Archive.open(path) as archive:
        preference = archive.job.preference
        found = {
            split: {
                number: preferred_mean(outcome.scores, preference)
                for number, outcome in enumerate(archive.outcomes(split), 1)
                if outcome.scores
            }
            for split in ("select", "report")
        }
        found["search"] = {
            number: preferred_mean(seen.scores, preference)
            for number, seen in enumerate(archive.observations(), 1)
            if seen.scores
        }
    return found


def assert_charts(path: Path, charts: dict[str, dict[int, float]]) -> None:
    """Compare charts (metric -> step -> value) with the archive."""
    for split, means in recorded_means(path).items():
        told = dict(means)
        if split == "search":
            # The view was killed before the trackers were told of that one.
            told.pop(KILLED_AT, None)
        assert charts[f"{split}/preferred_mean"] == pytest.approx(told)
        assert charts[f"{split}/instruct"].keys() == told.keys()
    volumes = charts["search/hypervolume"]
    assert list(volumes.values()) == sorted(volumes.values())
    assert max(volumes) == 24


def uid_of(path: Path) -> str:
    with Archive.open(path) as archive:
        return archive.uid


def test_tensorboard_shows_a_resumed_search_as_one_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    path = tmp_path / "archive.sqlite"
    run_killed_and_resumed(path, {"tensorboard": {"directory": str(tmp_path / "tb")}})
    (directory,) = (tmp_path / "tb").iterdir()
    assert directory.name == f"search-{uid_of(path)}"
    assert len(list(directory.iterdir())) == 2
    events = EventAccumulator(str(directory)).Reload()
    charts = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    assert_charts(path, charts)
    (report,) = events.Tensors("report/text_summary")
    assert report.tensor_proto.string_val == [b"    all is well"]
    (job,) = events.Tensors("job/text_summary")
    assert b"    merge.method: dare_linear\n" in job.tensor_proto.string_val[0]


def test_tensorboard_forgets_what_a_lost_archive_had_logged(tmp_path):
    """Where an older copy of the archive is gone on with, its steps come again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from configs.telemetry import TensorBoardSettings
    from optimizer.telemetry.tracker import TrackedRun
    from optimizer.telemetry.tracker_tensorboard import TensorBoardTracker

    for first_step, steps in ((1, (1, 2, 3)), (2, (2,))):
        tracker = TensorBoardTracker(TensorBoardSettings(directory=str(tmp_path)))
        tracker.start(TrackedRun("abc", "a search/with signs", {}, first_step))
        for step in steps:
            tracker.log(step, {"search/mean": 10.0 * first_step + step})
        tracker.close("interrupted")
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(tmp_path / "a-search-with-signs-abc")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("search/mean")] == [
        (1, 11.0), (2, 22.0),
    ]  # fmt: skip


@pytest.mark.slow
def test_mlflow_shows_a_resumed_search_as_one_run(tmp_path):
    store = tmp_path / "store" / "mlflow.sqlite"
    path = tmp_path / "archive.sqlite"
    telemetry = {"mlflow": {"uri": str(store), "experiment": "merges of ours"}}
    run_killed_and_resumed(path, telemetry)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("merges of ours")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "search"
    assert run.info.status == "FINISHED"
    assert run.data.tags["mergefront.search"] == uid_of(path)
    assert run.data.params["merge.method"] == "dare_linear"
    assert run.data.params["seed"] == "3"
    charts = {}
    for name in run.data.metrics:
        history = client.get_metric_history(run.info.run_id, name)
        assert len({metric.step for metric in history}) == len(history)
        charts[name] = {metric.step: metric.value for metric in history}
    assert_charts(path, charts)
    assert [found.path for found in client.list_artifacts(run.info.run_id)] == ["report.txt"]
    # Beside the store, not in whatever is the working directory.
    (report,) = (tmp_path / "store" / "mlflow.sqlite.artifacts").rglob("report.txt")
    assert report.read_text() == "all is well"


@pytest.mark.slow
def test_wandb_writes_a_resumed_search_offline_under_one_id(tmp_path):
    path = tmp_path / "archive.sqlite"
    telemetry = {"wandb": {"project": "merges", "directory": str(tmp_path / "out")}}
    run_killed_and_resumed(path, telemetry)
    files = sorted((tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{uid_of(path)}.wandb"] * 2
    charts: dict[str, dict[int, float]] = defaultdict(dict)
    runs, exits = [], []
    for record in (record for file in files for record in wandb_records(file)):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            runs.append(record.run)
        elif kind == "exit":
            exits.append(record.exit.exit_code)
        elif kind == "history":
            row = {item.key or item.nested_key[0]: item for item in record.history.item}
            values = {name: json.loads(item.value_json) for name, item in row.items()}
            for name, value in values.items():
                if "/" in name and not name.endswith("/step"):
                    charts[name][values[f"{name.partition('/')[0]}/step"]] = value
    assert_charts(path, charts)
    assert {(run.project, run.run_id, run.display_name) for run in runs} == {
        ("merges", uid_of(path), "search")
    }
    config = {item.key: item.value_json for item in runs[0].config.update}
    assert config["merge.method"] == '"dare_linear"'
    assert exits == [1, 0]
    assert (files[1].parent / "files" / "report.txt").read_text() == "all is well"


def wandb_records(file: Path):
    """Read wandb's file, a log in LevelDB's format: records are cut at blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    content, at, held = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        left = 2**15 - at % 2**15
        if left < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        held += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(held)
            held = b""


@pytest.mark.slow
def test_search_goes_on_when_the_mlflow_server_is_not_there(tmp_path, caplog):
    path, log = tmp_path / "archive.sqlite", tmp_path / "log.jsonl"
    telemetry = {"mlflow": {"uri": "http://127.0.0.1:9"}, "log_file": str(log)}
    run_watched(path, telemetry)
    (warning,) = [
        r.getMessage() for r in caplog.records if r.name == "optimizer.telemetry.tracking"
    ]
    assert warning.startswith("telemetry.mlflow failed: MlflowException: API request to")
    assert "telemetry.mlflow failed" in log.read_text()
    with Archive.open(path) as archive:
        assert archive.choice() is not None


@pytest.mark.slow
def test_search_goes_on_when_the_wandb_server_is_not_there(tmp_path, caplog, monkeypatch, request):
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb = pytest.importorskip("wandb")
    # It reads its environment once per process.
    wandb.teardown()
    request.addfinalizer(wandb.teardown)
    path = tmp_path / "archive.sqlite"
    run_watched(path, {"wandb": {"mode": "online", "directory": str(tmp_path)}})
    (warning,) = [
        r.getMessage() for r in caplog.records if r.name == "optimizer.telemetry.tracking"
    ]
    assert warning.startswith("telemetry.wandb failed: CommError: ")
    assert "connection refused" in warning
    with Archive.open(path) as archive:
        assert archive.choice() is not None
