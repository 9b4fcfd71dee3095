"""Writes the generated pages where Sphinx finds them."""

from pathlib import Path

from scripts.reference.commands_page import commands_page
from scripts.reference.http_page import http_page
from scripts.reference.job_page import job_page

_PAGES = {"job.md": job_page, "commands.md": commands_page, "http.md": http_page}


def write_pages(directory: Path) -> None:
    """Generate all pages; a file that is the same already is not touched.

    Args:
        directory: ``docs/reference``; git ignores these files in it.
    """
    for name, page in _PAGES.items():
        path, text = directory / name, page()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
