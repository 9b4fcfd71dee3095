"""Say whether stock lm-eval gives an exported checkpoint the scores that its archive has.

    python scripts/verify_export.py ARCHIVE DIR [--split report]

``mergefront export --verify`` does so right after an export; ``optimizer.publish.verify_export``
says how. The exit code is 1 where scores differ.
"""

from pathlib import Path
from typing import Annotated

import typer

from configs.errors import ArchiveError, MergefrontError
from configs.evaluation import SPLITS
from optimizer.archive.archive import Archive
from optimizer.publish.verify_export import Verification, verify


def main(
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="Archive of the search.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The exported checkpoint.")],
    split: Annotated[
        str | None, typer.Option(help="Whose items: search, select or report. [default: last]")
    ] = None,
) -> None:
    """Say whether the stock command gives the archive's scores, item for item."""
    try:
        found = _verify(archive, directory.resolve(), split)
    except MergefrontError as error:
        typer.echo(f"error: {error.message}", err=True)
        raise typer.Exit(error.exit_code) from None
    typer.echo("\n".join(found.lines))
    raise typer.Exit(0 if found.is_equal else 1)


def _verify(place: str, directory: Path, split: str | None) -> Verification:
    found = next((name for name in SPLITS if name == split), None)
    if split is not None and found is None:
        raise ArchiveError(f"there is no split `{split}`; there are {', '.join(SPLITS)}")
    with Archive.open(place) as archive:
        return verify(archive, directory, found)


if __name__ == "__main__":
    typer.run(main)
