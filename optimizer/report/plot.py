"""Pictures of a search: the front in every pair of objectives, and how it grew.

:class:`Picture` gathers what is drawn, :func:`write_png` draws it for a page, and
``optimizer.report.plot_html`` for a browser.
"""

import itertools
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from configs.errors import ArchiveError
from evaluators.scores import FloatArray, Scores
from optimizer.baselines import SCALES, label_of
from optimizer.progress import ProgressPoint, progress_of
from optimizer.results.front_view import ScoredCandidate, front_of, points_of, scored_candidates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from optimizer.archive.archive import Archive

# Okabe and Ito's palette, which colour-blind readers can tell apart.
MERGE_COLOR, FRONT_COLOR, CHOSEN_COLOR = "#b8b8b8", "#0072b2", "#d55e00"
BASELINE_COLORS = ("#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#8c6d31", "#7f3c8d")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "h", "p")
_PANEL_WIDTH, _PANEL_HEIGHT = 4.4, 3.6  # inches
_LEGEND_ROW = 0.26  # inches
_MAX_COLUMNS = 4


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn of a search.

    ``volume`` is an ``(n,)`` float64 array: hypervolume of the front of the first 1, 2, ... n
    outcomes of the search split, failures included, and ``evaluations`` ``(n,)`` integers, how
    many they count as. ``report`` holds the chosen merge's scores
    on the report split, None before validation. ``num_before_search`` is the number of baselines
    that finished before the first proposal of the search did.
    """

    name: str
    objectives: tuple[str, ...]
    front: list[ScoredCandidate]
    dominated: list[ScoredCandidate]
    baselines: dict[str, list[ScoredCandidate]]
    chosen: ScoredCandidate | None
    report: Scores | None
    volume: FloatArray
    evaluations: NDArray[np.int64]
    num_before_search: int

    @classmethod
    def of(
        cls,
        archive: "Archive",
        rows: Sequence[ScoredCandidate] | None = None,
        points: Sequence[ProgressPoint] | None = None,
    ) -> "Picture":
        """Gather the picture of an archive's search split.

        Args:
            archive: The record of the search.
            rows: What was scored there, with what is believed of it
                (``optimizer.results.belief``); None takes the raw scores.
            points: The course of the search (``optimizer.progress``), where it is known already.

        Raises:
            ArchiveError: Nothing was scored yet.
        """
        if rows is None:
            rows = scored_candidates(archive, "search")
        if not rows:
            raise ArchiveError(
                f"{archive.place}: nothing was scored yet, so there is nothing to draw; continue "
                f"with `mergefront resume {archive.place}`"
            )
        points = progress_of(archive) if points is None else points
        front = front_of(rows)
        on_front = {row.candidate.index for row in front}
        baselines: dict[str, list[ScoredCandidate]] = {}
        for row in rows:
            if row.candidate.is_baseline:
                baselines.setdefault(baseline_kind(label_of(row.candidate)), []).append(row)
        chosen = next((row for row in rows if row.is_chosen), None)
        observations = archive.observations()
        return cls(
            name=archive.job.name,
            objectives=tuple(archive.job.objectives),
            front=front,
            dominated=[row for row in rows if row.candidate.index not in on_front],
            baselines=baselines,
            chosen=chosen,
            report=None if chosen is None else archive.scores("report").get(chosen.candidate.index),
            volume=np.array([point.volume for point in points], dtype=np.float64),
            evaluations=np.array([point.evaluations for point in points], dtype=np.int64),
            num_before_search=next(
                (n for n, seen in enumerate(observations) if not seen.candidate.is_baseline),
                len(observations),
            ),
        )

    @property
    def rows(self) -> list[ScoredCandidate]:
        """Every scored merge, by index."""
        return sorted([*self.front, *self.dominated], key=lambda row: row.candidate.index)

    @property
    def planes(self) -> list[tuple[int, int | None]]:
        """The pairs of objectives to draw; one objective is drawn over the evaluations."""
        if len(self.objectives) == 1:
            return [(0, None)]
        return list(itertools.combinations(range(len(self.objectives)), 2))


def baseline_kind(label: str) -> str:
    """Return the legend entry of a baseline: scales of task arithmetic are one kind."""
    if label.startswith("task arithmetic"):
        return f"task arithmetic, {len(SCALES)} scales"
    return "greedy soup steps" if label.startswith("soup of ") else label


def plot_style() -> AbstractContextManager[None]:
    """Return matplotlib's settings for all figures."""
    return mpl.rc_context(
        {
            "font.size": 9,
            "axes.titlesize": 10,
            # Names of people may hold dollar signs, which are no formulas.
            "text.parse_math": False,
            "svg.fonttype": "none",
            # The same figure has the same ids.
            "svg.hashsalt": "mergefront",
        }
    )


def write_png(picture: Picture, path: Path, *, dpi: int = 110) -> None:
    """Draw every pair of objectives and the hypervolume over evaluations.

    Raises:
        ArchiveError: The file cannot be written.
    """
    num_panels = len(picture.planes) + 1
    columns = _columns(num_panels)
    rows = math.ceil(num_panels / columns)
    with plot_style():
        figure = Figure(figsize=(columns * _PANEL_WIDTH, rows * _PANEL_HEIGHT))
        FigureCanvasAgg(figure)
        panels = [figure.add_subplot(rows, columns, place + 1) for place in range(num_panels)]
        for axes, plane in zip(panels, picture.planes, strict=False):
            draw_plane(axes, picture, plane)
        draw_volume(panels[-1], picture)
        _finish(figure, picture, panels[0])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=dpi)
        except OSError as error:
            raise ArchiveError(
                f"the plot cannot be written to {path}: {error.strerror}; choose another --out",
                path=str(path),
            ) from error


def _columns(num_panels: int) -> int:
    """Columns of a grid that leaves few cells empty: 2 -> 2, 4 -> 2, 7 -> 4, 11 -> 4."""
    return min(_MAX_COLUMNS, {4: 2}.get(num_panels, num_panels))


def _xy(
    rows: Sequence[ScoredCandidate], plane: tuple[int, int | None]
) -> tuple[FloatArray, FloatArray]:
    points = points_of(rows)
    if plane[1] is None:
        numbers = np.array([row.candidate.index + 1 for row in rows], dtype=np.float64)
        return numbers, points[:, plane[0]]
    return points[:, plane[0]], points[:, plane[1]]


def draw_plane(axes: "Axes", picture: Picture, plane: tuple[int, int | None]) -> None:
    """Draw one pair of objectives; with None for the second, the first over the candidates."""

    def scatter(
        rows: Sequence[ScoredCandidate],
        label: str,
        order: int,
        *,
        size: float,
        face: str,
        edge: str = "none",
        marker: str = "o",
        width: float = 0.0,
    ) -> None:
        if rows:
            axes.scatter(
                *_xy(rows, plane), label=label, zorder=order, s=size, marker=marker,
                facecolors=face, edgecolors=edge, linewidths=width,
            )  # fmt: skip

    scatter(picture.dominated, "dominated merge", 1, size=16, face=MERGE_COLOR)
    scatter(picture.front, "on the front", 3, size=30, face=FRONT_COLOR)
    for place, (kind, rows) in enumerate(picture.baselines.items()):
        color = BASELINE_COLORS[place % len(BASELINE_COLORS)]
        marker = _MARKERS[place % len(_MARKERS)]
        scatter(rows, kind, 4, size=42, marker=marker, face="none", edge=color, width=1.4)
    star = partial(scatter, size=190, marker="*")
    if picture.chosen is not None:
        label = "chosen, search items"
        star([picture.chosen], label, 6, face=CHOSEN_COLOR, edge="black", width=0.8)
    if picture.chosen is not None and picture.report is not None:
        reported = replace(picture.chosen, scores=picture.report, posterior=None)
        star([reported], "chosen, report items", 5, face="white", edge=CHOSEN_COLOR, width=1.4)
    names = picture.objectives
    axes.set_xlabel("candidate" if plane[1] is None else names[plane[0]])
    axes.set_ylabel(names[plane[0]] if plane[1] is None else names[plane[1]])
    axes.margins(0.08)
    finish_axes(axes)


def draw_volume(axes: "Axes", picture: Picture) -> None:
    """Draw how the hypervolume grew over the evaluations."""
    evaluations = picture.evaluations
    axes.step(evaluations, picture.volume, where="post", color=FRONT_COLOR, linewidth=1.6)
    axes.fill_between(evaluations, picture.volume, step="post", color=FRONT_COLOR, alpha=0.12)
    if 0 < picture.num_before_search < picture.volume.size:
        label = "search begins"
        place = picture.num_before_search + 0.5
        axes.axvline(place, color="#555555", linewidth=1, ls=":", label=label)
        # The corner below a curve that only rises is free.
        axes.legend(loc="lower right", edgecolor="none", framealpha=0.9)
    axes.set_xlabel("evaluations")
    axes.set_ylabel("hypervolume of the front")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish_axes(axes)


def finish_axes(axes: "Axes") -> None:
    """Draw a grid behind everything, and leave half of the frame out."""
    axes.grid(visible=True, color="#e6e6e6", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _finish(figure: Figure, picture: Picture, first: "Axes") -> None:
    """Add title and legend, and leave room for both."""
    handles, labels = first.get_legend_handles_labels()
    width, height = figure.get_size_inches()
    per_row = max(2, int(width / 1.9))
    legend_inches = _LEGEND_ROW * math.ceil(len(labels) / per_row) + 0.15
    height += legend_inches + 0.4
    figure.set_size_inches(width, height)
    count = len(picture.front) + len(picture.dominated)
    figure.suptitle(
        f"{picture.name}: {count} merges, {len(picture.front)} on the front (search items)",
        y=1 - 0.12 / height, va="top",
    )  # fmt: skip
    figure.legend(
        handles, labels, loc="lower center", ncols=min(per_row, len(labels)), frameon=False
    )
    figure.tight_layout(rect=(0, legend_inches / height, 1, 1 - 0.15 / height))
