"""The commands that read an archive: status, front and plot; ``optimizer.cli_report`` has report.

They take no lock and may run beside the search that writes.
"""

import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from rich.console import Console

from configs.errors import ConfigError, Problem
from configs.evaluation import SPLITS, SplitName
from optimizer.archive import Archive
from optimizer.archive_store import backend_of
from optimizer.front_view import (
    ScoredCandidate,
    front_of,
    front_table,
    row_record,
    rows_csv,
    scored_candidates,
)
from optimizer.live import format_duration
from optimizer.stopped import num_evaluated, recorded_group_size

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
    with Archive.open(place) as archive:
        record = _status_record(archive)
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


def _status_record(archive: Archive) -> dict[str, Any]:
    outcomes = archive.outcomes("search")
    finished = {split: len(archive.outcomes(split)) for split in SPLITS}
    observations = archive.observations()
    choice = archive.choice()
    writer = backend_of(archive.place).owner()
    if writer is not None:
        where = "" if writer.is_here else f" on {writer.host}"
        state, advice = "running", f"process {writer.pid}{where}"
    elif choice is not None and choice in archive.scores("report"):
        state, advice = "finished", f"see it with `mergefront report {archive.place}`"
    else:
        state, advice = "interrupted", f"continue with `mergefront resume {archive.place}`"
    budget = archive.job.budget.evaluations
    return {
        "name": archive.job.name,
        "state": state,
        "advice": advice,
        "archive": str(archive.place),
        "job": None if archive.job_path is None else str(archive.job_path),
        "created_at": archive.created_at,
        "evaluations": {
            "recorded": num_evaluated(observations, recorded_group_size(archive)),
            "in flight or lost": sum(not c.is_attribution for c in archive.candidates())
            - len(observations),
            "budget": budget,
        },
        "stopped": dict(Counter(found.stop.reason for found in archive.stops().values())),
        "validated": {"select": finished["select"], "report": finished["report"]},
        "failures": dict(Counter(f"{o.stage}: {o.error_class}" for o in outcomes if not o.scores)),
        "elapsed": format_duration(archive.elapsed_s),
        "elapsed_s": archive.elapsed_s,
        "choice": choice,
        "writer": None if writer is None else writer.pid,
        "writer_host": None if writer is None else writer.host,
        "verdict": _verdict(archive),
    }


def _verdict(archive: Archive) -> dict[str, object] | None:
    """Return the verdict as JSON; None before the chosen merge was scored on report items."""
    from optimizer.recorded_space import recorded_space  # noqa: PLC0415 - the verdict
    from optimizer.verdict import verdict  # noqa: PLC0415 - the verdict
    from optimizer.verdict_view import verdict_record  # noqa: PLC0415 - the verdict

    choice = archive.choice()
    if choice is None or choice not in archive.scores("report"):
        return None
    found = verdict(archive, recorded_space(archive))
    return None if found is None else verdict_record(found)


@dataclass(frozen=True, slots=True)
class FrontWish:
    """What ``front`` was asked for: texts of ``--prefer`` and ``--at-least``, and flags."""

    prefer: str | None = None
    at_least: str | None = None
    knee: bool = False
    raw: bool = False


def front(place: str, *, split: str, wish: FrontWish, as_json: bool, as_csv: bool) -> None:
    """Print the front on a split, what is wanted most first."""
    with Archive.open(place) as archive:
        name = _split(split)
        rows, rule = _front_rows(archive, name, wish)
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


def _front_rows(
    archive: Archive, split: SplitName, wish: FrontWish
) -> tuple[list[ScoredCandidate], str | None]:
    """Return the front, and the rule by which its first row is the first where one was given."""
    from optimizer.belief import believed_candidates  # noqa: PLC0415 - the surrogate
    from optimizer.cli_export import numbers  # noqa: PLC0415 - imports this module
    from optimizer.select import choose, ranked  # noqa: PLC0415 - the surrogate

    prefer, floors = numbers("--prefer", wish.prefer), numbers("--at-least", wish.at_least)
    wished = bool(prefer or floors or wish.knee)
    if wished and (wish.raw or split != "search"):
        flag = "--raw" if wish.raw else "--split"
        message = "leave it out with --prefer, --at-least and --knee: they go by the posterior"
        raise ConfigError("the command line cannot be read", [Problem(flag, message)])
    if not wished:
        is_raw = wish.raw or split != "search"
        found = scored_candidates(archive, split) if is_raw else believed_candidates(archive)
        return front_of(found), None
    choice = choose(archive, prefer=prefer, floors=floors, knee=wish.knee)
    rows = front_of(ranked(archive, prefer=prefer, floors=floors, knee=wish.knee))
    first = [row for row in rows if row.candidate.index == choice.candidate.index]
    others = [row for row in rows if row.candidate.index != choice.candidate.index]
    return [*first, *others], choice.rule


def _split(text: str) -> SplitName:
    if text not in get_args(SplitName):
        message = f"`{text}` is no split; there are {', '.join(SPLITS)}"
        raise ConfigError("the command line cannot be read", [Problem("--split", message)])
    return text  # type: ignore[return-value]  # just looked up among the names


def plot(place: str, *, out: Path | None) -> None:
    """Draw the pictures and print where they are."""
    from optimizer.plot import Picture, write_png  # noqa: PLC0415 - matplotlib and plotly
    from optimizer.plot_html import write_html  # noqa: PLC0415 - heavy

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
