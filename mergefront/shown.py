"""How tables look in a notebook: as HTML in which names of people stay text."""

from html import escape

from rich.console import Console, RenderableType
from rich.table import Table as RichTable

from optimizer.report.document import Table

_WIDTH = 160


def table_html(table: RichTable, caption: str = "") -> str:
    """Return a table that was laid out for a terminal as HTML."""
    laid_out = Table.of(table, caption)
    head = "".join(f"<th>{escape(column)}</th>" for column in laid_out.columns)
    body = "".join(_row(laid_out, place, row) for place, row in enumerate(laid_out.rows))
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def table_text(renderable: RenderableType) -> str:
    """Return it as plain text."""
    console = Console(width=_WIDTH, color_system=None)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get().rstrip("\n")


def _row(table: Table, place: int, row: tuple[str, ...]) -> str:
    style = ' style="font-weight: bold"' if place in table.marked else ""
    cells = "".join(
        f'<td style="text-align: {"right" if column in table.numeric else "left"}">'
        f"{escape(cell)}</td>"
        for column, cell in enumerate(row)
    )
    return f"<tr{style}>{cells}</tr>"
