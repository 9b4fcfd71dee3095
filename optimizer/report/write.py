"""Writes a report as one self-contained HTML file, as Markdown, and its figures as PNG files.

The HTML needs no script and fetches nothing: figures are SVG whose colours follow the page, so it
reads well in wikis that strip scripts, in the dark and on a phone.
"""

import io
import os
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg

from configs.errors import ArchiveError, ConfigError, Problem
from optimizer.report.document import Document, Drawing
from optimizer.report.markdown import escape_markdown, fence
from optimizer.report.plot import CHOSEN_COLOR, FRONT_COLOR, plot_style
from optimizer.templates import environment

_DPI = 130
# Of matplotlib's SVG: what the page decides, since it may be dark.
_COLORS = {
    "#000000": "var(--ink)",
    "#ffffff": "var(--paper)",
    "#e6e6e6": "var(--grid)",
    "#555555": "var(--soft)",
    FRONT_COLOR: "var(--front)",
    CHOSEN_COLOR: "var(--chosen)",
}


def check_targets(html: Path | None, markdown: Path | None, png: Path | None) -> None:
    """Refuse what cannot be written, before a report is made.

    Raises:
        ConfigError: A name has the wrong ending, or stands for something else.
    """
    problems = []
    for flag, path, suffixes in (
        ("--out", html, (".html", ".htm")),
        ("--md", markdown, (".md", ".markdown")),
    ):
        if path is None:
            continue
        if path.suffix.lower() not in suffixes:
            problems.append(Problem(flag, f"`{path}` must end in {suffixes[0]}"))
        elif path.is_dir():
            problems.append(Problem(flag, f"`{path}` is a directory; name a file in it"))
    if png is not None and png.exists() and not png.is_dir():
        problems.append(Problem("--png", f"`{png}` is no directory; name one for the figures"))
    if problems:
        raise ConfigError("the report cannot be written", problems)


def write_report(
    document: Document,
    *,
    html: Path | None = None,
    markdown: Path | None = None,
    png: Path | None = None,
) -> list[Path]:
    """Write a report in the formats for which a place is given; returns the files.

    Args:
        document: The report.
        html: File for the page.
        markdown: File for a wiki; it shows the figures where ``png`` is given too.
        png: Directory for the figures, made where it is missing.

    Raises:
        ArchiveError: A file cannot be written.
    """
    written: list[Path] = []
    pictures: dict[str, str] = {}
    if png is not None:
        for drawing in document.drawings:
            path = png / f"{drawing.name}.png"
            _write(path, _png_of(drawing))
            written.append(path)
            if markdown is not None:
                pictures[drawing.name] = _relative(path, markdown.parent)
    if html is not None:
        _write(html, html_of(document).encode())
        written.append(html)
    if markdown is not None:
        _write(markdown, markdown_of(document, pictures).encode())
        written.append(markdown)
    return written


def html_of(document: Document) -> str:
    """Return the page; whatever a text holds is shown as text."""
    templates = environment("optimizer.report")
    templates.globals["svg"] = svg_of
    return templates.get_template("report.html.j2").render(document=document)


def markdown_of(document: Document, pictures: dict[str, str]) -> str:
    """Return the report in Markdown.

    Args:
        document: The report.
        pictures: Name of a figure -> address of its file; others are left out.
    """
    templates = environment("optimizer.report")
    templates.filters |= {"md": escape_markdown, "fence": fence}
    text = templates.get_template("report.md.j2").render(document=document, pictures=pictures)
    return re.sub(r"\n{3,}", "\n\n", text)


def svg_of(drawing: Drawing) -> str:
    """Draw a figure as an SVG element whose colours are the page's variables."""
    out = io.StringIO()
    with plot_style():
        drawing.draw().savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Figures share a page: their ids must differ.
    text = re.sub(r'\bid="', f'id="{drawing.name}-', text)
    text = text.replace("url(#", f"url(#{drawing.name}-")
    text = text.replace('href="#', f'href="#{drawing.name}-')
    for color, variable in _COLORS.items():
        text = text.replace(color, variable)
    return text.replace("<svg ", '<svg aria-hidden="true" ', 1)


def _png_of(drawing: Drawing) -> bytes:
    out = io.BytesIO()
    with plot_style():
        figure = drawing.draw()
        FigureCanvasAgg(figure)
        figure.savefig(out, format="png", dpi=_DPI)
    return out.getvalue()


def _relative(path: Path, start: Path) -> str:
    """Return the address of a file as seen from a directory, for a link in Markdown."""
    address = Path(os.path.relpath(path, start)).as_posix()
    return f"<{address}>" if " " in address else address


def _write(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise ArchiveError(
            f"the report cannot be written to {path}: {error.strerror}; choose another place",
            path=str(path),
        ) from error
