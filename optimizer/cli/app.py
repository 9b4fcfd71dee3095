"""The command ``mergefront``: arguments in, one call, exit code out.

Here are the commands that search, whose work is in ``optimizer.cli.search_commands`` (check, run,
resume, rival) and ``optimizer.cli.noise_commands``. Those that prepare are in
``optimizer.cli.setup_commands`` (init, doctor), learn is in ``optimizer.cli.learn_arguments``,
those that read and publish results in ``optimizer.cli.results_commands``, those of clusters in
``optimizer.cli.cluster_commands``, the service in ``optimizer.cli.serve_commands``, and the upkeep
of archives in ``optimizer.cli.archive_commands``; the arguments that several commands take are in
``optimizer.cli.options``, how commands end in ``optimizer.cli.guard``. What they do is imported
inside the commands, so that ``mergefront --help`` needs neither torch nor Ray. Results go to
standard output, progress, logs and errors to standard error; the exit codes are those of
``configs.errors``.
"""

from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli import (
    cluster_commands,
    learn_arguments,
    results_commands,
    serve_commands,
    setup_commands,
)
from optimizer.cli.archive_commands import archive_app
from optimizer.cli.guard import registered_on
from optimizer.cli.options import (
    ArchivePlace,
    AsJson,
    Evaluations,
    JobFile,
    Plain,
    Settings,
    StartFrom,
    read_overrides,
)

app = typer.Typer(
    name="mergefront",
    help="Search the merges of fine-tuned checkpoints for the whole Pareto front, and export "
    "the best one as an ordinary Hugging Face checkpoint.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Plain help is there in half the time, and survives a pipe.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_command = registered_on(app)
app.add_typer(archive_app, name="archive")


def main() -> None:
    """Run the command line."""
    app()


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            typer.echo(f"mergefront {version('mergefront')}")
        except PackageNotFoundError:
            typer.echo("mergefront (not installed, run from its source tree)")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    pass


setup_commands.add_commands(app)


@_command
def check(
    job: JobFile,
    settings: Settings = None,
    headers_only: Annotated[
        bool,
        typer.Option(
            "--headers-only", help="Read no weights: no digests, deltas or cosines, but fast."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a job, evaluating nothing, and estimate what it costs."""
    from optimizer.cli import search_commands

    search_commands.check(
        job, overrides=read_overrides(settings), headers_only=headers_only, as_json=as_json
    )


@_command
def noise(
    *,
    job: JobFile,
    settings: Settings = None,
    difference: Annotated[
        float, typer.Option(metavar="D", help="The difference of scores that should be seen.")
    ] = 0.02,
    run_singles: Annotated[
        bool, typer.Option("--run", help="First score base and checkpoints, where they were not.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what the items of a job can see, and how many it needs."""
    from optimizer.cli import noise_commands

    noise_commands.noise(
        job,
        overrides=read_overrides(settings),
        difference=difference,
        run=run_singles,
        as_json=as_json,
    )


@_command
def run(
    *,
    job: JobFile,
    settings: Settings = None,
    evaluations: Evaluations = None,
    start_from: StartFrom = None,
    or_resume: Annotated[
        bool, typer.Option("--or-resume", help="Go on with the archive where there is one.")
    ] = False,
    plain: Plain = False,
) -> None:
    """Search until the budget is spent, then validate and choose."""
    from optimizer.cli import search_commands

    overrides = read_overrides(settings, evaluations)
    search_commands.run(
        job, overrides=overrides, start_from=start_from, or_resume=or_resume, plain=plain
    )


@_command
def resume(
    *,
    archive: ArchivePlace,
    job: Annotated[
        Path | None,
        typer.Option("--job", metavar="JOB.yaml", help="Job file; default: the one archived."),
    ] = None,
    archived_job: Annotated[
        bool, typer.Option("--archived-job", help="Ignore the job file, take the archived job.")
    ] = False,
    settings: Settings = None,
    evaluations: Evaluations = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Propose everything again and compare first.")
    ] = False,
    plain: Plain = False,
) -> None:
    """Go on with a search that was stopped, or with a larger budget."""
    from optimizer.cli import search_commands

    search_commands.resume(
        archive,
        job_path=job,
        archived_job=archived_job,
        overrides=read_overrides(settings, evaluations),
        verify=verify,
        plain=plain,
    )


@_command
def rival(archive: ArchivePlace, settings: Settings = None, plain: Plain = False) -> None:
    """Run random search at the same budget and compare."""
    from optimizer.cli import search_commands

    search_commands.rival(archive, overrides=read_overrides(settings), plain=plain)


learn_arguments.add_commands(app)
cluster_commands.add_commands(app)
serve_commands.add_commands(app)
results_commands.add_commands(app)


if __name__ == "__main__":
    main()
