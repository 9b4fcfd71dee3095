"""What a job that came over HTTP may name: it runs as the operator, so it may not reach further.

Scorers and task YAMLs are code, paths are files of the operator, URLs are requests from this
machine, and trackers are sent what the operator's credentials allow. Each is refused unless the
operator allowed it when the service was started; all problems are found at once. What a job may
say freely are numbers, names and stock tasks of lm-eval.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from configs.errors import ConfigError, Problem
from configs.schema import JobConfig, ModelSource
from configs.scorers import ScorerSpec
from optimizer.service.settings import ServiceSettings

TELEMETRY_DIRECTORY = "telemetry"
"""Where logs and the files of trackers go, in the directory of archives."""

_MAX_NAME = 200


def check_job(job: JobConfig, settings: ServiceSettings) -> None:
    """Refuse a job that reaches outside of what the operator allowed.

    Args:
        job: With absolute paths, as ``configs.load.job_of`` gives it.
        settings: Of the service.

    Raises:
        ConfigError: It does; lists every problem.
    """
    problems = [
        *_models(job, settings),
        *_evaluation(job, settings),
        *_objectives(job, settings),
        *_baselines(job, settings),
        *_workers(job, settings),
        *_telemetry(job, settings),
    ]
    if len(job.name) > _MAX_NAME:
        problems.append(Problem("name", f"has more than {_MAX_NAME} characters"))
    if problems:
        count = "1 thing" if len(problems) == 1 else f"{len(problems)} things"
        raise ConfigError(f"the job asks for {count} that this service does not allow", problems)


def is_below(path: str | Path, roots: tuple[Path, ...]) -> bool:
    """Whether a path lies in one of some directories, links followed; it need not exist."""
    try:
        found = Path(os.path.realpath(path))
    except (OSError, ValueError):
        return False
    return any(found == root or found.is_relative_to(root) for root in roots)


def _models(job: JobConfig, settings: ServiceSettings) -> Iterator[Problem]:
    named = {f"models.checkpoints.{name}": model for name, model in job.models.checkpoints.items()}
    if job.models.base is not None:
        named = {"models.base": job.models.base, **named}
    for key, model in named.items():
        if (problem := _model(model, settings)) is not None:
            yield Problem(key, problem)


def _model(model: ModelSource, settings: ServiceSettings) -> str | None:
    path = model.path
    if "://" in path:
        is_plain = ".." not in path and "%" not in path
        if is_plain and any(path.startswith(url) for url in settings.model_urls):
            return None
        return f"`{path}`: models of this URL are not allowed (`mergefront serve --model-root URL`)"
    if Path(path).is_absolute():
        return _outside(path, settings.model_roots, "--model-root")
    if any(path.startswith(prefix) for prefix in settings.hub):
        return None
    return f"`{path}`: models of the hub are not allowed (`mergefront serve --allow-hub ORG/`)"


def _evaluation(job: JobConfig, settings: ServiceSettings) -> Iterator[Problem]:
    evaluation = job.evaluation
    for number, path in enumerate(evaluation.include_path):
        if not is_below(path, settings.task_dirs):
            yield Problem(
                f"evaluation.include_path[{number}]",
                f"{path}: task YAMLs are code, and those of this directory are not allowed "
                "(`mergefront serve --allow-tasks DIR`)",
            )
    readable = (*settings.model_roots, *settings.task_dirs)
    if evaluation.data_dir is not None:
        outside = _outside(evaluation.data_dir, readable, "--model-root")
        if outside is not None:
            yield Problem("evaluation.data_dir", outside)
    if evaluation.allow_code_execution and not settings.allow_code_execution:
        yield Problem(
            "evaluation.allow_code_execution",
            "running generated code is not allowed (`mergefront serve --allow-code-execution`)",
        )
    if evaluation.sandbox == "weak" and not settings.allow_weak_sandbox:
        yield Problem(
            "evaluation.sandbox", "must be `strict` (`mergefront serve --allow-weak-sandbox`)"
        )


def _objectives(job: JobConfig, settings: ServiceSettings) -> Iterator[Problem]:
    readable = (*settings.model_roots, *settings.task_dirs)
    for name, objective in job.objectives.items():
        for number, spec in enumerate(objective.tasks):
            key = f"objectives.{name}.tasks[{number}]"
            if not isinstance(spec, ScorerSpec):
                if "/" in spec.task or "\\" in spec.task or spec.task.endswith((".yaml", ".yml")):
                    yield Problem(f"{key}.task", f"`{spec.task}` is a file, not the name of a task")
                continue
            if not _allows(spec, settings):
                yield Problem(
                    f"{key}.scorer",
                    f"`{spec.scorer}`: scorers are code, and this one is not allowed "
                    "(`mergefront serve --allow-scorer FILE.py|DIR/|MODULE[:FUNCTION]`)",
                )
            outside = _outside(spec.items, readable, "--model-root")
            if outside is not None:
                yield Problem(f"{key}.items", outside)


def _baselines(job: JobConfig, settings: ServiceSettings) -> Iterator[Problem]:
    """The recipe and its coefficients are read, nothing that the recipe names."""
    for name, path in job.baselines.items():
        if (outside := _outside(path, settings.model_roots, "--model-root")) is not None:
            yield Problem(f"baselines.{name}", outside)


def _allows(spec: ScorerSpec, settings: ServiceSettings) -> bool:
    places = [rule.place for rule in settings.scorers if rule.names(spec.function)]
    if spec.is_file:
        return is_below(spec.module, tuple(place for place in places if isinstance(place, Path)))
    return spec.module in places


def _workers(job: JobConfig, settings: ServiceSettings) -> Iterator[Problem]:
    workers, cores = job.workers, os.cpu_count() or 1
    if workers.address is not None:
        where = "on the cluster of the service" if settings.cluster else "on this machine"
        yield Problem("workers.address", f"leave it out: searches run {where}")
    if settings.cluster is not None:
        return
    for key, value in (
        ("count", workers.count),
        ("threads", workers.threads),
        ("scoring_processes", workers.scoring_processes),
    ):
        if isinstance(value, int) and value > cores:
            yield Problem(f"workers.{key}", f"is {value}, and this machine has {cores} cores")


def _telemetry(job: JobConfig, settings: ServiceSettings) -> Iterator[Problem]:
    telemetry, home = job.telemetry, settings.archive_dir / TELEMETRY_DIRECTORY
    boards, mlflow, wandb = telemetry.tensorboard, telemetry.mlflow, telemetry.wandb
    files = {
        "log_file": telemetry.log_file,
        "tensorboard.directory": None if boards is None else boards.directory,
        "mlflow.uri": mlflow.uri if mlflow is not None and mlflow.is_file else None,
        "wandb.directory": None if wandb is None else wandb.directory,
    }
    for key, path in files.items():
        # Not anywhere in the directory of archives: a log is appended to whatever is there.
        if path is not None and not is_below(path, (home,)):
            yield Problem(f"telemetry.{key}", f"{path}: must be below {home}")
    if mlflow is not None and not mlflow.is_file and mlflow.uri not in settings.trackers:
        yield Problem(
            "telemetry.mlflow.uri",
            f"`{mlflow.uri}` is not allowed (`mergefront serve --allow-tracker URL`)",
        )
    if wandb is not None and wandb.mode == "online" and "wandb" not in settings.trackers:
        yield Problem(
            "telemetry.wandb.mode",
            "must be `offline` (`mergefront serve --allow-tracker wandb` allows it)",
        )


def _outside(path: str, roots: tuple[Path, ...], flag: str) -> str | None:
    if is_below(path, roots):
        return None
    return f"{path}: not in a directory that this service reads (`mergefront serve {flag} DIR`)"
