"""Where a search with a surrogate begins, and how random merges are drawn.

Merges of conflicting task vectors were found to want a total weight of about 2, which sums of one
never reach, and few drops. So the first evaluations look along the total weight, at every
checkpoint alone (and in pairs where those are few), and at Dirichlet draws that drop little.
"""

import itertools

import numpy as np

from evaluators.scores import FloatArray
from optimizer.space import SearchSpace

START_SIZE = 12
"""Evaluations before the surrogate leads; N + 2 for N checkpoints if that is more."""

_SOUP_TOTALS = (1.0, 1.5, 2.1)
_PAIR_WEIGHT = 0.75
_MOST_FOR_PAIRS = 4
_CONCENTRATION = 0.7
_TOTAL_LOW, _TOTAL_HIGH = 0.8, 2.6
_DROPPING_SHARE = 0.25


def start_size(space: SearchSpace) -> int:
    """Return how many scored merges the start has, baselines of the space included."""
    return max(START_SIZE, space.shape[0] + 2)


def start_genotypes(space: SearchSpace) -> list[FloatArray]:
    """Return the fixed part of the start: soups, checkpoints alone, pairs; nothing dropped."""
    count = space.shape[0]
    rows = [np.full(count, total / count) for total in _SOUP_TOTALS[: 3 if space.scales else 1]]
    rows += list(np.eye(count))
    if 2 < count <= _MOST_FOR_PAIRS:
        for pair in itertools.combinations(range(count), 2):
            rows.append(_PAIR_WEIGHT * np.eye(count)[list(pair)].sum(axis=0))
    return [space.encode(tied(space, row)) for row in rows]


def draw_merges(space: SearchSpace, count: int, rng: np.random.Generator) -> FloatArray:
    """Draw genotypes: Dirichlet weights times a total, the same in every group; few drops."""
    checkpoints = space.shape[0]
    shares = rng.dirichlet(np.full(checkpoints, _CONCENTRATION), size=count)
    totals = rng.uniform(_TOTAL_LOW, _TOTAL_HIGH, (count, 1)) if space.scales else 1.0
    drops = rng.beta(1.0, 3.0, size=shares.shape)
    drops *= rng.random((count, 1)) < _DROPPING_SHARE
    shape = (count, *space.shape)
    weights = np.broadcast_to((shares * totals)[:, :, None], shape)
    return space.encode_all(weights, np.broadcast_to(drops[:, :, None], shape))


def tied(space: SearchSpace, row: FloatArray) -> list[list[float]]:
    """Give every group the same ``(checkpoints,)`` values."""
    return [[float(value)] * space.shape[1] for value in row]
