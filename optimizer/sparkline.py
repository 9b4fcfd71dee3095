"""A course in one line of text: how high a curve stood along what was spent for it."""

from collections.abc import Sequence

import numpy as np

from optimizer.events import Progressed
from optimizer.progress import ProgressPoint

_WIDEST = 32
_LEVELS = "▁▂▃▄▅▆▇█"


def sparkline(spent: Sequence[float], values: Sequence[float], width: int) -> str:
    """Draw a curve that keeps its last value between points.

    Args:
        spent: What had been spent at each point, not falling.
        values: How high the curve stood there.
        width: Characters, each for as much that was spent.

    Returns:
        The line, from 0 at the lowest block to the largest value at a full one; empty where
        there are fewer than two points, or nothing above 0.
    """
    highest = max(values, default=0.0)
    if len(values) < 2 or highest <= 0 or spent[-1] <= 0:
        return ""
    ends = np.linspace(0, spent[-1], width + 1)[1:]
    # The last point that is not beyond the end of a column; before the first there is nothing.
    last = np.searchsorted(np.asarray(spent), ends * (1 + 1e-12), side="right") - 1
    heights = np.where(last >= 0, np.asarray(values)[np.maximum(last, 0)], 0.0)
    steps = np.clip(heights / highest * (len(_LEVELS) - 1), 0, len(_LEVELS) - 1)
    return "".join(_LEVELS[round(step)] for step in steps.tolist())


class CourseLine:
    """The hypervolume of a search along its evaluations and along its items.

    Args:
        points: What is recorded already.
    """

    def __init__(self, points: Sequence[ProgressPoint]) -> None:
        self._evaluations = [float(point.evaluations) for point in points]
        self._items = [point.items for point in points]
        self._volumes = [point.volume for point in points]

    def add(self, event: Progressed) -> None:
        """Go on with what was found."""
        self._evaluations.append(event.evaluations)
        self._items.append(event.items)
        self._volumes.append(event.volume)

    def text(self, width: int) -> str:
        """Return both curves within so many characters; empty where there is nothing to draw."""
        names = ("over evaluations ", "  over items ")
        each = min(_WIDEST, (width - sum(map(len, names))) // 2)
        if each < 1:
            return ""
        curves = [
            sparkline(spent, self._volumes, each) for spent in (self._evaluations, self._items)
        ]
        return names[0] + curves[0] + names[1] + curves[1] if all(curves) else ""
