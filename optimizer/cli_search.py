"""The commands that search: check, run and resume, and what ``noise --run`` scores.

Ray is imported and started only after everything that can be checked without it was checked.
"""

import json
import logging
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import typer
from rich.console import Console
from rich.logging import RichHandler

from configs.errors import ConfigError, JobChangedError, Problem
from configs.load import job_of, load_job
from configs.schema import OPERATIONAL_KEYS, JobConfig
from optimizer.archive import Archive
from optimizer.archive_seeds import WarmStart
from optimizer.cli_guard import INTERRUPTED, TERMINATED
from optimizer.cli_read import print_json, stdout_console
from optimizer.driver import num_singles, run_search, run_singles
from optimizer.job_changes import changed_keys
from optimizer.live import make_view
from optimizer.preflight import Prepared, prepare
from optimizer.preflight_view import prepared_record, render_prepared
from optimizer.report import render, report_of
from optimizer.resume import verify_replay
from optimizer.termination import Terminated, finishing_on_sigterm


def check(
    job_path: Path, *, overrides: Mapping[str, object], headers_only: bool, as_json: bool
) -> None:
    """Check a job and print its cost."""
    prepared = prepare(
        load_job(job_path, overrides),
        headers_only=headers_only,
        announce=partial(_say, _stderr_console(), style="dim"),
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
    console = _stderr_console()
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
    prepared = prepare(job, announce=partial(_say, console, style="dim"))
    _warn(console, prepared)
    start = None if start_from is None else _warm_start(start_from, prepared, console)
    archive = Archive.create(
        job.archive,
        job=job,
        job_path=_job_path_of(job_path, job),
        sources=prepared.sources,
        manifest=prepared.manifest,
    )
    with archive:
        if start is not None:
            archive.record_warm_start(start)
        _search(archive, prepared, console, plain=plain, options=_options(overrides))


def _warm_start(place: str, prepared: Prepared, console: Console) -> WarmStart:
    """Take from an archive what means something in a new search, and say what that is."""
    from optimizer.warm_start import describe, warm_start_from  # noqa: PLC0415 - only here

    with Archive.open(place) as earlier:
        start = warm_start_from(earlier, prepared.job, prepared.space, prepared.manifest)
    for line in describe(start):
        _say(console, line, style="dim")
    return start


def score_singles(job_path: Path, *, overrides: Mapping[str, object]) -> None:
    """Score base and checkpoints in the job's archive, as the beginning of its search.

    Does nothing where they have been scored. A job that is not the archive's is refused.
    """
    from workers.job import WorkerSpec  # noqa: PLC0415 - heavy
    from workers.ray_pool import RayPool  # noqa: PLC0415 - imports Ray: only now

    console = _stderr_console()
    announce = partial(_say, console, style="dim")
    job = load_job(job_path, overrides)
    prepared = None
    if Archive.exists(job.archive):
        archive = Archive.open(job.archive, writable=True)
    else:
        prepared = prepare(job, announce=announce)
        archive = Archive.create(
            job.archive,
            job=job,
            job_path=_job_path_of(job_path, job),
            sources=prepared.sources,
            manifest=prepared.manifest,
        )
    with archive:
        if len(archive.outcomes("search")) >= num_singles(archive.job):
            return
        if changes := changed_keys(archive.job, job):
            raise JobChangedError(
                f"{job_path} searches something else than {archive.place}:", changes
            )
        if prepared is None:
            prepared = prepare(job, archive=archive, announce=announce)
        _warn(console, prepared)
        spec = WorkerSpec(job=job, sources=prepared.sources, manifest=prepared.manifest)
        view = make_view(archive, console, plain=True)
        command = f"mergefront resume {shlex.quote(str(archive.place))}{_options(overrides)}"
        with _resumable(archive, job, command), view, RayPool(spec) as pool:
            run_singles(archive, pool, prepared.space, job=job, on_event=view.on_event)


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
    console = _stderr_console()
    with Archive.open(place, writable=True) as archive:
        job = _job_to_resume(archive, job_path, archived_job, overrides, console)
        prepared = prepare(job, archive=archive, announce=partial(_say, console, style="dim"))
        _warn(console, prepared)
        if verify:
            _verify(archive, prepared, console)
        options = _options(overrides) + (" --archived-job" if archived_job else "")
        if job_path is not None:
            options += f" --job {shlex.quote(str(job_path))}"
        _search(archive, prepared, console, plain=plain, options=options)


def rival(place: str, *, overrides: Mapping[str, object], plain: bool) -> None:
    """Run random search at the budget of a finished search, beside its archive, and compare."""
    from optimizer.remembered import RememberingPool  # noqa: PLC0415 - with what it wraps
    from optimizer.rival import rival_job  # noqa: PLC0415 - only here
    from workers.job import WorkerSpec  # noqa: PLC0415 - heavy
    from workers.ray_pool import RayPool  # noqa: PLC0415 - imports Ray: only now

    console = _stderr_console()
    with ExitStack() as stack:
        searched = stack.enter_context(Archive.open(place))
        here = _job_to_resume(searched, None, False, overrides, console)
        # Nobody exports the rival's choice, so what matters in it is not asked.
        validation = here.validation.model_copy(update={"leave_one_out": False})
        changes = {"workers": here.workers, "validation": validation}
        job = rival_job(searched).model_copy(update=changes)
        refusal = "it is the random search of another search; move it away"
        archive, prepared = _open_or_begin(job, console, refusal)
        stack.enter_context(archive)
        _say(console, f"archive {archive.place}", style="dim")
        spec = WorkerSpec(job=job, sources=prepared.sources, manifest=prepared.manifest)
        view = make_view(archive, console, plain=plain)
        command = f"mergefront rival {shlex.quote(place)}{_options(overrides)}"
        pool = RememberingPool(RayPool(spec), searched)
        with _resumable(archive, job, command), view, pool:
            run_search(archive, pool, prepared.space, job=job, on_event=view.on_event)
        stdout_console().print(render(report_of(searched)))


def run_or_resume(job: JobConfig) -> None:
    """Run the search of a job on the cluster that it names, from wherever its archive stands.

    What can be wrong with the cluster is found before anything is read or scored.

    Raises:
        ClusterError: The cluster cannot be joined, or a node lacks a checkpoint.
        JobChangedError: Another search is in the archive.
    """
    from workers.ray_cluster import require_models  # noqa: PLC0415 - imports Ray: only now
    from workers.ray_session import ray_session, require_resources  # noqa: PLC0415 - as above

    console = _stderr_console()
    with ray_session(job.workers):
        require_resources(job.workers)
        require_models(job)
        refusal = "launch the job with another `archive`, or as it was"
        archive, prepared = _open_or_begin(job, console, refusal)
        with archive:
            _warn(console, prepared)
            again = "mergefront launch, with the same job"
            _search(archive, prepared, console, plain=True, options="", command=again)


def _open_or_begin(job: JobConfig, console: Console, refusal: str) -> tuple[Archive, Prepared]:
    """Open the archive of a job for writing, or begin it.

    Raises:
        JobChangedError: It is that of another search; ``refusal`` says what to do then.
    """
    announce = partial(_say, console, style="dim")
    place = job.archive
    if not Archive.exists(place):
        prepared = prepare(job, announce=announce)
        archive = Archive.create(
            place,
            job=job,
            job_path=None,
            sources=prepared.sources,
            manifest=prepared.manifest,
        )
        return archive, prepared
    archive = Archive.open(place, writable=True)
    with ExitStack() as on_error:
        on_error.enter_context(archive)
        if changed := changed_keys(archive.job, job):
            raise JobChangedError(
                f"archive {place} holds another search: {refusal}. It differs:", changed
            )
        prepared = prepare(job, archive=archive, announce=announce)
        on_error.pop_all()
    return archive, prepared


def _search(
    archive: Archive,
    prepared: Prepared,
    console: Console,
    *,
    plain: bool,
    options: str,
    command: str = "",
) -> None:
    """Run the search of an archive; ``options`` are those of the command that continues it.

    ``command`` is that command where it is another one than ``resume``.
    """
    from workers.job import WorkerSpec  # noqa: PLC0415 - heavy
    from workers.ray_pool import RayPool  # noqa: PLC0415 - imports Ray: only now

    spec = WorkerSpec(job=prepared.job, sources=prepared.sources, manifest=prepared.manifest)
    _say(console, f"archive {archive.place}", style="dim")
    view = make_view(archive, console, plain=plain)
    command = command or f"mergefront resume {shlex.quote(str(archive.place))}{options}"
    grace_s = prepared.job.workers.grace_s
    with (
        _resumable(archive, prepared.job, command),
        view,
        RayPool(spec) as pool,
        finishing_on_sigterm(pool, view.on_event, grace_s) as on_event,
    ):
        result = run_search(archive, pool, prepared.space, job=prepared.job, on_event=on_event)
    _say(console, f"search ended: {result.reason}\n")
    stdout_console().print(render(report_of(archive)))
    _say(
        console,
        f"\nexport the chosen merge: mergefront export {shlex.quote(str(archive.place))} --out DIR",
    )


@contextmanager
def _resumable(archive: Archive, job: JobConfig, command: str) -> Iterator[None]:
    """End a search that is interrupted with the command that continues it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        what = "terminated" if is_terminated else "interrupted"
        typer.echo(
            f"\n{what}: {len(archive.observations())} of {job.budget.evaluations} evaluations are "
            f"recorded; continue with\n  {command}",
            err=True,
        )
        raise typer.Exit(TERMINATED if is_terminated else INTERRUPTED) from None


def _options(overrides: Mapping[str, object]) -> str:
    """Write overrides as options of ``resume``, where they may be given there."""
    kept = {key: value for key, value in overrides.items() if _may_change(key)}
    texts = [shlex.quote(f"{key}={json.dumps(value)}") for key, value in kept.items()]
    return "".join(f" --set {text}" for text in texts)


def _may_change(key: str) -> bool:
    """Whether a key may differ on resume; where the archive is, is said by its argument."""
    return key.partition(".")[0] in OPERATIONAL_KEYS - {"archive"}


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
    _refuse_unresumable(overrides)
    path = None if archived_job else job_path or archive.job_path
    if path is not None and job_path is None and not path.is_file():
        _say(console, f"{path} is gone; going on with the archived job", style="yellow")
        path = None
    if path is None:
        return job_of(archive.job.model_dump(mode="json"), overrides, name="the archived job")
    # A job means the same from wherever it is resumed.
    job = load_job(path, overrides, directory=archive.working_directory)
    if changes := changed_keys(archive.job, job):
        raise JobChangedError(
            f"{path} searches something else than {archive.place}; start a new search with "
            "another `archive`, or go on as archived with --archived-job. Changed:",
            changes,
        )
    for key in ("budget", "validation", "workers"):
        before, now = (getattr(part, key).model_dump() for part in (archive.job, job))
        for name in [name for name in now if now[name] != before[name]]:
            _say(console, f"{key}.{name}: {before[name]} -> {now[name]}", style="dim")
    return job


def _refuse_unresumable(overrides: Mapping[str, object]) -> None:
    allowed = sorted(OPERATIONAL_KEYS - {"archive"})
    problems = [
        Problem(key, f"cannot change on resume; only {', '.join(allowed)} can")
        for key in overrides
        if not _may_change(key)
    ]
    if problems:
        raise ConfigError("the command line cannot be used on resume", problems)


def _verify(archive: Archive, prepared: Prepared, console: Console) -> None:
    """Propose everything again; a difference is a warning, since BLAS bits differ (D4)."""
    mismatches = verify_replay(archive, prepared.space)
    if not mismatches:
        _say(console, f"verified: {len(archive.candidates())} proposals come out as recorded")
        return
    worst = max(mismatches, key=lambda mismatch: mismatch.largest_difference)
    _say(
        console,
        f"warning: {len(mismatches)} of {len(archive.candidates())} proposals come out "
        f"differently, candidate {mismatches[0].candidate} first; the largest difference of a "
        f"gene is {worst.largest_difference:.3g}. The record is taken as it is. Here are numpy "
        f"{version('numpy')}, cma {version('cma')}, Python {sys.version.split()[0]}",
        style="yellow",
    )


def _warn(console: Console, prepared: Prepared) -> None:
    for warning in prepared.warnings:
        _say(console, f"warning: {warning}", style="yellow")


def _say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line as it is: paths may look like markup, and must survive being copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def _stderr_console() -> Console:
    """Return the console for progress, and send log records there."""
    console = Console(stderr=True)
    # Through the same console, a record does not tear the live view.
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)]
    )
    return console
