"""Whether the telemetry that a job asks for can be had: packages, and files that can be written."""

from pathlib import Path

from configs.errors import ConfigError, Problem
from configs.schema import JobConfig
from optimizer.preflight.machine_check import why_not_writable
from optimizer.telemetry.tracker import missing_packages


def check_telemetry(job: JobConfig) -> None:
    """Refuse trackers whose packages are not installed, and files that cannot be made.

    Raises:
        ConfigError: Lists every problem.
    """
    telemetry = job.telemetry
    problems = missing_packages(telemetry)
    places = {
        "log_file": telemetry.log_file,
        "tensorboard.directory": telemetry.tensorboard and telemetry.tensorboard.directory,
        "mlflow.uri": telemetry.mlflow and telemetry.mlflow.is_file and telemetry.mlflow.uri,
        "wandb.directory": telemetry.wandb and telemetry.wandb.directory,
    }
    for key, place in places.items():
        if not place:
            continue
        path, is_file = Path(place), key in ("log_file", "mlflow.uri")
        reason = f"{path} is a directory" if is_file and path.is_dir() else why_not_writable(path)
        if reason:
            problems.append(Problem(f"telemetry.{key}", f"cannot be written: {reason}"))
    if problems:
        raise ConfigError("telemetry cannot be used", problems)
