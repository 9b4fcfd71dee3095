"""The arguments of the commands that read an archive, and publish what is in it.

What they do is in ``optimizer.cli.read_commands`` (front, plot), ``optimizer.cli.report_commands``,
``optimizer.cli.export_commands``, ``optimizer.cli.push_commands`` and
``optimizer.cli.merge_commands`` (merge, recipe).
"""

from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli.guard import registered_on
from optimizer.cli.options import (
    ArchivePlace,
    AsJson,
    AtLeast,
    Dtype,
    Knee,
    ModelPlaces,
    NewDirectory,
    Prefer,
    Raw,
    RecipeId,
    ShardSize,
)


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
    from optimizer.cli import read_commands
    from optimizer.cli.export_commands import numbers
    from optimizer.results.front_choice import FrontWish

    floors = numbers("--at-least", at_least)
    wish = FrontWish(numbers("--prefer", prefer), floors, knee=knee, raw=raw)
    read_commands.front(archive, split=split, wish=wish, as_json=as_json, as_csv=as_csv)


def plot(
    archive: ArchivePlace,
    out: Annotated[
        Path | None,
        typer.Option(help="FILE.png, FILE.html, or a name for both. [default: beside ARCHIVE]"),
    ] = None,
) -> None:
    """Draw the front and how it grew, as PNG and as one HTML page."""
    from optimizer.cli import read_commands

    read_commands.plot(archive, out=out)


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
    """Print or write what was chosen, and whether it won."""
    from optimizer.cli import report_commands

    report_commands.report(archive, html=out, markdown=md, png=png, as_json=as_json)


def export(
    *,
    archive: ArchivePlace,
    out: NewDirectory,
    prefer: Prefer = None,
    at_least: AtLeast = None,
    knee: Knee = False,
    recipe_id: RecipeId = None,
    candidate: Annotated[
        int | None,
        typer.Option(min=0, metavar="INDEX", help="This candidate, as `front --json` lists it."),
    ] = None,
    chosen_by: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="With --candidate: how it was chosen, for its card."),
    ] = None,
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
    gguf: Annotated[
        bool,
        typer.Option(
            "--check-gguf", help="Can llama.cpp's converter name all of it? Exit 1 if not."
        ),
    ] = False,
    max_shard_size: ShardSize = "5GB",
    as_json: AsJson = False,
) -> None:
    """Write the chosen or another merge as a Hugging Face checkpoint."""
    from optimizer.cli import export_commands

    export_commands.export(
        archive,
        out=out,
        prefer=prefer,
        at_least=at_least,
        knee=knee,
        recipe_id=recipe_id,
        candidate=candidate,
        chosen_by=chosen_by,
        dtype=dtype,
        score=score,
        verify=verify,
        gguf=gguf,
        max_shard_size=max_shard_size,
        as_json=as_json,
    )


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
    """Upload an exported merge to the Hugging Face hub."""
    from optimizer.cli import push_commands

    push_commands.push(
        directory,
        repo_id,
        public=public,
        revision=revision,
        message=message,
        create_pr=create_pr,
        dry_run=dry_run,
        as_json=as_json,
    )


def merge(
    *,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A recipe.json, or a mergekit YAML.")
    ],
    out: NewDirectory,
    source: ModelPlaces = None,
    dtype: Dtype = None,
    max_shard_size: ShardSize = "5GB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be merged, and write nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make one merge without a search, of a recipe or mergekit YAML."""
    from optimizer.cli import merge_commands

    merge_commands.merge(
        file,
        out=out,
        directories=source or [],
        dtype=dtype,
        max_shard_size=max_shard_size,
        dry_run=dry_run,
        as_json=as_json,
    )


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
    from optimizer.cli import merge_commands

    merge_commands.recipe(file, recipe_id=recipe_id, directories=source or [], form=form, out=out)


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for function in (front, plot, report, export, push, merge, recipe):
        registered_on(app)(function)
