"""The commands that search: check, run and resume, and what ``noise --run`` scores.

Ray is imported and started only after everything that can be checked without it was checked; a
cluster that is somewhere else is joined first. An archive is begun when the search can begin.
"""

import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from configs.errors import ArchiveExistsError
from configs.load import job_of, load_job
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.archive.seeds import WarmStart
from optimizer.beginning import begun, checking, on_cluster
from optimizer.cli.read_commands import print_json, stdout_console
from optimizer.cli.running import (
    opened_or_begun,
    options_of,
    resumable,
    run_archived,
    say,
    stderr_console,
    warn,
    watchers,
)
from optimizer.driver import num_singles, run_search, run_singles
from optimizer.job_changes import continued, refuse_unresumable
from optimizer.live import make_view
from optimizer.preflight.preflight import Prepared, prepare
from optimizer.preflight.preflight_view import prepared_record, render_prepared
from optimizer.report.report import render, report_of
from optimizer.resume import verify_replay
from optimizer.termination import finishing_on_sigterm


def check(
    job_path: Path, *, overrides: Mapping[str, object], headers_only: bool, as_json: bool
) -> None:
    """Check a job and print its cost."""
    prepared = prepare(
        load_job(job_path, overrides),
        headers_only=headers_only,
        announce=partial(say, stderr_console(), style="dim"),
    )
    if as_json:
        print_json(prepared_record(prepared))
    else:
        stdout_console().print(render_prepared(prepared))


def run(
    job_path: Path,
    *,
    overrides: Mapping[str, object],
    start_from: str | None = None,
    or_resume: bool = False,
    plain: bool,
) -> None:
    """Start a search, with what another archive knows where one is named, to its end.

    ``or_resume`` goes on with the archive where it is there already, for schedulers that start a
    job again.
    """
    console = stderr_console()
    job = load_job(job_path, overrides)
    if or_resume and Archive.exists(job.archive):
        kept = {key: value for key, value in overrides.items() if key != "archive"}
        resume(
            job.archive,
            job_path=job_path,
            archived_job=False,
            overrides=kept,
            verify=False,
            plain=plain,
        )
        return
    with ExitStack() as stack:
        if or_resume:
            stack.enter_context(_told_to_the_second(job, "run this again when that has ended"))
        stack.enter_context(on_cluster(job))
        prepared = prepare(job, announce=partial(say, console, style="dim"))
        warn(console, prepared)
        start = None if start_from is None else _warm_start(start_from, prepared, console)
        with begun(prepared, _job_path_of(job_path, job)) as archive:
            if start is not None:
                archive.record_warm_start(start)
            run_archived(archive, prepared, console, plain=plain, options=options_of(overrides))


def _warm_start(place: str, prepared: Prepared, console: Console) -> WarmStart:
    """Take from an archive what means something in a new search, and say what that is."""
    from optimizer.warm_start import describe, warm_start_from

    with Archive.open(place) as earlier:
        start = warm_start_from(earlier, prepared.job, prepared.space, prepared.manifest)
    for line in describe(start):
        say(console, line, style="dim")
    return start


def score_singles(job_path: Path, *, overrides: Mapping[str, object]) -> None:
    """Score base and checkpoints in the job's archive, as the beginning of its search.

    Does nothing where they have been scored. A job that is not the archive's is refused.
    """
    from optimizer.remembered import past_of
    from workers.job import WorkerSpec
    from workers.ray_pool import RayPool

    console = stderr_console()
    announce = partial(say, console, style="dim")
    job = load_job(job_path, overrides)
    prepared = None
    with ExitStack() as stack:
        if Archive.exists(job.archive):
            archive = stack.enter_context(Archive.open(job.archive, writable=True))
        else:
            stack.enter_context(on_cluster(job))
            prepared = prepare(job, announce=announce)
            archive = stack.enter_context(begun(prepared, _job_path_of(job_path, job)))
        if len(archive.outcomes("search")) >= num_singles(archive.job):
            return
        job = continued(
            archive.job, job, f"{job_path} searches something else than {archive.place}:"
        )
        if prepared is None:
            stack.enter_context(on_cluster(job))
            prepared = prepare(job, archive=archive, announce=announce)
        warn(console, prepared)
        spec = WorkerSpec(job, prepared.sources, prepared.manifest, archive.uid)
        view = make_view(archive, console, plain=True)
        command = f"mergefront resume {shlex.quote(str(archive.place))}{options_of(overrides)}"
        with (
            resumable(archive, job, command) as check,
            watchers(archive, job) as telemetry,
            view,
            RayPool(spec, past=past_of(archive)) as pool,
            finishing_on_sigterm(
                pool, telemetry.beside(view.on_event), job.workers.grace_s
            ) as on_event,
        ):
            told = checking(check, on_event)
            run_singles(archive, pool, prepared.space, job=job, on_event=told)


def resume(
    place: str,
    *,
    job_path: Path | None,
    archived_job: bool,
    overrides: Mapping[str, object],
    verify: bool,
    plain: bool,
) -> None:
    """Go on with a search and see it to its end."""
    console = stderr_console()
    with Archive.open(place, writable=True) as archive:
        job = _job_to_resume(archive, job_path, archived_job, overrides, console)
        options = options_of(overrides) + (" --archived-job" if archived_job else "")
        if job_path is not None:
            options += f" --job {shlex.quote(str(job_path))}"
        with on_cluster(job):
            prepared = prepare(job, archive=archive, announce=partial(say, console, style="dim"))
            warn(console, prepared)
            if verify:
                _verify(archive, prepared, console)
            run_archived(archive, prepared, console, plain=plain, options=options)


def rival(place: str, *, overrides: Mapping[str, object], plain: bool) -> None:
    """Run random search at the budget of a finished search, beside its archive, and compare."""
    from optimizer.remembered import RememberingPool, past_of
    from optimizer.rival import rival_job
    from workers.job import WorkerSpec
    from workers.ray_pool import RayPool

    console = stderr_console()
    with ExitStack() as stack:
        searched = stack.enter_context(Archive.open(place))
        here = _job_to_resume(searched, None, False, overrides, console)
        # Nobody exports the rival's choice, so what matters in it is not asked.
        validation = here.validation.model_copy(update={"leave_one_out": False})
        changes = {
            "workers": here.workers,
            "validation": validation,
            "telemetry": here.telemetry,
        }
        job = rival_job(searched).model_copy(update=changes)
        refusal = "it is the random search of another search; move it away"
        stack.enter_context(on_cluster(job))
        archive, prepared = stack.enter_context(opened_or_begun(job, console, refusal))
        say(console, f"archive {archive.place}", style="dim")
        spec = WorkerSpec(job, prepared.sources, prepared.manifest, archive.uid)
        view = make_view(archive, console, plain=plain)
        command = f"mergefront rival {shlex.quote(place)}{options_of(overrides)}"
        # What is remembered is there at once: only the others are waited for.
        evaluating = RayPool(spec, past=past_of(archive, searched))
        with (
            resumable(archive, job, command) as check,
            watchers(archive, job) as telemetry,
            view,
            RememberingPool(evaluating, searched) as pool,
            finishing_on_sigterm(
                evaluating, telemetry.beside(view.on_event), job.workers.grace_s
            ) as on_event,
        ):
            told, given = checking(check, on_event), prepared.baselines
            run_search(archive, pool, prepared.space, job=job, given=given, on_event=told)
        stdout_console().print(render(report_of(searched)))


def run_or_resume(job: JobConfig) -> None:
    """Run the search of a job on the cluster that it names, from wherever its archive stands.

    Raises:
        ClusterError: The cluster cannot be joined, or a node lacks a checkpoint.
        JobChangedError: Another search is in the archive.
    """
    console = stderr_console()
    refusal = "launch the job with another `archive`, or as it was"
    with (
        on_cluster(job),
        _told_to_the_second(
            job, "follow that one (`mergefront list`), or launch again when it ended"
        ),
        opened_or_begun(job, console, refusal) as (archive, prepared),
    ):
        warn(console, prepared)
        again = "mergefront launch, with the same job"
        run_archived(archive, prepared, console, plain=True, options="", command=again)


@contextmanager
def _told_to_the_second(job: JobConfig, again: str) -> Iterator[None]:
    """Say to whom another driver of the same job was ahead by a moment how to go on."""
    try:
        yield
    except ArchiveExistsError as error:
        raise ArchiveExistsError(
            f"archive {job.archive} was begun by another driver of this job a moment ago, which "
            f"goes on with it; {again}",
            **error.context,
        ) from error


def _job_path_of(job_path: Path, job: JobConfig) -> Path | None:
    """Return the job file for the archive, unless --set made it say something else."""
    return job_path if load_job(job_path).digest == job.digest else None


def _job_to_resume(
    archive: Archive,
    job_path: Path | None,
    archived_job: bool,
    overrides: Mapping[str, object],
    console: Console,
) -> JobConfig:
    """Return the archived job with what may change on resume.

    Raises:
        ConfigError: The job file or an override cannot be used.
        JobChangedError: The job file searches something else than the archive.
    """
    refuse_unresumable(overrides, "the command line cannot be used on resume")
    path = None if archived_job else job_path or archive.job_path
    if path is not None and job_path is None and not path.is_file():
        say(console, f"{path} is gone; going on with the archived job", style="yellow")
        path = None
    if path is None:
        return job_of(archive.job.model_dump(mode="json"), overrides, name="the archived job")
    # A job means the same from wherever it is resumed.
    job = continued(
        archive.job,
        load_job(path, overrides, directory=archive.working_directory),
        f"{path} searches something else than {archive.place}; start a new search with another "
        "`archive`, or go on as archived with --archived-job. Changed:",
    )
    for name in [name for name in job.baselines if name not in archive.job.baselines]:
        say(console, f"baselines.{name}: {job.baselines[name]}", style="dim")
    for key in ("budget", "validation", "workers", "telemetry"):
        before, now = (getattr(part, key).model_dump() for part in (archive.job, job))
        for name in [name for name in now if now[name] != before[name]]:
            say(console, f"{key}.{name}: {before[name]} -> {now[name]}", style="dim")
    return job


def _verify(archive: Archive, prepared: Prepared, console: Console) -> None:
    """Propose everything again; a difference is a warning, since BLAS bits differ (D4)."""
    mismatches = verify_replay(archive, prepared.space)
    if not mismatches:
        say(console, f"verified: {len(archive.candidates())} proposals come out as recorded")
        return
    worst = max(mismatches, key=lambda mismatch: mismatch.largest_difference)
    say(
        console,
        f"warning: {len(mismatches)} of {len(archive.candidates())} proposals come out "
        f"differently, candidate {mismatches[0].candidate} first; the largest difference of a "
        f"gene is {worst.largest_difference:.3g}. The record is taken as it is. Here are numpy "
        f"{version('numpy')}, cma {version('cma')}, Python {sys.version.split()[0]}",
        style="yellow",
    )
