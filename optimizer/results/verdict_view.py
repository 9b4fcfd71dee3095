"""The verdict for a person and as JSON: every number that the claim rests on."""

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from evaluators.paired import PairedDifference
from optimizer.results.tables import SUMMARY, plain_table
from optimizer.results.verdict import Comparison, Verdict, format_p_value
from optimizer.results.winners_curse import WinnersCurse
from optimizer.rival import RivalResult

CONFIDENCE = 0.95
"""Of every interval that is printed."""


def render_verdict(found: Verdict) -> list[RenderableType]:
    """Lay the verdict out for a terminal: the sentence, the strongest baseline, the curse."""
    parts: list[RenderableType] = [Text(f"\n{found.sentence}", style="bold")]
    if found.strongest is not None:
        gap = found.comparisons[found.strongest]
        parts += [
            Text(f"\nChosen merge - {found.strongest}, the strongest of the baselines"),
            comparison_table(gap),
            Text(best_text(found), style="dim"),
        ]
    if found.curse is not None:
        parts.append(Text(f"\n{found.curse.sentence}"))
    return parts


def render_rival(found: RivalResult) -> list[RenderableType]:
    """Lay the comparison with random search out for a terminal."""
    parts: list[RenderableType] = [Text(f"\n{found.sentence}", style="bold")]
    if found.gap is not None:
        parts.append(comparison_table(found.gap))
    if found.evaluations < found.budget:
        parts.append(
            Text("It had less to spend than the search: `mergefront rival` goes on with it.")
        )
    return parts


def rival_record(found: RivalResult) -> dict[str, object]:
    """Return the comparison with random search as JSON."""
    return {
        "archive": str(found.archive),
        "evaluations": found.evaluations,
        "budget": found.budget,
        "chosen": found.chosen,
        "recipe_id": found.recipe_id,
        "won": found.won,
        "sentence": found.sentence,
        "difference": None if found.gap is None else comparison_record(found.gap),
    }


def comparison_table(gap: Comparison) -> Table:
    """Lay out one comparison: objectives, then the mean, with intervals and p-values."""
    table = plain_table()
    table.add_column("objective")
    for title in ("difference", f"{CONFIDENCE:.0%} interval", "p"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, difference in gap.objectives.items():
        table.add_row(name, *_cells(difference, gap.objective_p_values.get(name)))
    table.add_row("mean", *_cells(gap.mean, gap.p_value), style=SUMMARY)
    return table


def format_difference(difference: PairedDifference | None) -> str:
    """Write a paired difference with its standard error; empty without one."""
    return "" if difference is None else f"{difference.mean:+.3f} ± {difference.stderr:.3f}"


def format_interval(interval: tuple[float, float]) -> str:
    """Write an interval: ``[+0.012, +0.045]``."""
    return f"[{interval[0]:+.3f}, {interval[1]:+.3f}]"


def difference_record(gap: PairedDifference) -> dict[str, object]:
    """Return a paired difference as JSON."""
    return {
        "mean": gap.mean,
        "stderr": gap.stderr,
        "sigmas": _finite(gap.sigmas),
        "interval_95": list(gap.interval(CONFIDENCE)),
    }


def comparison_record(gap: Comparison) -> dict[str, object]:
    """Return a comparison as JSON: the preferred mean on top, then each objective."""
    return {
        **difference_record(gap.mean),
        "p_value": gap.p_value,
        "objectives": {
            name: {
                **difference_record(difference),
                **(
                    {"p_value": gap.objective_p_values[name]}
                    if name in gap.objective_p_values
                    else {}
                ),
            }
            for name, difference in gap.objectives.items()
        },
    }


def verdict_record(found: Verdict) -> dict[str, object]:
    """Return the verdict as JSON."""
    interval = found.interval(CONFIDENCE)
    return {
        "won": found.won,
        "strongest": found.strongest,
        "sentence": found.sentence,
        "p_value": found.p_value,
        "interval_95": None if interval is None else list(interval),
        "beaten_by": found.beaten_by,
        "chosen_baseline": found.chosen_baseline,
        "means": found.means,
        "differences": {
            label: {**comparison_record(gap), "adjusted_p_value": found.adjusted[label]}
            for label, gap in found.comparisons.items()
        },
        "winners_curse": None if found.curse is None else _curse_record(found.curse),
    }


def best_text(found: Verdict) -> str:
    """Say what may be claimed of the best baseline, whichever of them that is."""
    interval = found.interval(CONFIDENCE)
    if interval is None:
        return "There are no baselines to compare with."
    return (
        f"p: two-sided, by flipping signs of paired items. Against whichever of the "
        f"{found.num_rivals} baselines is truly best, the mean differs by "
        f"{format_interval(interval)} (corrected for looking for the strongest); that the chosen "
        f"merge beats all of them: {format_p_value(found.p_value)}."
    )


def _cells(difference: PairedDifference, p_value: float | None) -> list[str]:
    return [
        format_difference(difference),
        format_interval(difference.interval(CONFIDENCE)),
        "" if p_value is None else format_p_value(p_value).removeprefix("p ").removeprefix("= "),
    ]


def _curse_record(curse: WinnersCurse) -> dict[str, float]:
    return {
        "search": curse.search,
        "report": curse.report,
        "baselines_search": curse.baselines_search,
        "baselines_report": curse.baselines_report,
        "flattery": curse.flattery,
        "stderr": curse.stderr,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity; a difference without error has no number of sigmas."""
    return value if abs(value) != float("inf") else None
