"""What a job may say of telemetry, and what its paths are relative to."""

import re
from pathlib import Path

import pytest

import configs
from configs.errors import ConfigError
from configs.load import job_of
from configs.telemetry import MlflowSettings, TensorBoardSettings, WandbSettings

JOB = {
    "models": {"base": "org/base", "checkpoints": {"math": "org/math"}},
    "objectives": {"math": "gsm8k"},
    "archive": "a.sqlite",
}


def load(**telemetry: object):
    return job_of(JOB | {"telemetry": telemetry}, directory=Path("/here")).telemetry


def problems_of(**telemetry: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(**telemetry)
    return [str(problem) for problem in caught.value.problems]


def test_only_metrics_are_on_by_default():
    found = load()
    assert found.metrics
    assert (found.log_file, found.tensorboard, found.mlflow, found.wandb) == (None,) * 4


def test_local_paths_become_absolute_and_urls_stay():
    found = load(
        log_file="logs/log.jsonl",
        tensorboard={"directory": "tb"},
        mlflow={"uri": "mlflow.sqlite"},
        wandb={},
    )
    assert found.log_file == "/here/logs/log.jsonl"
    assert found.tensorboard.directory == "/here/tb"
    assert found.mlflow.uri == "/here/mlflow.sqlite"
    assert found.wandb.directory == "/here"
    assert load(mlflow={"uri": "https://ann@ml.example:5000/x"}).mlflow.uri == (
        "https://ann@ml.example:5000/x"
    )


def test_every_problem_is_named_with_its_path():
    found = problems_of(
        log_file=5,
        tensorboard={"dir": "tb"},
        mlflow={"uri": "mysql://host/db"},
        wandb={"mode": "onlin"},
    )
    assert [text.partition(":")[0] for text in found] == [
        "telemetry.tensorboard.dir", "telemetry.log_file", "telemetry.tensorboard.directory",
        "telemetry.mlflow.uri", "telemetry.wandb.mode",
    ]  # fmt: skip
    assert "must be an http(s) URL or the path of an SQLite file, found `mysql://`" in found[3]
    assert "did you mean `online`?" in found[4]


def test_password_in_an_address_is_refused_and_not_shown():
    (problem,) = problems_of(mlflow={"uri": "http://ann:secret@ml.example"})
    assert "MLFLOW_TRACKING_PASSWORD" in problem
    assert "secret" not in problem


def test_example_shows_every_key_of_trackers_at_least_in_a_comment():
    text = (Path(configs.__file__).parent / "example-7b.yaml").read_text(encoding="utf-8")
    section = text.partition("\ntelemetry:")[2].partition("\narchive:")[0]
    shown = set(re.findall(r"\b([a-z_]+):(?= )", section))
    for kind in (TensorBoardSettings, MlflowSettings, WandbSettings):
        assert kind.model_fields.keys() - shown == set()
