"""Tables for terminals."""

from rich.table import Table


def plain_table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    """Return an empty table without lines; the columns named in ``right`` are flush right."""
    table = Table(header_style="bold", pad_edge=False, box=None)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left")
    return table
