"""Tables for terminals, and what a row of them stands out by."""

from rich.table import Row, Table

SUMMARY = "bold"
"""The style of a row that sums the others up."""

CHOSEN = "bold green"
"""The style of the row of what was chosen."""


def stands_out(row: Row) -> bool:
    """Whether a row has a style of its own, as above."""
    return row.style in {SUMMARY, CHOSEN}


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines; the columns named in ``right`` are flush right."""
    table = Table(header_style="bold", pad_edge=False, box=None)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table
