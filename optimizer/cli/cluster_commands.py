"""The arguments of the commands that follow searches on a Ray cluster.

What they do is in ``optimizer.cli.launch_commands``, which is imported when one of them is called.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimizer.cli.guard import registered_on
from optimizer.cli.options import AsJson, Evaluations, JobFile, Settings, read_overrides

if TYPE_CHECKING:
    from workers.ray_jobs import ClusterAccess

Address = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Dashboard of the head node. [default: $RAY_API_SERVER_ADDRESS, or "
        "http://127.0.0.1:8265]",
    ),
]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="What `launch` printed.")]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file", metavar="FILE", help="The cluster's token. [default: where Ray looks]"
    ),
]
Ca = Annotated[Path | None, typer.Option("--tls-ca", metavar="FILE", help="Certificates to trust.")]
Insecure = Annotated[
    bool, typer.Option("--tls-insecure", help="Trust any certificate; for trying out.")
]


def access_of(
    address: str | None, token_file: Path | None, ca: Path | None, insecure: bool
) -> "ClusterAccess":
    """Say how to reach a cluster, from the options of a command."""
    from workers.ray_jobs import ClusterAccess

    found = address or os.environ.get("RAY_API_SERVER_ADDRESS") or "http://127.0.0.1:8265"
    return ClusterAccess(found, token_file=token_file, ca=ca, verify=not insecure)


def launch(
    *,
    job: JobFile,
    address: Address = None,
    settings: Settings = None,
    evaluations: Evaluations = None,
    python: Annotated[
        str, typer.Option(metavar="PATH", help="Python on the head node.")
    ] = "python",
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="Set a variable there; repeatable."),
    ] = None,
    wait: Annotated[
        float,
        typer.Option(metavar="S", min=0, help="Seconds to wait for what goes wrong at once."),
    ] = 25.0,
    token_file: TokenFile = None,
    tls_ca: Ca = None,
    tls_insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Run a search on a Ray cluster, or go on with it there, and return."""
    from optimizer.cli import launch_commands

    launch_commands.launch(
        job,
        access_of(address, token_file, tls_ca, tls_insecure),
        overrides=read_overrides(settings, evaluations),
        python=python,
        environment=launch_commands.read_environment(env),
        wait_s=wait,
        as_json=as_json,
    )


def logs(
    *,
    job: JobId,
    address: Address = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it ends.")] = False,
    token_file: TokenFile = None,
    tls_ca: Ca = None,
    tls_insecure: Insecure = False,
) -> None:
    """Print what a launched search says."""
    from optimizer.cli import launch_commands

    launch_commands.logs(job, access_of(address, token_file, tls_ca, tls_insecure), follow=follow)


def stop(
    *,
    job: JobId,
    address: Address = None,
    token_file: TokenFile = None,
    tls_ca: Ca = None,
    tls_insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """End a launched search; launching it again goes on with it."""
    from optimizer.cli import launch_commands

    launch_commands.stop(job, access_of(address, token_file, tls_ca, tls_insecure), as_json=as_json)


def list_jobs(
    *,
    address: Address = None,
    token_file: TokenFile = None,
    tls_ca: Ca = None,
    tls_insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """List the searches that were launched on a cluster."""
    from optimizer.cli import launch_commands

    launch_commands.list_jobs(access_of(address, token_file, tls_ca, tls_insecure), as_json=as_json)


def status(
    *,
    archive: Annotated[
        str,
        typer.Argument(
            metavar="ARCHIVE|JOB",
            help="A file, postgresql://USER@HOST/DB?search=NAME, or what `launch` printed.",
        ),
    ],
    address: Address = None,
    token_file: TokenFile = None,
    tls_ca: Ca = None,
    tls_insecure: Insecure = False,
    as_json: AsJson = False,
) -> None:
    """Say how far a search is, running or not, here or on a cluster."""
    is_job = address is not None or (
        archive.startswith("mergefront-") and not Path(archive).exists()
    )
    if is_job:
        from optimizer.cli import launch_commands

        access = access_of(address, token_file, tls_ca, tls_insecure)
        launch_commands.status(archive, access, as_json=as_json)
        return
    from optimizer.cli import read_commands

    read_commands.status(archive, as_json=as_json)


def add_commands(app: typer.Typer) -> None:
    """Register the commands."""
    for name, function in (
        ("launch", launch),
        ("status", status),
        ("logs", logs),
        ("stop", stop),
        ("list", list_jobs),
    ):
        registered_on(app, name)(function)
