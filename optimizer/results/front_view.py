"""The front as rows for a person or a program: what every table, plot and JSON is made of.

Start at :func:`scored_candidates`; :func:`front_of` keeps the rows that nothing dominates.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from configs.evaluation import SplitName
from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, ObjectiveScore, Scores
from optimizer.candidate import Candidate
from optimizer.pareto import non_dominated
from optimizer.results.tables import CHOSEN, plain_table
from optimizer.scalarize import preferred_mean

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

SHORT_ID = 10
"""Digits of a recipe id that tables show; any unique prefix names a recipe."""


@dataclass(frozen=True, slots=True)
class ScoredCandidate:
    """A candidate with its scores on one split.

    ``mean`` is the mean of the objectives weighted by the job's preference, of what is believed:
    of ``posterior`` where there is one (``optimizer.results.belief``), else of the raw
    ``scores``.
    """

    candidate: Candidate
    scores: Scores
    mean: float
    is_chosen: bool
    posterior: Scores | None = None

    @property
    def believed(self) -> Scores:
        """The posterior where there is one, else the raw scores."""
        return self.scores if self.posterior is None else self.posterior

    @property
    def short_id(self) -> str:
        """The first digits of the recipe's id."""
        return self.candidate.recipe.recipe_id[:SHORT_ID]

    @property
    def label(self) -> str:
        """What a person calls it: the baseline's name, or the recipe's short id."""
        return self.candidate.origin if self.candidate.is_baseline else self.short_id


def scored_candidates(archive: "Archive", split: SplitName) -> list[ScoredCandidate]:
    """Return all candidates that completed on a split, by index, variants for attribution left out.

    Of proposals of one and the same recipe only the first is kept: its scores are theirs.
    """
    preference = archive.job.preference
    # Before the candidates: more may be recorded in between.
    choice, completed = archive.choice(), archive.scores(split)
    candidates, ids = archive.candidates(), archive.recipe_ids()
    chosen_id = None if choice is None else ids[choice]
    rows: dict[str, ScoredCandidate] = {}
    for index, scores in sorted(completed.items()):
        if candidates[index].is_attribution:
            continue
        recipe_id = ids[index]
        if recipe_id not in rows:
            rows[recipe_id] = ScoredCandidate(
                candidate=candidates[index],
                scores=scores,
                mean=preferred_mean(scores, preference),
                is_chosen=recipe_id == chosen_id,
            )
    return list(rows.values())


def points_of(rows: Sequence[ScoredCandidate]) -> FloatArray:
    """Believed objective values of rows, ``(n, m)`` float64, higher is better."""
    return np.array(
        [[score.value for score in row.believed.values()] for row in rows], dtype=np.float64
    )


def front_of(rows: Sequence[ScoredCandidate]) -> list[ScoredCandidate]:
    """Return the rows that no other row dominates, best mean first."""
    if not rows:
        return []
    members = [row for row, keep in zip(rows, non_dominated(points_of(rows)), strict=True) if keep]
    return sorted(members, key=lambda row: (-row.mean, row.candidate.index))


def format_score(score: ObjectiveScore, *, with_error: bool = True) -> str:
    """Write a score with three decimals, and its standard error."""
    return f"{score.value:.3f} ± {score.stderr:.3f}" if with_error else f"{score.value:.3f}"


def format_weights(recipe: MergeRecipe) -> str:
    """Write a recipe on one line: weight per checkpoint, with its drop ratio where it has one.

    Numbers per column are too many: ``x columns`` says that there are some.
    """
    parts = []
    for source, weights, drops in zip(
        recipe.checkpoints, recipe.weights, recipe.drop_ratios, strict=True
    ):
        genes = [
            f"{weight:.2f}" + (f"@{drop:.2f}" if drop else "")
            for weight, drop in zip(weights, drops, strict=True)
        ]
        parts.append(f"{source.name}={'/'.join(genes)}")
    if recipe.coefficients is not None:
        parts.append("x columns")
    return " ".join(parts)


def front_table(
    rows: Sequence[ScoredCandidate],
    objectives: Iterable[str],
    *,
    with_recipe: bool = True,
) -> Table:
    """Build the table of some rows: recipe, origin, objectives, mean, effective checkpoints.

    Where there is a posterior, objectives and mean are those of it; raw search scores follow.
    """
    names = list(objectives)
    has_posterior = any(row.posterior is not None for row in rows)
    table = plain_table()
    table.add_column("recipe", no_wrap=True)
    table.add_column("from")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("mean", justify="right", no_wrap=True)
    if has_posterior:
        table.add_column("raw " + " ".join(names), justify="right", no_wrap=True)
    table.add_column("eff.", justify="right", no_wrap=True)
    if with_recipe:
        table.add_column("weight@drop ratio")
    for row in rows:
        cells = [
            row.short_id + (" *" if row.is_chosen else ""),
            row.candidate.origin.partition(":")[2],
            *(format_score(row.believed[name], with_error=with_recipe) for name in names),
            f"{row.mean:.3f}",
            *([" ".join(f"{row.scores[name].value:.3f}" for name in names)] * has_posterior),
            f"{row.candidate.recipe.effective_checkpoints:.1f}",
        ]
        if with_recipe:
            cells.append(format_weights(row.candidate.recipe))
        table.add_row(*cells, style=CHOSEN if row.is_chosen else None)
    return table


def gene_table(recipe: MergeRecipe) -> dict[str, dict[str, dict[str, float]]]:
    """Checkpoint -> group -> ``weight`` and ``drop_ratio``."""
    return {
        source.name: {
            group.name: {"weight": weight, "drop_ratio": drop}
            for group, weight, drop in zip(recipe.groups, weights, drops, strict=True)
        }
        for source, weights, drops in zip(
            recipe.checkpoints, recipe.weights, recipe.drop_ratios, strict=True
        )
    }


def scores_record(scores: Scores) -> dict[str, dict[str, float | int]]:
    """Scores as JSON: objective -> value, standard error, number of items."""
    return {
        name: {"value": score.value, "stderr": score.stderr, "count": score.count}
        for name, score in scores.items()
    }


def row_record(row: ScoredCandidate) -> dict[str, object]:
    """One row as JSON."""
    return {
        "candidate": row.candidate.index,
        "recipe_id": row.candidate.recipe.recipe_id,
        "origin": row.candidate.origin,
        "scores": scores_record(row.scores),
        "posterior": None if row.posterior is None else scores_record(row.posterior),
        "mean": row.mean,
        "effective_checkpoints": row.candidate.recipe.effective_checkpoints,
        "is_chosen": row.is_chosen,
        "genes": gene_table(row.candidate.recipe),
    }


def rows_csv(rows: Sequence[ScoredCandidate], objectives: Iterable[str]) -> str:
    """Rows as CSV with one line per candidate and one column per number."""
    header, lines = rows_table(rows, objectives)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def rows_table(
    rows: Sequence[ScoredCandidate], objectives: Iterable[str]
) -> tuple[list[str], list[list[object]]]:
    """Rows with one column per number: the columns' names, and a line per candidate.

    Where nothing is believed of a candidate, its posterior is None.
    """
    names = list(objectives)
    genes = [] if not rows else _flat_genes(rows[0].candidate.recipe)
    header = [
        *("candidate", "recipe_id", "origin"),
        *(f"{name}{suffix}" for name in names for suffix in ("", ".stderr", ".count")),
        *(f"{name}.posterior{suffix}" for name in names for suffix in ("", "_stderr")),
        *("mean", "effective_checkpoints", "is_chosen"),
        *(name for name, _ in genes),
    ]
    lines: list[list[object]] = []
    for row in rows:
        scores = [row.scores[name] for name in names]
        lines.append(
            [
                *(row.candidate.index, row.candidate.recipe.recipe_id, row.candidate.origin),
                *(cell for score in scores for cell in (score.value, score.stderr, score.count)),
                *(cell for name in names for cell in _posterior_cells(row, name)),
                *(row.mean, row.candidate.recipe.effective_checkpoints, int(row.is_chosen)),
                *(value for _, value in _flat_genes(row.candidate.recipe)),
            ]
        )
    return header, lines


def _posterior_cells(row: ScoredCandidate, name: str) -> tuple[float | None, float | None]:
    if row.posterior is None:
        return None, None
    return row.posterior[name].value, row.posterior[name].stderr


def _flat_genes(recipe: MergeRecipe) -> list[tuple[str, float]]:
    return [
        (f"{checkpoint}/{group}.{kind}", value)
        for checkpoint, groups in gene_table(recipe).items()
        for group, genes in groups.items()
        for kind, value in genes.items()
    ]
