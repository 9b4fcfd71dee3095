"""The commands ``mergefront archive ...``: keeping archives in order.

What they do is imported inside them, so that ``mergefront --help`` needs no database.
"""

import sys
from typing import Annotated

import typer

from optimizer.cli.guard import registered_on
from optimizer.cli.options import ArchivePlace, AsJson

archive_app = typer.Typer(
    help="Copy, verify, compact and migrate archives.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
_command = registered_on(archive_app)

_UNSOUND = 4
"""Exit code of an archive with problems: that of ``configs.errors.ArchiveError``."""


@_command
def copy(
    source: Annotated[str, typer.Argument(metavar="FROM", help="An archive: a file or a URL.")],
    target: Annotated[str, typer.Argument(metavar="TO", help="Where there is none yet.")],
    as_json: AsJson = False,
) -> None:
    """Copy an archive, to a file or PostgreSQL, and compare each row."""
    from optimizer.archive.copy import copy_archive
    from optimizer.cli.read_commands import print_json

    copied = copy_archive(source, target)
    if as_json:
        places = {"source": str(copied.source), "target": str(copied.target)}
        print_json({**places, "rows": copied.rows, "equal": True})
        return
    total = sum(copied.rows.values())
    sys.stderr.write(f"{total} rows copied, all equal\n")
    sys.stdout.write(f"{copied.target}\n")


@_command
def verify(archive: ArchivePlace, as_json: AsJson = False) -> None:
    """Check that everything in an archive fits together."""
    from optimizer.archive.verify import verify_archive
    from optimizer.cli.read_commands import print_json

    found = verify_archive(archive)
    if as_json:
        problems = [
            {"path": problem.path, "message": problem.message} for problem in found.problems
        ]
        record = {"archive": str(found.place), "sound": found.is_sound, "rows": found.rows}
        print_json({**record, "problems": problems})
    elif found.is_sound:
        sys.stdout.write(f"{found.place} is sound: {sum(found.rows.values())} rows checked\n")
    else:
        sys.stdout.write("".join(f"{problem}\n" for problem in found.problems))
    if not found.is_sound:
        sys.stderr.write(
            f"error: {found.place} has {len(found.problems)} problems; restore it from a copy\n"
        )
        raise typer.Exit(_UNSOUND)


@_command
def compact(archive: ArchivePlace, as_json: AsJson = False) -> None:
    """Give back space that holds nothing; every row stays."""
    from optimizer.archive.store import backend_of
    from optimizer.cli.read_commands import print_json
    from optimizer.preflight.estimate import format_bytes

    backend = backend_of(archive)
    before, after = backend.compact()
    if as_json:
        sizes = {"bytes_before": before, "bytes_after": after}
        print_json({"archive": str(backend.place), **sizes})
    else:
        sys.stdout.write(f"{backend.place}: {format_bytes(before)} -> {format_bytes(after)}\n")


@_command
def migrate(archive: ArchivePlace, as_json: AsJson = False) -> None:
    """Bring an archive of an older version up to date."""
    from optimizer.archive.store import backend_of
    from optimizer.cli.read_commands import print_json

    store = backend_of(archive).open(writable=True)
    store.close()
    if as_json:
        print_json({"archive": str(store.place), "applied": list(store.migrated)})
    else:
        applied = ", ".join(store.migrated) or "nothing to do"
        sys.stdout.write(f"{store.place}: {applied}\n")
