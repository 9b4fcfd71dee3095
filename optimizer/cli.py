"""The command ``mergefront``: arguments in, one call, exit code out.

What a command does is in ``optimizer.cli_search`` (check, run, resume), ``optimizer.cli_noise``,
``optimizer.cli_export``, ``optimizer.cli_push``, ``optimizer.cli_merge`` (merge, recipe),
``optimizer.cli_launch`` (launch, logs, stop, list), ``optimizer.cli_read`` and
``optimizer.cli_report`` (what only reads an archive) and ``optimizer.cli_archive`` (its upkeep);
the arguments that several commands take are in ``optimizer.cli_options``, those of clusters in
``optimizer.cli_cluster``, how commands end in ``optimizer.cli_guard``. What they do is imported
inside the commands, so that ``mergefront --help`` needs neither torch nor Ray. Results go to
standard output, progress, logs and errors to standard error; the exit codes are those of
``configs.errors``.
"""

from pathlib import Path
from typing import Annotated

import typer

from optimizer import cli_cluster
from optimizer.cli_archive import archive_app
from optimizer.cli_guard import registered_on
from optimizer.cli_options import (
    ArchivePlace,
    AsJson,
    AtLeast,
    Dtype,
    Evaluations,
    JobFile,
    Knee,
    ModelPlaces,
    Plain,
    Prefer,
    Raw,
    RecipeId,
    Settings,
    ShardSize,
    StartFrom,
    read_overrides,
)

app = typer.Typer(
    name="mergefront",
    help="Search the merges of fine-tuned checkpoints for the whole Pareto front, and export "
    "the best one as an ordinary Hugging Face checkpoint.",
    no_args_is_help=True,
    add_completion=False,
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
    from optimizer import cli_search

    cli_search.check(
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
    from optimizer import cli_noise

    cli_noise.noise(
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
    from optimizer import cli_search

    overrides = read_overrides(settings, evaluations)
    cli_search.run(
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
    from optimizer import cli_search

    cli_search.resume(
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
    from optimizer import cli_search

    cli_search.rival(archive, overrides=read_overrides(settings), plain=plain)


cli_cluster.add_commands(app)


@_command
def front(
    *,
    archive: ArchivePlace,
    split: Annotated[str, typer.Option(help="Whose scores: search, select or report.")] = "search",
    prefer: Prefer = None,
    at_least: AtLeast = None,
    knee: Knee = False,
    raw: Raw = False,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Print the merges that no other merge dominates."""
    from optimizer import cli_read

    wish = cli_read.FrontWish(prefer, at_least, knee, raw)
    cli_read.front(archive, split=split, wish=wish, as_json=as_json, as_csv=as_csv)


@_command
def plot(
    archive: ArchivePlace,
    out: Annotated[
        Path | None,
        typer.Option(help="FILE.png, FILE.html, or a name for both. [default: beside ARCHIVE]"),
    ] = None,
) -> None:
    """Draw the front and how it grew, as PNG and as one HTML page."""
    from optimizer import cli_read

    cli_read.plot(archive, out=out)


@_command
def report(
    *,
    archive: ArchivePlace,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write one self-contained page.")
    ] = None,
    md: Annotated[
        Path | None, typer.Option("--md", metavar="FILE.md", help="Write Markdown for a wiki.")
    ] = None,
    png: Annotated[
        Path | None, typer.Option("--png", metavar="DIR", help="Write the figures as pictures.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print or write the chosen merge, the baselines, and whether it won."""
    from optimizer import cli_report

    cli_report.report(archive, html=out, markdown=md, png=png, as_json=as_json)


@_command
def export(
    *,
    archive: ArchivePlace,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory to create.")],
    prefer: Prefer = None,
    at_least: AtLeast = None,
    knee: Knee = False,
    recipe_id: RecipeId = None,
    dtype: Dtype = None,
    score: Annotated[
        bool, typer.Option("--score", help="With --dtype: score that on the report items first.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Score it with stock lm-eval and compare; exit 1 if unequal."
        ),
    ] = False,
    max_shard_size: ShardSize = "5GB",
    as_json: AsJson = False,
) -> None:
    """Write the chosen or another merge as a Hugging Face checkpoint."""
    from optimizer import cli_export

    cli_export.export(
        archive,
        out=out,
        prefer=prefer,
        at_least=at_least,
        knee=knee,
        recipe_id=recipe_id,
        dtype=dtype,
        score=score,
        verify=verify,
        max_shard_size=max_shard_size,
        as_json=as_json,
    )


@_command
def push(
    *,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="An exported merge.")],
    repo_id: Annotated[str, typer.Argument(metavar="REPO_ID", help="OWNER/NAME, or NAME.")],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see it; default: private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="Branch, made where it is missing.")
    ] = None,
    message: Annotated[
        str | None, typer.Option("--message", "-m", help="Message of the commit.")
    ] = None,
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Open a pull request instead.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check, print the files, and send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload an exported merge to the Hugging Face hub, private unless told."""
    from optimizer import cli_push

    cli_push.push(
        directory,
        repo_id,
        public=public,
        revision=revision,
        message=message,
        create_pr=create_pr,
        dry_run=dry_run,
        as_json=as_json,
    )


@_command
def merge(
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A recipe.json, or a mergekit YAML.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Directory to create.")],
    source: ModelPlaces = None,
    dtype: Dtype = None,
    max_shard_size: ShardSize = "5GB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be merged, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make one merge without a search, of a recipe or mergekit YAML."""
    from optimizer import cli_merge

    cli_merge.merge(
        file,
        out=out,
        directories=source or [],
        dtype=dtype,
        max_shard_size=max_shard_size,
        dry_run=dry_run,
        as_json=as_json,
    )


@_command
def recipe(
    *,
    file: Annotated[
        str,
        typer.Argument(
            metavar="ARCHIVE|FILE", help="An archive, a recipe.json, or a mergekit YAML."
        ),
    ],
    recipe_id: RecipeId = None,
    source: ModelPlaces = None,
    form: Annotated[str, typer.Option("--format", help="json or mergekit.")] = "json",
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Where to write; default: print it.")
    ] = None,
) -> None:
    """Print a recipe as JSON, or as a mergekit YAML."""
    from optimizer import cli_merge

    cli_merge.recipe(file, recipe_id=recipe_id, directories=source or [], form=form, out=out)


if __name__ == "__main__":
    main()
