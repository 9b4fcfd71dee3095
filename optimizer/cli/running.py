"""What the commands that run a search share: consoles, archives that are begun or gone on with.

``optimizer.cli.search_commands`` has the commands.
"""

import io
import json
import logging
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial

import typer
from rich.console import Console, RenderableType
from rich.logging import RichHandler

from configs.errors import INTERRUPTED, TERMINATED, ClusterError, WorkerError
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.beginning import begun, checking
from optimizer.cli.read_commands import stdout_console
from optimizer.driver import run_search
from optimizer.job_changes import continued, may_change
from optimizer.live import make_view
from optimizer.preflight.preflight import Prepared, prepare
from optimizer.report.report import render, report_of
from optimizer.stopped import num_evaluated
from optimizer.telemetry.search_meters import METERS
from optimizer.telemetry.telemetry import Telemetry, telemetry_of
from optimizer.termination import Terminated, finishing_on_sigterm
from workers.meters import Meters


def say(console: Console, text: str, *, style: str | None = None) -> None:
    """Print a line as it is: paths may look like markup, and must survive being copied."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def stderr_console() -> Console:
    """Return the console for progress, and send log records there."""
    console = Console(stderr=True)
    # Through the same console, a record does not tear the live view.
    logging.basicConfig(
        level=logging.WARNING, format="%(message)s", handlers=[RichHandler(console=console)]
    )
    return console


def plain_text(renderable: RenderableType) -> str:
    """Lay something out as text without colours."""
    console = Console(file=io.StringIO(), width=120, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def warn(console: Console, prepared: Prepared) -> None:
    """Print what is suspicious about a job."""
    for warning in prepared.warnings:
        say(console, f"warning: {warning}", style="yellow")


@contextmanager
def opened_or_begun(
    job: JobConfig, console: Console, refusal: str
) -> Iterator[tuple[Archive, Prepared]]:
    """Open the archive of a job for writing, or begin it.

    Raises:
        JobChangedError: It is that of another search; ``refusal`` says what to do then.
    """
    announce = partial(say, console, style="dim")
    place = job.archive
    if not Archive.exists(place):
        prepared = prepare(job, announce=announce)
        with begun(prepared) as archive:
            yield archive, prepared
        return
    with Archive.open(place, writable=True) as archive:
        job = continued(
            archive.job, job, f"archive {place} holds another search: {refusal}. It differs:"
        )
        yield archive, prepare(job, archive=archive, announce=announce)


def run_archived(
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
    from optimizer.remembered import past_of
    from workers.job import WorkerSpec
    from workers.ray_metrics import metrics_url
    from workers.ray_pool import RayPool

    job = prepared.job
    spec = WorkerSpec(job, prepared.sources, prepared.manifest, archive.uid)
    say(console, f"archive {archive.place}", style="dim")
    view = make_view(archive, console, plain=plain)
    command = command or f"mergefront resume {shlex.quote(str(archive.place))}{options}"
    with resumable(archive, job, command) as check, watchers(archive, job) as telemetry:
        with (
            view,
            RayPool(spec, past=past_of(archive)) as pool,
            finishing_on_sigterm(
                pool, telemetry.beside(view.on_event), job.workers.grace_s
            ) as on_event,
        ):
            if job.telemetry.metrics and (url := metrics_url()) is not None:
                say(console, f"metrics {url}", style="dim")
            space, given = prepared.space, prepared.baselines
            told = checking(check, on_event)
            result = run_search(archive, pool, space, job=job, given=given, on_event=told)
        say(console, f"search ended: {result.reason}\n")
        report = render(report_of(archive))
        stdout_console().print(report)
        telemetry.note("report", plain_text(report))
    say(
        console,
        f"\nexport the chosen merge: mergefront export {shlex.quote(str(archive.place))} --out DIR",
    )


def watchers(archive: Archive, job: JobConfig) -> AbstractContextManager[Telemetry]:
    """Return the telemetry of a search that a pool of Ray runs."""

    def ray_meters() -> Meters:
        from workers.ray_metrics import RayMeters

        return RayMeters(METERS, archive.uid)

    return telemetry_of(archive, job, ray_meters)


@contextmanager
def resumable(archive: Archive, job: JobConfig, command: str) -> Iterator[Callable[[], None]]:
    """End a search that is interrupted, or loses its workers, with the command that continues it.

    Yields:
        What is to be called between two steps of the search; it raises an error where the head of
        the cluster is lost.
    """

    def how_to_go_on() -> str:
        return (
            f"{num_evaluated(archive)} of {job.budget.evaluations} evaluations are recorded; "
            f"continue with\n  {command}"
        )

    def leave(error: ClusterError) -> None:
        # The search hangs in Ray, whose core would soon end the process without these words.
        Console(stderr=True).show_cursor()
        typer.echo(f"error: {error.message}. {how_to_go_on()}", err=True)
        os._exit(error.exit_code)

    try:
        if job.workers.address is None:
            yield lambda: None
        else:
            from workers.ray_head import watching_head

            with watching_head(job.workers.address, leave) as check:
                yield check
    except KeyboardInterrupt as interrupt:
        is_terminated = isinstance(interrupt, Terminated)
        what = "terminated" if is_terminated else "interrupted"
        typer.echo(f"\n{what}: {how_to_go_on()}", err=True)
        raise typer.Exit(TERMINATED if is_terminated else INTERRUPTED) from None
    except WorkerError as error:
        text = f"{error.message.removesuffix('.')}. {how_to_go_on()}"
        raise type(error)(text, **error.context) from error


def options_of(overrides: Mapping[str, object]) -> str:
    """Write overrides as options of ``resume``, where they may be given there."""
    kept = {key: value for key, value in overrides.items() if may_change(key)}
    texts = [shlex.quote(f"{key}={json.dumps(value)}") for key, value in kept.items()]
    return "".join(f" --set {text}" for text in texts)
