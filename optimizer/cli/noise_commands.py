"""The command ``noise``: what the items of a job can see, from the scores of its baselines."""

import shlex
from collections.abc import Mapping
from pathlib import Path

from configs.errors import ArchiveNotFoundError, ConfigError, Problem
from configs.load import load_job
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.cli.read_commands import print_json, stdout_console
from optimizer.results.noise import noise_of
from optimizer.results.noise_view import noise_record, render_noise


def noise(
    job_path: Path,
    *,
    overrides: Mapping[str, object],
    difference: float,
    run: bool,
    as_json: bool,
) -> None:
    """Print the noise report of a job, after scoring what it needs if asked to."""
    if not 0.0 < difference < float("inf"):
        message = f"must be a number > 0, found {difference}"
        raise ConfigError("the command line cannot be used", [Problem("--difference", message)])
    job = load_job(job_path, overrides)
    if run:
        from optimizer.cli.search_commands import score_singles

        score_singles(job_path, overrides=overrides)
    elif not Archive.exists(job.archive):
        raise _nothing_scored(job_path, job)
    with Archive.open(job.archive) as archive:
        report = noise_of(archive, job, difference)
    if as_json:
        print_json(noise_record(report))
    else:
        stdout_console().print(render_noise(report))


def _nothing_scored(job_path: Path, job: JobConfig) -> ArchiveNotFoundError:
    count = len(job.models.checkpoints) + (job.models.base is not None)
    items = job.evaluation.splits.search
    return ArchiveNotFoundError(
        f"there is no archive at {job.archive}, so no baseline was scored yet. `mergefront noise "
        f"{shlex.quote(str(job_path))} --run` scores base and checkpoints, {count} evaluations on "
        f"{items} items per task; they are the first of the search, which `mergefront resume` "
        f"goes on with. Or `mergefront run {shlex.quote(str(job_path))}`",
        path=job.archive,
    )
