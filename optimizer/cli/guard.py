"""How commands end: with their own exit code, and errors as text or JSON."""

import functools
import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import typer

from configs.errors import INTERRUPTED, MergefrontError

Command = TypeVar("Command", bound=Callable[..., None])


def registered_on(app: typer.Typer, name: str | None = None) -> Callable[[Command], Command]:
    """Return what registers commands whose errors end them with their own text and exit code."""

    def register(function: Command) -> Command:
        @functools.wraps(function)
        def guarded(**arguments: Any) -> None:
            try:
                function(**arguments)
            except MergefrontError as error:
                _fail(error, as_json=bool(arguments.get("as_json")))
            except KeyboardInterrupt:
                typer.echo("interrupted", err=True)
                raise typer.Exit(INTERRUPTED) from None

        app.command(name)(guarded)
        return function

    return register


def _fail(error: MergefrontError, *, as_json: bool) -> NoReturn:
    """End the command as an error says: text on stderr, and JSON on stdout where asked for."""
    if as_json:
        problems = [{"path": found.path, "message": found.message} for found in error.listed]
        record = {"type": error.kind, "message": error.message, "problems": problems}
        typer.echo(json.dumps({"error": record}, indent=2))
    typer.echo(f"error: {error.message}", err=True)
    raise typer.Exit(error.exit_code)
