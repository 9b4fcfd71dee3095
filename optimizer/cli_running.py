"""What the commands that run a search share: consoles, archives that are begun or gone on with.

``optimizer.cli_search`` has the commands.
"""

import json
import logging
import shlex
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import typer
from rich.console import Console
from rich.logging import RichHandler

from configs.errors import JobChangedError
from configs.schema import OPERATIONAL_KEYS, JobConfig
from optimizer.archive import Archive
from optimizer.cli_guard import INTERRUPTED, TERMINATED
from optimizer.cli_read import stdout_console
from optimizer.driver import run_search
from optimizer.job_changes import changed_keys
from optimizer.live import make_view
from optimizer.preflight import Prepared, prepare
from optimizer.report import render, report_of
from optimizer.termination import Terminated, finishing_on_sigterm


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


def warn(console: Console, prepared: Prepared) -> None:
    """Print what is suspicious about a job."""
    for warning in prepared.warnings:
        say(console, f"warning: {warning}", style="yellow")


def open_or_begin(job: JobConfig, console: Console, refusal: str) -> tuple[Archive, Prepared]:
    """Open the archive of a job for writing, or begin it.

    Raises:
        JobChangedError: It is that of another search; ``refusal`` says what to do then.
    """
    announce = partial(say, console, style="dim")
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
    from workers.job import WorkerSpec  # noqa: PLC0415 - heavy
    from workers.ray_pool import RayPool  # noqa: PLC0415 - imports Ray: only now

    spec = WorkerSpec(job=prepared.job, sources=prepared.sources, manifest=prepared.manifest)
    say(console, f"archive {archive.place}", style="dim")
    view = make_view(archive, console, plain=plain)
    command = command or f"mergefront resume {shlex.quote(str(archive.place))}{options}"
    grace_s = prepared.job.workers.grace_s
    with (
        resumable(archive, prepared.job, command),
        view,
        RayPool(spec) as pool,
        finishing_on_sigterm(pool, view.on_event, grace_s) as on_event,
    ):
        result = run_search(archive, pool, prepared.space, job=prepared.job, on_event=on_event)
    say(console, f"search ended: {result.reason}\n")
    stdout_console().print(render(report_of(archive)))
    say(
        console,
        f"\nexport the chosen merge: mergefront export {shlex.quote(str(archive.place))} --out DIR",
    )


@contextmanager
def resumable(archive: Archive, job: JobConfig, command: str) -> Iterator[None]:
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


def options_of(overrides: Mapping[str, object]) -> str:
    """Write overrides as options of ``resume``, where they may be given there."""
    kept = {key: value for key, value in overrides.items() if may_change(key)}
    texts = [shlex.quote(f"{key}={json.dumps(value)}") for key, value in kept.items()]
    return "".join(f" --set {text}" for text in texts)


def may_change(key: str) -> bool:
    """Whether a key may differ on resume; where the archive is, is said by its argument."""
    return key.partition(".")[0] in OPERATIONAL_KEYS - {"archive"}
