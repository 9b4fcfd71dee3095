"""From a job file to a JobConfig, or to one error that lists all that is wrong with it."""

import math
import os
import re
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from configs.errors import ConfigError, Problem
from configs.evaluation import Objective
from configs.job_yaml import Lines, read_yaml
from configs.local_paths import exists
from configs.problems import shown, validate
from configs.schema import JobConfig, ModelSource
from configs.scorers import ScorerSpec
from configs.telemetry import TelemetrySettings

# ``name`` or ``organisation/name``, as on the Hugging Face hub.
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def load_job(
    path: Path,
    overrides: Mapping[str, object] | None = None,
    *,
    directory: Path | None = None,
) -> JobConfig:
    """Read, override and validate a job file.

    Local paths in it become absolute, so that an archive made from the job can be resumed from
    anywhere.

    Args:
        path: The YAML file.
        overrides: Dotted key (``budget.evaluations``) -> value, applied before validation.
        directory: What relative paths are relative to; None is the working directory.

    Raises:
        ConfigError: The file cannot be read or is not a valid job; lists every problem.
    """
    content, lines = read_yaml(path)
    return job_of(content, overrides, name=str(path), lines=lines, directory=directory)


def job_of(
    content: Mapping[str, object],
    overrides: Mapping[str, object] | None = None,
    *,
    name: str = "the job",
    lines: Lines | None = None,
    directory: Path | None = None,
) -> JobConfig:
    """Validate the content of a job file; ``load_job`` for jobs that come from elsewhere.

    Args:
        content: What the YAML holds.
        overrides: As for ``load_job``.
        name: What messages call the job.
        lines: Dotted path -> line of the file, for messages.
        directory: As for ``load_job``.

    Raises:
        ConfigError: It is not a valid job; lists every problem.
    """
    try:
        changed, problems = _overridden(content, overrides or {})
        job, found = validate(changed)
    except RecursionError as error:
        raise ConfigError.single(name, "not a job: nested too deeply") from error
    problems += found
    if job is None or problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        own_lines = {
            key: line for key, line in (lines or {}).items() if key not in (overrides or {})
        }
        problems.sort(key=lambda problem: own_lines.get(problem.path, math.inf))
        placed = [_with_line(problem, own_lines) for problem in problems]
        raise ConfigError(f"{count} in {name}", placed, path=name)
    return _with_absolute_paths(job, Path.cwd() if directory is None else directory)


def _with_line(problem: Problem, lines: Lines) -> Problem:
    line = lines.get(problem.path)
    return problem if line is None else Problem(problem.path, f"{problem.message} (line {line})")


def _overridden(
    content: Mapping[str, object], overrides: Mapping[str, object]
) -> tuple[dict[str, object], list[Problem]]:
    changed = _copied(content)
    problems = []
    for key, value in overrides.items():
        if (blocked := _set(changed, key, value)) is not None:
            problems.append(Problem(key, f"cannot be set: {blocked}"))
    return changed, problems


def _copied(content: Mapping[str, object]) -> dict[str, object]:
    # Only mappings are written to.
    return {
        key: _copied(value) if isinstance(value, Mapping) else value
        for key, value in content.items()
    }


def _set(section: MutableMapping[str, object], key: str, value: object) -> str | None:
    """Set a dotted key; returns why that is not possible, or None."""
    parts = key.split(".")
    if not all(parts):
        return "a key is names joined by single dots, such as `budget.evaluations`"
    # Names may hold dots (`models.checkpoints.v1.5`): the longest name that is there wins.
    lengths = (length for length in range(len(parts), 0, -1) if ".".join(parts[:length]) in section)
    length = next(lengths, 1)
    name, rest = ".".join(parts[:length]), ".".join(parts[length:])
    if not rest:
        section[name] = value
        return None
    inner = section.setdefault(name, {})
    if inner is None:  # `budget:` with nothing behind it
        inner = section[name] = {}
    if not isinstance(inner, MutableMapping):
        return f"`{name}` is {shown(inner)}, not a section; write it out in the job file"
    return _set(inner, rest, value)


def _with_absolute_paths(job: JobConfig, directory: Path) -> JobConfig:
    def absolute(path: str, start: Path = directory) -> str:
        with suppress(RuntimeError):  # `~nobody`: there is no such user, but maybe such a file
            return os.path.normpath(start.absolute() / Path(path).expanduser())
        return os.path.normpath(start.absolute() / path)

    def resolved(source: ModelSource) -> ModelSource:
        if "://" in source.path:
            return source
        local = exists(absolute(source.path)) or not _HUB_ID.fullmatch(source.path)
        return source.model_copy(update={"path": absolute(source.path)}) if local else source

    models, evaluation = job.models, job.evaluation
    data_dir = None if evaluation.data_dir is None else absolute(evaluation.data_dir)

    def located(spec: ScorerSpec) -> ScorerSpec:
        scorer = f"{absolute(spec.module)}:{spec.function}" if spec.is_file else spec.scorer
        items = absolute(spec.items, Path(data_dir or directory))
        return spec.model_copy(update={"scorer": scorer, "items": items})

    def placed(objective: Objective) -> Objective:
        tasks = [located(s) if isinstance(s, ScorerSpec) else s for s in objective.tasks]
        return objective.model_copy(update={"tasks": tasks})

    return job.model_copy(
        update={
            "models": models.model_copy(
                update={
                    "base": None if models.base is None else resolved(models.base),
                    "checkpoints": {
                        name: resolved(source) for name, source in models.checkpoints.items()
                    },
                }
            ),
            "evaluation": evaluation.model_copy(
                update={
                    "include_path": [absolute(path) for path in evaluation.include_path],
                    "data_dir": data_dir,
                }
            ),
            "baselines": {name: absolute(path) for name, path in job.baselines.items()},
            "objectives": {name: placed(part) for name, part in job.objectives.items()},
            "telemetry": _with_absolute_files(job.telemetry, absolute),
            "archive": job.archive if "://" in job.archive else absolute(job.archive),
        }
    )


def _with_absolute_files(
    telemetry: TelemetrySettings, absolute: Callable[[str], str]
) -> TelemetrySettings:
    log_file, boards = telemetry.log_file, telemetry.tensorboard
    mlflow, wandb = telemetry.mlflow, telemetry.wandb
    if boards is not None:
        boards = boards.model_copy(update={"directory": absolute(boards.directory)})
    if mlflow is not None and mlflow.is_file:
        mlflow = mlflow.model_copy(update={"uri": absolute(mlflow.uri)})
    if wandb is not None:
        wandb = wandb.model_copy(update={"directory": absolute(wandb.directory)})
    changed = {
        "log_file": None if log_file is None else absolute(log_file),
        "tensorboard": boards,
        "mlflow": mlflow,
        "wandb": wandb,
    }
    return telemetry.model_copy(update=changed)
