"""What a search has found and spent, candidate by candidate: the axes of its progress."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.scores import FloatArray
from optimizer.archive.archive import Archive
from optimizer.candidate import Observation
from optimizer.pareto import hypervolume
from optimizer.scalarize import reference_point
from optimizer.spending import Spending, num_items
from optimizer.stopped import recorded_count


@dataclass(frozen=True, slots=True)
class ProgressPoint:
    """Where a search stood when a candidate was finished.

    Attributes:
        candidate: Which.
        evaluations: Evaluations finished by then; candidates screened together are one.
        items: Items scored by then (``optimizer.spending``).
        model_s: Seconds in which a model ran by then.
        volume: Hypervolume of the scores by then: of all items, or of samples of them, whose
            luck makes it larger. Candidates that lost a race have none.
    """

    candidate: int
    evaluations: int
    items: float
    model_s: float
    volume: float


class Front:
    """The hypervolume of a growing set of points.

    Args:
        reference: (m,) reference point.
    """

    def __init__(self, reference: FloatArray) -> None:
        self._reference = reference
        self._points = np.zeros((0, reference.size))
        self.volume = 0.0

    def add(self, point: FloatArray) -> float:
        """Add a point of shape (m,); returns the hypervolume with it."""
        # Behind a member of the front, or equal to one: nothing changes.
        if not (self._points >= point).all(axis=1).any():
            kept = self._points[~(point >= self._points).all(axis=1)]
            self._points = np.vstack([kept, point])
            self.volume = hypervolume(self._points, self._reference)
        return self.volume


def progress_of(archive: Archive) -> list[ProgressPoint]:
    """Return the course of a search, one point per finished candidate in their order.

    The reference point is the one that the search ranks by, from all its observations.
    """
    observations = archive.observations()
    names = tuple(archive.job.objectives)
    front = Front(reference_point(observations, names))
    waiting = archive.evaluations()
    spending, place, counted = Spending(), 0, recorded_count(archive)
    points = []
    ends = zip(observations, archive.finish_sequences(), strict=True)
    for seen, sequence in ends:
        while place < len(waiting) and waiting[place].sequence <= sequence:
            if waiting[place].key.split == "search":
                spending.add(waiting[place], num_items(archive, waiting[place]))
            place += 1
        points.append(
            ProgressPoint(
                candidate=seen.candidate.index,
                evaluations=counted.add(seen),
                items=spending.total_items,
                model_s=sum(spending.model_s.values()),
                volume=front.add(point)
                if (point := _point(seen, names)) is not None
                else front.volume,
            )
        )
    return points


class Course:
    """The hypervolume of a running search, told one observation after another.

    Args:
        names: Objectives, in the order of the points.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._told: list[Observation] = []
        self._has_baseline = False
        self._front = Front(np.zeros(len(self._names)))

    def add(self, seen: Observation) -> float:
        """Take in an observation; returns the hypervolume of the scores so far."""
        self._told.append(seen)
        baseline = seen.candidate.is_baseline
        self._has_baseline |= baseline
        # Only baselines move the reference point, once there is one.
        if baseline or not self._has_baseline:
            self._front = Front(reference_point(self._told, self._names))
            for earlier in self._told:
                self._add(earlier)
        else:
            self._add(seen)
        return self._front.volume

    def _add(self, seen: Observation) -> None:
        if (point := _point(seen, self._names)) is not None:
            self._front.add(point)


def _point(seen: Observation, names: Sequence[str]) -> FloatArray | None:
    if seen.scores is None or not seen.is_scored:
        return None
    return np.array([seen.scores[name].value for name in names])
