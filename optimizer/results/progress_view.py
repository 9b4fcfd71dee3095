"""How a search got where it is: hypervolume over evaluations and items, and what is ahead."""

from dataclasses import dataclass

import numpy as np
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from configs.errors import ConfigError
from optimizer.archive.archive import Archive
from optimizer.pareto import hypervolume
from optimizer.progress import ProgressPoint, progress_of
from optimizer.results.front_view import ScoredCandidate, points_of
from optimizer.results.tables import plain_table
from optimizer.scalarize import reference_point
from optimizer.space import SearchSpace
from optimizer.spending import ExpectsGain, gain_expected_by
from optimizer.strategies.registry import make_strategy

_ROWS = 8


@dataclass(frozen=True, slots=True)
class Progress:
    """The course of a search.

    Attributes:
        points: One per finished candidate; their volumes are of raw scores.
        believed: Hypervolume of the front of posterior means, None without a model: raw fronts
            claim more than is there.
        expected_gain: Hypervolume that the next candidate scored is expected to add to the front of
            posterior medians, where the strategy can tell.
    """

    points: list[ProgressPoint]
    believed: float | None
    expected_gain: float | None


def progress_report(
    archive: Archive, space: SearchSpace, rows: list[ScoredCandidate]
) -> Progress | None:
    """Gather the course of a search; None before anything finished.

    Args:
        archive: The record of the search.
        space: Its search space.
        rows: What was scored, with what is believed of it.
    """
    points = progress_of(archive)
    if not points:
        return None
    believed = None
    if any(row.posterior is not None for row in rows):
        names = list(archive.job.objectives)
        reference = reference_point(archive.observations(), names)
        believed = hypervolume(points_of(rows), reference)
    return Progress(points, believed, expected_gain_of(archive, space))


def progress_table(found: Progress) -> Table:
    """Lay the course out at a few evaluations."""
    table = plain_table()
    for title in ("evaluations", "items", "hypervolume"):
        table.add_column(title, justify="right", no_wrap=True)
    chosen = np.unique(np.linspace(0, len(found.points) - 1, _ROWS).round().astype(int))
    for point in (found.points[index] for index in chosen):
        table.add_row(str(point.evaluations), f"{point.items:.0f}", f"{point.volume:.4f}")
    return table


def progress_sentences(found: Progress) -> list[str]:
    """Say what is believed of the course, and what is ahead; nothing without a model."""
    said = []
    if found.believed is not None:
        said.append(
            f"Of posterior means it is {found.believed:.4f} now: the best of noisy scores "
            "claim more than is there."
        )
    if found.expected_gain is not None:
        said.append(
            f"The next candidate scored is expected to add {found.expected_gain:.2g} to that."
        )
    return said


def render_progress(found: Progress) -> list[RenderableType]:
    """Lay the course out for a terminal."""
    heading = Text("\nHypervolume over evaluations and search items, of raw scores", style="bold")
    return [heading, progress_table(found), *(Text(said) for said in progress_sentences(found))]


def progress_record(found: Progress) -> dict[str, object]:
    """Return the course as JSON, all of it."""
    return {
        "evaluations": [point.evaluations for point in found.points],
        "items": [point.items for point in found.points],
        "model_s": [point.model_s for point in found.points],
        "hypervolume": [point.volume for point in found.points],
        "believed_hypervolume": found.believed,
        "expected_gain": found.expected_gain,
    }


def expected_gain_of(archive: Archive, space: SearchSpace) -> float | None:
    """Return the hypervolume that the next candidate scored would be expected to add.

    None where the strategy cannot tell, or not yet, or came with a package that is not here.
    """
    try:
        strategy = make_strategy(archive.job, space)
    except ConfigError:
        return None
    if not isinstance(strategy, ExpectsGain):
        return None
    for seen in [*archive.seeds(), *archive.observations()]:
        strategy.tell(seen)
    return gain_expected_by(strategy)
