"""The figures of a written report: fronts, differences with their intervals, and the course."""

from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from evaluators.paired import PairedDifference
from optimizer.progress import ProgressPoint
from optimizer.report.document import Drawing
from optimizer.report.plot import (
    CHOSEN_COLOR,
    FRONT_COLOR,
    MERGE_COLOR,
    Picture,
    draw_plane,
    draw_volume,
    finish_axes,
)
from optimizer.results.verdict_view import CONFIDENCE

_WIDTH, _HEIGHT = 5.6, 4.0  # inches
_ROW = 0.24  # inches per line of a diagram of intervals


def front_drawings(picture: Picture) -> list[Drawing]:
    """Return a scatter of every pair of objectives."""
    names, drawings = picture.objectives, []
    for number, plane in enumerate(picture.planes, start=1):
        pair = names[plane[0]] if plane[1] is None else f"{names[plane[0]]} and {names[plane[1]]}"
        points = "Posterior means" if picture.front[0].posterior is not None else "Scores"
        drawings.append(
            Drawing(
                f"front-{number}",
                f"{points} of {pair} on the search items, and of the chosen merge on the report "
                "items; up and right is better.",
                partial(_plane, picture, plane),
            )
        )
    return drawings


def volume_drawings(picture: Picture, points: Sequence[ProgressPoint]) -> list[Drawing]:
    """Return how the hypervolume grew over evaluations, and over the items that it took."""
    return [
        Drawing(
            "hypervolume-evaluations",
            "Hypervolume of the front of raw search scores over evaluations.",
            lambda: _evaluations(picture),
        ),
        Drawing(
            "hypervolume-items",
            "The same over the items that were scored.",
            lambda: _items(points),
        ),
    ]


def differences_drawing(
    name: str, gaps: Mapping[str, PairedDifference], *, title: str, caption: str
) -> Drawing:
    """Return a diagram of paired differences with their intervals, one line each."""
    return Drawing(name, caption, lambda: _differences(gaps, title))


def _plane(picture: Picture, plane: tuple[int, int | None]) -> Figure:
    figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    draw_plane(axes, picture, plane)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def _evaluations(picture: Picture) -> Figure:
    figure = Figure(figsize=(_WIDTH, 0.75 * _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    draw_volume(axes, picture)
    return figure


def _items(points: Sequence[ProgressPoint]) -> Figure:
    figure = Figure(figsize=(_WIDTH, 0.75 * _HEIGHT), layout="constrained")
    axes = figure.add_subplot()
    items, volumes = [point.items for point in points], [point.volume for point in points]
    axes.step(items, volumes, where="post", color=FRONT_COLOR, linewidth=1.6)
    axes.fill_between(items, volumes, step="post", color=FRONT_COLOR, alpha=0.12)
    axes.set_xlabel("search items scored")
    axes.set_ylabel("hypervolume of the front")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    finish_axes(axes)
    return figure


def _differences(gaps: Mapping[str, PairedDifference], title: str) -> Figure:
    figure = Figure(figsize=(_WIDTH, 0.9 + _ROW * len(gaps)), layout="constrained")
    axes = figure.add_subplot()
    for place, gap in enumerate(gaps.values()):
        low, high = gap.interval(CONFIDENCE)
        color = FRONT_COLOR if low > 0 else CHOSEN_COLOR if high < 0 else MERGE_COLOR
        axes.plot([low, high], [place, place], color=color, linewidth=2.2)
        axes.plot([gap.mean], [place], "o", color=color, markersize=5)
    axes.axvline(0, color="#555555", linewidth=1)
    axes.set_yticks(np.arange(len(gaps)), list(gaps))
    axes.set_ylim(len(gaps) - 0.5, -0.5)
    axes.set_xlabel(title)
    finish_axes(axes)
    return figure
