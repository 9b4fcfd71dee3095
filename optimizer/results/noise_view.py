"""What ``mergefront noise`` prints: tables for people, a record for programs."""

from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.text import Text

from configs.evaluation import SPLITS
from optimizer.results.noise import ALPHA, MEAN, POWER, NoiseReport, SplitNoise, TaskNoise
from optimizer.results.tables import SUMMARY, plain_table


def render_noise(report: NoiseReport) -> RenderableType:
    """Lay the report out for a terminal."""
    parts: list[RenderableType] = [
        Text(f"Noise of the items, from {len(report.labels)} baselines", style="bold"),
        Text(f"  {', '.join(report.labels)}"),
        _heading("Tasks: how much one item's score varies"),
        _tasks_table(report),
    ]
    for split in SPLITS:
        parts += [
            _heading(f"{split}: {report.sizes[split]} items per task"),
            _split_table(report, [row for row in report.rows if row.split == split]),
        ]
    parts.append(Text(f"\n{_explanation(report)}"))
    parts += [Text(f"- {note}", style="yellow") for note in notes(report)]
    return Group(*parts)


def notes(report: NoiseReport) -> list[str]:
    """Say what the numbers cannot say."""
    found = []
    for task in report.tasks.values():
        if task.num_items == 0:
            found.append(f"`{task.task}` was not scored by any baseline")
        elif task.paired_variance == 0.0:
            found.append(
                f"no item of `{task.task}` told two baselines apart: its numbers are no noise of "
                "zero but no estimate; score more items or choose another metric"
            )
        elif not task.is_paired:
            found.append(
                f"`{task.task}` was scored by one baseline only, so nothing is known of pairs: "
                "its differences are taken as unpaired"
            )
    return found


def noise_record(report: NoiseReport) -> dict[str, object]:
    """Return the report as JSON."""
    return {
        "difference": report.difference,
        "alpha": ALPHA,
        "power": POWER,
        "baselines": list(report.labels),
        "items_per_task": dict(report.sizes),
        "tasks": {
            name: {**_without_name(task), "correlation": task.correlation}
            for name, task in report.tasks.items()
        },
        "splits": {
            split: {
                row.name: {
                    "items": row.items,
                    "stderr": row.stderr,
                    "paired_stderr": row.paired_stderr,
                    "two_stderr": row.visible,
                    "detectable": row.detectable,
                    "items_per_task_needed": row.needed,
                }
                for row in report.rows
                if row.split == split
            }
            for split in SPLITS
        },
        "notes": notes(report),
    }


def _without_name(task: TaskNoise) -> dict[str, object]:
    return {key: value for key, value in asdict(task).items() if key != "task"}


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _tasks_table(report: NoiseReport) -> RenderableType:
    numbers = ("items scored", "std. deviation", "of a difference", "correlation")
    table = plain_table("task", *numbers, right=numbers)
    for task in report.tasks.values():
        correlation = task.correlation
        table.add_row(
            task.task,
            str(task.num_items),
            f"{task.variance**0.5:.3f}",
            f"{task.paired_variance**0.5:.3f}",
            "" if correlation is None else f"{correlation:+.2f}",
        )
    return table


def _split_table(report: NoiseReport, rows: list[SplitNoise]) -> RenderableType:
    needed = f"items for {report.difference:g}"
    numbers = ("std. error", "two of a pair", f"found {POWER:.0%}", needed)
    table = plain_table("objective", *numbers, "", right=numbers)
    for row in rows:
        table.add_row(
            row.name,
            f"{row.stderr:.3f}",
            f"{row.visible:.3f}",
            f"{row.detectable:.3f}",
            "?" if row.needed is None else str(row.needed),
            _verdict(report, row),
            style=SUMMARY if row.name == MEAN else None,
        )
    return table


def _verdict(report: NoiseReport, row: SplitNoise) -> str:
    if row.needed is None:
        return ""
    return "enough" if report.sizes[row.split] >= row.needed else "too few"


def _explanation(report: NoiseReport) -> str:
    return (
        "std. error: of one score. two of a pair: two standard errors of the difference of two "
        "candidates on the same items, the smallest difference that the verdict calls a win. "
        f"found {POWER:.0%}: the smallest difference that a test at alpha = {ALPHA} finds with "
        f"probability {POWER:.0%}. items for {report.difference:g}: items per task with which two "
        f"standard errors are {report.difference:g}. Merges that are more alike than the baselines "
        "differ on fewer items and need fewer of them."
    )
