"""What a person wants to know after a search: what was chosen, and whether it won.

Start at :func:`report_of`, which gathers; :func:`render` prints, :func:`report_record` is JSON.
"""

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from configs.evaluation import SPLITS, SplitName
from configs.recipe import MergeRecipe
from evaluators.scores import ObjectiveScore, Scores
from optimizer.archive.recorded_space import recorded_space
from optimizer.archive.seeds import WarmStart
from optimizer.baselines import baseline_labels
from optimizer.live import format_duration
from optimizer.results.attribution import Attribution, attribution
from optimizer.results.attribution_view import attribution_record, render_attribution
from optimizer.results.belief import believed_candidates
from optimizer.results.findings import findings_after
from optimizer.results.front_view import (
    ScoredCandidate,
    format_score,
    front_of,
    front_table,
    row_record,
    scores_record,
)
from optimizer.results.progress_view import (
    Progress,
    progress_record,
    progress_report,
    render_progress,
)
from optimizer.results.tables import CHOSEN, SUMMARY, plain_table
from optimizer.results.verdict import Verdict, verdict
from optimizer.results.verdict_view import (
    format_difference,
    render_rival,
    render_verdict,
    rival_record,
    verdict_record,
)
from optimizer.rival import RivalResult, rival_of
from optimizer.scalarize import preferred_mean
from optimizer.stopped import (
    Savings,
    describe_savings,
    num_evaluated,
    savings_of,
    savings_record,
)
from optimizer.warm_start import describe

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

NO_VERDICT = "No verdict yet: the chosen merge was not scored on the report items."


@dataclass(frozen=True, slots=True)
class Report:
    """A search in numbers, all of them from its archive.

    ``num_outcomes`` counts evaluations: candidates that were screened together are one.
    ``rows`` are all scored merges with their posterior, ``front`` and ``choice`` some of them.
    ``chosen`` maps each split on which the chosen merge was scored to its scores;
    ``baselines`` holds the scores of the other baselines on the report split by label, best
    mean first; two labels may stand for one merge.
    """

    name: str
    objectives: tuple[str, ...]
    preference: dict[str, float]
    num_outcomes: int
    failures: dict[str, int]
    elapsed_s: float
    rows: list[ScoredCandidate]
    front: list[ScoredCandidate]
    choice: ScoredCandidate | None
    chosen: dict[SplitName, Scores]
    baselines: dict[str, Scores]
    verdict: Verdict | None
    rival: RivalResult | None
    progress: Progress | None
    findings: list[str]
    warm_start: WarmStart | None
    attribution: Attribution | None
    savings: Savings


def report_of(archive: "Archive") -> Report:
    """Gather the report of a search, finished or not."""
    rows = believed_candidates(archive)
    outcomes = archive.outcomes("search")
    choice = archive.choice()
    per_split = {split: archive.scores(split) for split in SPLITS}
    chosen = {
        split: scores[choice]
        for split, scores in per_split.items()
        if choice is not None and choice in scores
    }
    space = recorded_space(archive) if outcomes else None
    result = verdict(archive, space) if space and chosen.get("report") else None
    return Report(
        name=archive.job.name,
        objectives=tuple(archive.job.objectives),
        preference=archive.job.preference,
        num_outcomes=num_evaluated(archive),
        failures=dict(Counter(f"{o.stage}: {o.error_class}" for o in outcomes if o.scores is None)),
        elapsed_s=archive.elapsed_s,
        rows=rows,
        front=front_of(rows),
        choice=next((row for row in rows if row.is_chosen), None),
        chosen=chosen,
        baselines=_baselines(baseline_labels(archive, space), choice, per_split["report"], result)
        if space
        else {},
        verdict=result,
        rival=rival_of(archive),
        progress=progress_report(archive, space, rows) if space else None,
        warm_start=archive.warm_start(),
        findings=findings_after(archive, space) if space else [],
        attribution=attribution(archive),
        savings=savings_of(archive),
    )


def _baselines(
    labels: dict[str, int], choice: int | None, scores: dict[int, Scores], result: Verdict | None
) -> dict[str, Scores]:
    """Return the baselines' report scores in the order of the verdict, the choice left out."""
    scored = {
        label: scores[index]
        for label, index in labels.items()
        if index in scores and index != choice
    }
    order = list(result.comparisons) if result else []
    return {label: scored[label] for label in [*order, *scored] if label in scored}


def render(report: Report) -> RenderableType:
    """Lay the report out for a terminal."""
    parts: list[RenderableType] = [
        _headline(report),
        _heading(front_title(report)),
        front_table(report.front, report.objectives),
    ]
    if report.progress is not None:
        parts += render_progress(report.progress)
    if lines := describe_savings(report.savings):
        parts.append(_heading("Candidates that were not scored in full"))
        parts += [Text(f"- {line}") for line in lines]
    if report.warm_start is not None:
        parts += [_heading("Warm start"), *(Text(line) for line in describe(report.warm_start))]
    if report.findings:
        parts.append(_heading("What limits this search"))
        parts += [Text(f"- {finding}.") for finding in report.findings]
    if report.choice is None:
        parts += [Text("\nNo merge was chosen yet: the search has not been validated.")]
        return Group(*parts)
    parts += [
        _heading(describe_choice(report.choice)),
        recipe_table(report.choice.candidate.recipe),
    ]
    parts += [
        _heading("Chosen merge on each split (search flatters, report was never used to choose)"),
        splits_table(report),
    ]
    if report.baselines:
        parts += [_heading("Baselines on the report items"), baselines_table(report)]
    if report.verdict is None:
        parts.append(_heading(NO_VERDICT))
    else:
        parts += render_verdict(report.verdict)
    if report.rival is not None:
        parts += render_rival(report.rival)
    if report.attribution is not None:
        parts += render_attribution(report.attribution)
    return Group(*parts)


def front_title(report: Report) -> str:
    """Say what the front is of: of posterior means, or of raw scores."""
    if any(row.posterior is not None for row in report.front):
        return "Front by posterior mean, with raw search scores beside it (* chosen)"
    return "Front on the search items (* chosen)"


def _headline(report: Report) -> Text:
    failed = sum(report.failures.values())
    text = Text.assemble(
        (report.name, "bold"),
        f": {report.num_outcomes} evaluations in {format_duration(report.elapsed_s)}",
    )
    if failed:
        kinds = ", ".join(f"{count} x {kind}" for kind, count in report.failures.items())
        text.append(f", {failed} failed ({kinds})", style="red")
    return text


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _table() -> Table:
    return plain_table()


def describe_choice(row: ScoredCandidate) -> str:
    """Say in a line which merge was chosen."""
    recipe = row.candidate.recipe
    effective = f"{recipe.effective_checkpoints:.1f} of {len(recipe.checkpoints)}"
    return (
        f"Chosen merge {row.short_id} ({row.candidate.origin}): {recipe.method}, "
        f"{effective} checkpoints effective"
        + (", times a coefficient per input column" if recipe.coefficients else "")
    )


def recipe_table(recipe: MergeRecipe) -> Table:
    """Lay a recipe out: one row per checkpoint and group."""
    table = _table()
    table.add_column("checkpoint")
    table.add_column("group")
    table.add_column("weight", justify="right")
    table.add_column("drop ratio", justify="right")
    for checkpoint, group, weight, drop in genes_of(recipe):
        table.add_row(checkpoint, group, f"{weight:.4f}", f"{drop:.4f}")
    return table


def genes_of(recipe: MergeRecipe) -> list[tuple[str, str, float, float]]:
    """List (checkpoint, group, weight, drop ratio), checkpoint by checkpoint."""
    return [
        (source.name, group.name, weight, drop)
        for source, weights, drops in zip(
            recipe.checkpoints, recipe.weights, recipe.drop_ratios, strict=True
        )
        for group, weight, drop in zip(recipe.groups, weights, drops, strict=True)
    ]


def splits_table(report: Report) -> Table:
    """Lay out the chosen merge's scores on each split."""
    table = _table()
    table.add_column("objective")
    for split, scores in report.chosen.items():
        table.add_column(f"{split}\n{_items_text(scores)}", justify="right", no_wrap=True)
    for name in report.objectives:
        table.add_row(name, *(format_score(scores[name]) for scores in report.chosen.values()))
    means = [preferred_mean(scores, report.preference) for scores in report.chosen.values()]
    table.add_row("mean", *(f"{mean:.3f}" for mean in means), style=SUMMARY)
    return table


def _items_text(scores: Scores) -> str:
    counts = sorted({score.count for score in scores.values()})
    span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}-{counts[-1]}"
    return f"{span} items each"


def baselines_table(report: Report) -> Table:
    """Lay out what the chosen merge is compared with, on the report items."""
    table = _table()
    table.add_column("baseline")
    for name in report.objectives:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    table.add_column("chosen - baseline", justify="right", no_wrap=True)
    comparisons = report.verdict.comparisons if report.verdict else {}
    own_label = report.verdict.chosen_baseline if report.verdict else None
    if "report" in report.chosen:
        scores = report.chosen["report"]
        name = "chosen merge" + (f" = {own_label}" if own_label else "")
        table.add_row(name, *_cells(report, scores), "", style=CHOSEN)
    for label, scores in report.baselines.items():
        gap = comparisons.get(label)
        table.add_row(
            label, *_cells(report, scores), format_difference(None if gap is None else gap.mean)
        )
    return table


def _cells(report: Report, scores: Scores) -> list[str]:
    values = [_short(scores[name]) for name in report.objectives]
    return [*values, f"{preferred_mean(scores, report.preference):.3f}"]


def _short(score: ObjectiveScore) -> str:
    return format_score(score, with_error=False)


def report_record(report: Report) -> dict[str, object]:
    """Return the report as JSON."""
    found = report.verdict
    return {
        "name": report.name,
        "objectives": list(report.objectives),
        "preference": report.preference,
        "evaluations": report.num_outcomes,
        "failures": report.failures,
        "elapsed_s": report.elapsed_s,
        "front": [row_record(row) for row in report.front],
        "choice": None if report.choice is None else row_record(report.choice),
        "chosen": {split: scores_record(scores) for split, scores in report.chosen.items()},
        "baselines": {label: scores_record(scores) for label, scores in report.baselines.items()},
        "verdict": None if found is None else verdict_record(found),
        "progress": None if report.progress is None else progress_record(report.progress),
        "warm_start": None
        if report.warm_start is None
        else {
            "archive": report.warm_start.archive,
            "used": len(report.warm_start.seeds),
            "exact": sum(seed.is_exact for seed in report.warm_start.seeds),
            "left_out": dict(report.warm_start.left_out),
        },
        "stopped": savings_record(report.savings),
        "findings": report.findings,
        "rival": None if report.rival is None else rival_record(report.rival),
        "attribution": None
        if report.attribution is None
        else attribution_record(report.attribution),
    }
