"""The commands that read an archive: status, front, plot and report.

They take no lock and may run beside the search that writes.
"""

import fcntl
import json
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import get_args

import psutil
from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.evaluation import SPLITS, SplitName
from optimizer.archive import Archive
from optimizer.front_view import front_of, front_table, row_record, rows_csv, scored_candidates
from optimizer.live import format_duration

# Where output is not a terminal, a table that is cut is of no use.
_PIPE_WIDTH = 160


def stdout_console() -> Console:
    """Return where results are printed."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH, highlight=False)


def print_json(content: object) -> None:
    """Print a result as JSON."""
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def status(path: Path, *, as_json: bool) -> None:
    """Print how far a search is."""
    with Archive.open(path) as archive:
        record = _status_record(archive)
    if as_json:
        print_json(record)
        return
    console = stdout_console()
    headline = f"{record['name']}: {record['state']}; {record['advice']}"
    console.print(headline, style="bold", markup=False, soft_wrap=True)
    for key in ("archive", "created_at", "evaluations", "validated", "failures", "elapsed"):
        value = record[key]
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        console.print(f"  {key.replace('_', ' '):<12} {text or 'none'}", markup=False)


def _status_record(archive: Archive) -> dict[str, object]:
    outcomes = archive.outcomes("search")
    finished = {split: len(archive.outcomes(split)) for split in SPLITS}
    num_told = len(archive.observations())
    choice = archive.choice()
    writer = writer_of(archive.path)
    if writer is not None:
        state, advice = "running", f"process {writer}"
    elif choice is not None and choice in archive.scores("report"):
        state, advice = "finished", f"see it with `mergefront report {archive.path}`"
    else:
        state, advice = "interrupted", f"continue with `mergefront resume {archive.path}`"
    budget = archive.job.budget.evaluations
    return {
        "name": archive.job.name,
        "state": state,
        "advice": advice,
        "archive": str(archive.path),
        "job": None if archive.job_path is None else str(archive.job_path),
        "created_at": archive.created_at,
        "evaluations": {
            "recorded": num_told,
            "in flight or lost": len(archive.candidates()) - num_told,
            "budget": budget,
        },
        "validated": {"select": finished["select"], "report": finished["report"]},
        "failures": dict(Counter(f"{o.stage}: {o.error_class}" for o in outcomes if not o.scores)),
        "elapsed": format_duration(archive.elapsed_s),
        "elapsed_s": archive.elapsed_s,
        "choice": choice,
        "writer": writer,
    }


def writer_of(path: Path) -> int | None:
    """Return the process on this machine that writes an archive; None when none does.

    The lock is tried, which could keep a driver out that starts in that instant, only when the
    process that it was last given to is alive.
    """
    lock = path.with_name(path.name + ".lock")
    try:
        owner = json.loads(lock.read_text(encoding="utf-8"))
        pid, taken_at = int(owner["pid"]), datetime.fromisoformat(owner["started_at"]).timestamp()
        # A process that began after the lock was taken only has the same number.
        is_alive = psutil.Process(pid).create_time() <= taken_at
        return pid if is_alive and _is_locked(lock) else None
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


def _is_locked(lock: Path) -> bool:
    with lock.open(encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def front(path: Path, *, split: str, as_json: bool, as_csv: bool) -> None:
    """Print the front on a split."""
    with Archive.open(path) as archive:
        name = _split(split)
        rows = front_of(scored_candidates(archive, name))
        objectives = list(archive.job.objectives)
        header = {
            "archive": str(archive.path),
            "split": name,
            "objectives": objectives,
            "preference": archive.job.preference,
        }
    if as_json:
        print_json({**header, "front": [row_record(row) for row in rows]})
    elif as_csv:
        sys.stdout.write(rows_csv(rows, objectives))
    elif not rows:
        sys.stderr.write(f"no merge was scored on the {name} split yet\n")
    else:
        stdout_console().print(front_table(rows, objectives))


def _split(text: str) -> SplitName:
    if text not in get_args(SplitName):
        message = f"`{text}` is no split; there are {', '.join(SPLITS)}"
        raise ConfigError("the command line cannot be read", [Problem("--split", message)])
    return text  # type: ignore[return-value]  # just looked up among the names


def plot(path: Path, *, out: Path | None) -> None:
    """Draw the pictures and print where they are."""
    from optimizer.plot import Picture, write_png  # noqa: PLC0415 - matplotlib and plotly
    from optimizer.plot_html import write_html  # noqa: PLC0415 - heavy

    target = out or path.with_name(f"{path.stem}-front")
    suffix = target.suffix.lower()
    with Archive.open(path) as archive:
        picture = Picture.of(archive)
    written = []
    if suffix != ".html":
        written.append(target if suffix == ".png" else target.with_name(f"{target.name}.png"))
        write_png(picture, written[-1])
    if suffix != ".png":
        written.append(target if suffix == ".html" else target.with_name(f"{target.name}.html"))
        write_html(picture, written[-1])
    sys.stdout.write("".join(f"{file}\n" for file in written))


def report(path: Path, *, as_json: bool) -> None:
    """Print the report of a search."""
    from optimizer.report import render, report_of, report_record  # noqa: PLC0415 - the verdict

    with Archive.open(path) as archive:
        found = report_of(archive)
    if as_json:
        print_json(report_record(found))
    else:
        stdout_console().print(render(found))
