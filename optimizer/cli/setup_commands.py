"""The arguments of the commands that prepare a search: a job file, and a look at the machine.

What they do is in ``optimizer.cli.init_commands`` and ``optimizer.cli.doctor_commands``.
"""

from pathlib import Path
from typing import Annotated

import typer

from optimizer.cli.guard import registered_on
from optimizer.cli.options import AsJson


def init(
    *,
    job: Annotated[Path, typer.Argument(metavar="JOB.yaml", help="The file to write.")],
    base: Annotated[
        str | None, typer.Option(metavar="PLACE", help="What the checkpoints were tuned from.")
    ] = None,
    checkpoint: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PLACE", help="A directory, hub id or URL; repeatable."),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TASK[:METRIC]", help="An lm-eval task; repeatable."),
    ] = None,
    data_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Items from local files.")
    ] = None,
    include_path: Annotated[
        list[str] | None, typer.Option(metavar="DIR", help="Task YAMLs of your own; repeatable.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the search; default: of the file.")] = None,
    archive: Annotated[
        str | None, typer.Option(metavar="PLACE", help="What records the search.")
    ] = None,
    runs_code: Annotated[
        bool, typer.Option("--allow-code", help="Tasks may run generated code in the sandbox.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
) -> None:
    """Write a job file to begin with; ask for what flags do not say."""
    from optimizer.cli import init_commands

    flags = init_commands.InitFlags(
        base=base,
        checkpoints=checkpoint or [],
        objectives=objective or [],
        data_dir=data_dir,
        include_path=include_path or [],
        name=name,
        archive=archive,
        runs_code=runs_code,
        force=force,
    )
    init_commands.init(job, flags)


def doctor(
    *,
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Where archives and exports will be.")
    ] = Path(),
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out disk speed, sandbox, Ray and hub.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what works on this machine, what does not, and what to do."""
    from optimizer.cli import doctor_commands

    doctor_commands.doctor(directory, quick=quick, as_json=as_json)


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for function in (init, doctor):
        registered_on(app)(function)
