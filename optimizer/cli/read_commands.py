"""The commands that read an archive: status, front and plot; ``report_commands`` has report.

They take no lock and may run beside the search that writes.
"""

import json
import sys
from pathlib import Path

from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.evaluation import SPLITS, SplitName
from optimizer.archive.archive import Archive
from optimizer.results.front_choice import FrontWish, wished_front
from optimizer.results.front_view import front_table, row_record, rows_csv

# Where output is not a terminal, a table that is cut is of no use.
_PIPE_WIDTH = 160


def stdout_console() -> Console:
    """Return where results are printed."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def print_json(content: object) -> None:
    """Print a result as JSON."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def status(place: str, *, as_json: bool) -> None:
    """Print how far a search is."""
    from optimizer.status import status_record

    with Archive.open(place) as archive:
        record = status_record(archive)
    if as_json:
        print_json(record)
        return
    console = stdout_console()
    headline = f"{record['name']}: {record['state']}; {record['advice']}"
    console.print(headline, style="bold", markup=False, soft_wrap=True)
    rows = ("archive", "created_at", "evaluations", "stopped", "validated", "failures", "elapsed")
    for key in rows:
        value = record[key]
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(f"  {key.replace('_', ' '):<12} {text or 'none'}", markup=False)
    if (verdict := record["verdict"]) is not None:
        console.print(verdict["sentence"], markup=False, soft_wrap=True)


def front(place: str, *, split: str, wish: FrontWish, as_json: bool, as_csv: bool) -> None:
    """Print the front on a split, what is wanted most first."""
    with Archive.open(place) as archive:
        name = _split(split)
        rows, rule = wished_front(archive, name, wish)
        objectives = list(archive.job.objectives)
        header = {
            "archive": str(archive.place),
            "split": name,
            "objectives": objectives,
            "preference": archive.job.preference,
            "rule": rule,
        }
    if as_json:
        print_json({**header, "front": [row_record(row) for row in rows]})
    elif as_csv:
        sys.stdout.write(rows_csv(rows, objectives))
    elif not rows:
        sys.stderr.write(f"no merge was scored on the {name} split yet\n")
    else:
        stdout_console().print(front_table(rows, objectives))
        if rule:
            sys.stderr.write(f"recipe {rows[0].short_id} is first: {rule}\n")


def _split(text: str) -> SplitName:
    found = next((name for name in SPLITS if name == text), None)
    if found is None:
        message = f"`{text}` is no split; there are {', '.join(SPLITS)}"
        raise ConfigError("the command line cannot be read", [Problem("--split", message)])
    return found


def plot(place: str, *, out: Path | None) -> None:
    """Draw the pictures and print where they are."""
    from optimizer.report.plot import Picture, write_png
    from optimizer.report.plot_html import write_html

    with Archive.open(place) as archive:
        picture = Picture.of(archive)
        target = out or archive.place.output("front")
    suffix = target.suffix.lower()
    written = []
    if suffix != ".html":
        written.append(target if suffix == ".png" else target.with_name(f"{target.name}.png"))
        write_png(picture, written[-1])
    if suffix != ".png":
        written.append(target if suffix == ".html" else target.with_name(f"{target.name}.html"))
        write_html(picture, written[-1])
    sys.stdout.write("".join(f"{file}\n" for file in written))
