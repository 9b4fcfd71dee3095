"""What a cluster is sent to run a search: this code, the job, and the files that it names.

The directory that :func:`stage` fills becomes the working directory of the driver and of all its
workers, wherever a node unpacks it. Files of the job (tasks, items, scorers) go into it and are
named relative to it, so that the job says the same on every node and in every later launch. Models
and the archive are not sent: their paths are those of the cluster.
"""

import json
import os
import re
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ConfigError, Problem
from configs.evaluation import Objective
from configs.schema import JobConfig
from configs.scorers import ScorerSpec
from workers.column_coefficients import COEFFICIENTS_FILE, coefficients_beside, recipe_path

if TYPE_CHECKING:
    from workers.ray_jobs import JobClient

JOB_FILE = "job.json"
"""Name of the job in the directory that is sent."""

_PACKAGES = ("configs", "evaluators", "workers", "optimizer")
# Below it lies what the job names.
_FILES = Path("files")
# Ray sends everything through the memory of the head node.
_MAX_BYTES = 200 * 2**20
# How long a driver takes to end beyond the grace of its evaluations.
_END_S = 10.0


@dataclass(slots=True)
class _Shipment:
    """Copies files of a job into a directory, and gives back their names in it."""

    directory: Path
    size_bytes: int = 0
    problems: list[Problem] = field(default_factory=list)

    def send(self, key: str, path: str, name: str) -> str:
        """Copy a file or directory to ``files/NAME``; what is not here stays as it is."""
        source = Path(path)
        if not source.exists():
            return path
        size = sum(file.stat().st_size for file in _files_of(source))
        self.size_bytes += size
        if self.size_bytes > _MAX_BYTES:
            self.problems.append(
                Problem(
                    key,
                    f"{path} and what is sent before it have {self.size_bytes >> 20} MB, and at "
                    f"most {_MAX_BYTES >> 20} MB are sent to a cluster; put it where all nodes "
                    "find it under a path that does not exist here",
                )
            )
            return path
        target = _FILES / name
        (self.directory / target).parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, self.directory / target, ignore=_ignored, dirs_exist_ok=True)
        else:
            shutil.copyfile(source, self.directory / target)
        return str(target)

    def send_merge(self, name: str, path: str) -> str:
        """Copy the recipe of a baseline, and its coefficients where it has some: nothing else.

        The directory may be a checkpoint that was exported.
        """
        key, target = f"baselines.{name}", f"baselines/{name}"
        recipe = recipe_path(path)
        if not recipe.is_file():
            return path
        self.send(key, str(recipe), f"{target}/{recipe.name}")
        if (columns := coefficients_beside(recipe)) is not None:
            self.send(key, str(columns), f"{target}/{COEFFICIENTS_FILE}")
        return str(_FILES / target / recipe.name)


def stage(job: JobConfig, directory: Path) -> JobConfig:
    """Fill a directory with what a cluster needs to run a job.

    Args:
        job: With absolute paths, as ``load_job`` gives it.
        directory: Empty.

    Returns:
        The job as the cluster will read it: it joins the cluster that it runs on, and names its
        files relative to the directory.

    Raises:
        ConfigError: The files that it names are too large to be sent.
    """
    for package in _PACKAGES:
        home = Path(str(sys.modules[package].__file__)).parent
        shutil.copytree(home, directory / package, ignore=_ignored)
    shipment = _Shipment(directory)
    evaluation = job.evaluation
    include = [
        shipment.send(f"evaluation.include_path[{number}]", path, f"tasks-{number}")
        for number, path in enumerate(evaluation.include_path)
    ]
    data_dir = evaluation.data_dir
    if data_dir is not None:
        data_dir = shipment.send("evaluation.data_dir", data_dir, "data")
    places = evaluation.data_dir, data_dir
    objectives = {
        name: _sent(name, objective, shipment, places) for name, objective in job.objectives.items()
    }
    baselines = {name: shipment.send_merge(name, path) for name, path in job.baselines.items()}
    if shipment.problems:
        raise ConfigError("the job cannot be sent to a cluster", shipment.problems)
    sent = job.model_copy(
        update={
            "evaluation": evaluation.model_copy(
                update={"include_path": include, "data_dir": data_dir}
            ),
            "objectives": objectives,
            "baselines": baselines,
            "workers": job.workers.model_copy(update={"address": "auto"}),
        }
    )
    text = json.dumps(sent.model_dump(mode="json"), indent=1, allow_nan=False)
    (directory / JOB_FILE).write_text(text, encoding="utf-8")
    return sent


def submit(
    job: JobConfig, client: "JobClient", *, python: str, environment: Mapping[str, str]
) -> str:
    """Send a job to a cluster and start its search there; returns the id of that launch.

    Args:
        job: With absolute paths, as ``load_job`` gives it.
        client: Of the cluster.
        python: Python there, by name or path.
        environment: Variables of the search and its workers.

    Raises:
        ConfigError: The files that it names are too large to be sent.
        ClusterError: The cluster does not take it.
    """
    job_id = new_job_id(job.name)
    with tempfile.TemporaryDirectory(prefix="mergefront-") as directory:
        stage(job, Path(directory))
        client.submit(
            job_id,
            entrypoint(python),
            Path(directory),
            metadata={"search": job.name, "archive": job.archive},
            environment=environment,
            end_s=job.workers.grace_s + _END_S,
        )
    return job_id


def entrypoint(python: str) -> str:
    """Return the command that runs a staged job on the head node.

    Args:
        python: Python there, by name or path.
    """
    # `exec`: the shell would not pass a signal on.
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    command = [python, "-m", "optimizer.cli.launched", JOB_FILE, "--python", here]
    return f"exec {shlex.join([*command, '--ray', version('ray')])}"


def new_job_id(name: str) -> str:
    """Return an id for a launch of a job, which names the job and no earlier launch."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "search"
    return f"mergefront-{plain[:40]}-{secrets.token_hex(4)}"


def _sent(
    name: str,
    objective: Objective,
    shipment: _Shipment,
    data_dirs: tuple[str | None, str | None],
) -> Objective:
    """Send the files of an objective's scorers; ``data_dirs`` are that here and that sent."""
    here, there = data_dirs

    def items_of(spec: ScorerSpec, key: str) -> str:
        # They are looked up in the data directory.
        if here and there and Path(spec.items).is_relative_to(here):
            return os.path.relpath(spec.items, here)
        if there and Path(there).is_absolute():
            return spec.items
        sent = shipment.send(key, spec.items, f"items/{spec.task}/{Path(spec.items).name}")
        return os.path.relpath(sent, there) if there and not Path(sent).is_absolute() else sent

    def located(spec: ScorerSpec) -> ScorerSpec:
        key, scorer = f"objectives.{name}", spec.scorer
        if spec.is_file:
            file = Path(spec.module).name
            module = shipment.send(key, spec.module, f"scorers/{spec.task}/{file}")
            scorer = f"{module}:{spec.function}"
        return spec.model_copy(update={"scorer": scorer, "items": items_of(spec, key)})

    tasks = [located(s) if isinstance(s, ScorerSpec) else s for s in objective.tasks]
    return objective.model_copy(update={"tasks": tasks})


def _files_of(path: Path) -> Iterator[Path]:
    return (file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _ignored(_: str, names: list[str]) -> set[str]:
    return {name for name in names if name == "__pycache__" or name.startswith(".git")}
