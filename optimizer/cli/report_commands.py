"""The command report: printed, or written as a page, as Markdown and as pictures."""

import sys
from pathlib import Path

from optimizer.archive.archive import Archive
from optimizer.cli.read_commands import print_json, stdout_console


def report(
    place: str, *, html: Path | None, markdown: Path | None, png: Path | None, as_json: bool
) -> None:
    """Print the report of a search, or write it where a file is named; then print the files."""
    from optimizer.report.report import render, report_of, report_record
    from optimizer.report.sections import document_of
    from optimizer.report.write import check_targets, write_report

    check_targets(html, markdown, png)
    with Archive.open(place) as archive:
        found = report_of(archive)
        document = document_of(archive, found) if html or markdown or png else None
    written = (
        [] if document is None else write_report(document, html=html, markdown=markdown, png=png)
    )
    if as_json:
        print_json(report_record(found))
    elif written:
        sys.stdout.write("".join(f"{path}\n" for path in written))
    else:
        stdout_console().print(render(found))
