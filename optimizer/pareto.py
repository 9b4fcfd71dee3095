"""Dominance, hypervolume and what is derived from them, on ``(n, m)`` float64 arrays.

Every objective is maximized. The exact computations are moocore's; this module states the
direction once, and refuses NaN, which moocore would order silently.
"""

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from evaluators.scores import FloatArray


def as_points(points: ArrayLike) -> FloatArray:
    """Return points as an ``(n, m)`` float64 array.

    Raises:
        ValueError: Not two-dimensional, or a NaN in it.
    """
    array = np.asarray(points, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"points must have shape (n, m), found {array.shape}")
    if np.isnan(array).any():
        raise ValueError("points must not hold NaN; leave failed candidates out")
    return array


def non_dominated(points: ArrayLike) -> NDArray[np.bool_]:
    """Mark the points that no other point dominates.

    A point dominates another when it is at least as good everywhere and better somewhere;
    equal points do not dominate each other, so all duplicates of a front member are kept.

    Returns:
        ``(n,)`` bool array.
    """
    array = as_points(points)
    if array.shape[0] == 0:
        return np.zeros(0, dtype=bool)
    return np.asarray(moocore.is_nondominated(array, maximise=True, keep_weakly=True), dtype=bool)


def hypervolume(points: ArrayLike, reference: ArrayLike) -> float:
    """Volume that the points dominate above a reference point of shape ``(m,)``; exact.

    It is the volume of the union of boxes from the reference r to every point p,
    vol(union_p prod_m [r_m, p_m]); a point that is not above r in every objective has no box.
    """
    array = as_points(points)
    if array.shape[0] == 0:
        return 0.0
    return float(moocore.hypervolume(array, ref=np.asarray(reference), maximise=True))


def hypervolume_contributions(points: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Volume that the front loses without a point, per point.

    Only members of the front count on either side: a dominated point contributes nothing, and
    takes nothing from the one that dominates it. Duplicates of each other contribute nothing,
    since either could go.

    Returns:
        ``(n,)`` float64, non-negative.
    """
    array = as_points(points)
    corner = np.asarray(reference, dtype=np.float64)
    if array.shape[0] == 0:
        return np.zeros(0)
    if array.shape[1] == 1:  # moocore wants at least two objectives
        best = non_dominated(array)
        alone = best & (best.sum() == 1)
        return np.where(alone, np.maximum(array[:, 0] - corner[0], 0.0), 0.0)
    contributions = moocore.hv_contributions(array, ref=corner, maximise=True)
    return np.asarray(contributions, dtype=np.float64)


def gain_bounds(points: ArrayLike, front: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Bound from above how much hypervolume each point would add to a front; ``(n,)``.

    A point adds at most its own box less the largest box that it shares with a member of the
    front. The bound is 0 for points that a member of the front is at least as good as.
    """
    array, members = as_points(points), as_points(front)
    corner = np.asarray(reference, dtype=np.float64)
    bounds: FloatArray = np.maximum(array - corner, 0.0).prod(axis=1)
    if members.shape[0]:
        shared = np.maximum(np.minimum(array[:, None], members[None]) - corner, 0.0)
        bounds = bounds - shared.prod(axis=2).max(axis=1)
    return bounds


def gains(points: ArrayLike, front: ArrayLike, reference: ArrayLike) -> FloatArray:
    """Compute how much hypervolume each point alone would add to a front; exact, ``(n,)``."""
    array, members = as_points(points), as_points(front)
    corner = np.asarray(reference, dtype=np.float64)
    added = np.zeros(array.shape[0])
    for index in np.flatnonzero(gain_bounds(array, members, corner) > 0):
        added[index] = max(0.0, _added(array[index], members, corner))
    return added


def best_gain(points: ArrayLike, front: ArrayLike, reference: ArrayLike) -> tuple[int, float]:
    """Find the point that would add most hypervolume to a front; exact.

    Points are looked at in the order of :func:`gain_bounds`, until no bound is above the best gain.

    Returns:
        Index of the point (the first of equals), and its gain, which is 0 where none has any.

    Raises:
        ValueError: There is no point.
    """
    array, members = as_points(points), as_points(front)
    corner = np.asarray(reference, dtype=np.float64)
    if array.shape[0] == 0:
        raise ValueError("points must hold at least one point")
    bounds = gain_bounds(array, members, corner)
    best, gain = 0, 0.0
    for index in np.argsort(-bounds, kind="stable"):
        if bounds[index] <= gain:
            break
        added = _added(array[index], members, corner)
        if added > gain:
            best, gain = int(index), added
    return best, gain


def _added(point: FloatArray, members: FloatArray, corner: FloatArray) -> float:
    """A point's own box less what a front dominates of it; rounding may leave less than 0."""
    covered = np.minimum(members, point) if members.shape[0] else members
    return float(np.maximum(point - corner, 0.0).prod()) - hypervolume(covered, corner)


def domination_depth(points: ArrayLike) -> FloatArray:
    """How far each point is behind the others: additive epsilon to the rest of the set.

    The smallest amount that, added to every objective of a point, makes it undominated;
    0 for members of the front. Shape ``(n,)``.
    """
    array = as_points(points)
    if array.shape[0] == 0:
        return np.zeros(0)
    # Whatever is ahead of a point has a member of the front that is further ahead, so those are
    # enough. (n, f): how much worse than the other in the objective where it is least behind.
    front = np.unique(array[non_dominated(array)], axis=0)
    behind = (front[None, :, :] - array[:, None, :]).min(axis=2)
    depth: FloatArray = np.maximum(behind.max(axis=1), 0.0)
    return depth


def spread_subset(points: ArrayLike, reference: ArrayLike, size: int) -> list[int]:
    """Choose points one by one, each the one that adds most hypervolume to those before it.

    Greedy inclusion reaches at least 1 - 1/e of the best subset's hypervolume, since the
    hypervolume is submodular (Nemhauser et al. 1978).

    Returns:
        Indices in the order of choice; fewer than ``size`` when nothing more can be gained.
    """
    array = as_points(points)
    chosen: list[int] = []
    covered = 0.0
    while len(chosen) < min(size, array.shape[0]):
        volumes = {
            index: hypervolume(array[[*chosen, index]], reference)
            for index in range(array.shape[0])
            if index not in chosen
        }
        best = max(volumes, key=lambda index: (volumes[index], -index))
        if volumes[best] <= covered:
            break
        chosen.append(best)
        covered = volumes[best]
    return chosen
