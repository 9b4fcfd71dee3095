"""The arguments of ``mergefront serve``; what it does is in ``optimizer.service``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from configs.errors import ConfigError, Problem
from optimizer.cli.cluster_commands import Ca, Insecure, TokenFile, access_of
from optimizer.cli.guard import registered_on

if TYPE_CHECKING:
    from workers.ray_jobs import ClusterAccess


def serve(
    *,
    archive_dir: Annotated[
        Path,
        typer.Option(
            "--archive-dir", metavar="DIR", help="Directory of archives, made if missing."
        ),
    ] = Path("runs"),
    address: Annotated[
        str | None,
        typer.Option(metavar="RAY", help="Dashboard of the cluster that searches run on."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to bind.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8642,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Answer under this name, too; repeatable."),
    ] = None,
    model_root: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR|URL", help="Where models and items of jobs may be; repeatable."),
    ] = None,
    allow_hub: Annotated[
        list[str] | None,
        typer.Option(metavar="ORG/", help="Allow such models of the hub; '*': all. Repeatable."),
    ] = None,
    allow_scorer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE.py|DIR/|MODULE[:FUNCTION]", help="Allow a Python scorer; repeatable."
        ),
    ] = None,
    allow_tasks: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Allow the task YAMLs of a directory; repeatable."),
    ] = None,
    allow_tracker: Annotated[
        list[str] | None,
        typer.Option(metavar="URL|wandb", help="Allow a server of charts; repeatable."),
    ] = None,
    allow_code_execution: Annotated[
        bool, typer.Option("--allow-code-execution", help="Allow generated code in the sandbox.")
    ] = False,
    allow_weak_sandbox: Annotated[
        bool, typer.Option("--allow-weak-sandbox", help="Allow `sandbox: weak` as well.")
    ] = False,
    max_searches: Annotated[
        int, typer.Option(min=1, help="Searches and exports at a time on this machine.")
    ] = 2,
    cluster_python: Annotated[
        str, typer.Option(metavar="PATH", help="Python on the head node.")
    ] = "python",
    token_file: TokenFile = None,
    tls_ca: Ca = None,
    tls_insecure: Insecure = False,
) -> None:
    """Serve searches to browsers and programs, over HTTP with a token."""
    _require_extra()
    from optimizer.service.server import serve as run
    from optimizer.service.settings import (
        ServiceSettings,
        existing_directories,
        existing_scorers,
    )

    cluster: ClusterAccess | None = None
    if address is not None:
        cluster = access_of(address, token_file, tls_ca, tls_insecure)
    roots = model_root or []
    urls = tuple(f"{root.rstrip('/')}/" for root in roots if "://" in root)
    directories = [Path(root) for root in roots if "://" not in root]
    [archives] = existing_directories("--archive-dir", [_made(archive_dir)])
    settings = ServiceSettings(
        archive_dir=archives,
        host=host,
        port=port,
        host_names=frozenset(allow_host or ()),
        model_roots=existing_directories("--model-root", directories),
        model_urls=urls,
        hub=tuple("" if prefix == "*" else prefix for prefix in allow_hub or ()),
        scorers=existing_scorers("--allow-scorer", allow_scorer or []),
        task_dirs=existing_directories("--allow-tasks", allow_tasks or []),
        trackers=tuple(allow_tracker or ()),
        allow_code_execution=allow_code_execution,
        allow_weak_sandbox=allow_weak_sandbox,
        max_searches=max_searches,
        cluster=cluster,
        cluster_python=cluster_python,
    )
    run(settings)


def add_commands(app: typer.Typer) -> None:
    """Register the command."""
    registered_on(app, "serve")(serve)


def _require_extra() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]
    if missing:
        message = f"{' and '.join(missing)} is missing; `pip install 'mergefront[service]'` has it"
        raise ConfigError("the service cannot be started", [Problem("", message)])


def _made(directory: Path) -> Path:
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        problem = Problem("--archive-dir", f"{directory} cannot be made: {error.strerror}")
        raise ConfigError("the service cannot be started", [problem]) from error
    return directory
