"""Per-item scores for metrics that are no means over items: correlations, areas, F1.

A search compares candidates item by item, so every metric has to be a mean over items.
:func:`contributions` makes one of any statistic, :func:`spearman_contributions` does it fast for
rank correlation. Both depend on the whole block of items: an item's number means something only
beside the others that it was computed with.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from evaluators.scores import FloatArray


def contributions(statistic: Callable[..., float], *columns: ArrayLike) -> FloatArray:
    """Divide a statistic of n items among them, by the jackknife.

    Item i gets ``t + (n - 1) * (mean(t_without) - t_without[i])``, where ``t`` is the statistic of
    all items and ``t_without[i]`` that of all but item i: Tukey's pseudo-values, moved so that
    their mean is ``t`` itself (Efron and Stein, "The jackknife estimate of variance", Annals of
    Statistics 9 (1981), section 1). Their standard error is the jackknife's standard error of the
    statistic, and differences of two candidates' contributions on the same items give that of the
    difference.

    Args:
        statistic: Called n + 1 times with arrays like ``columns``; finite, also without any item.
        *columns: Arrays of n >= 2 rows, aligned: predictions, references and what else it takes.

    Returns:
        ``(n,)`` float64 array whose mean is the statistic up to rounding.

    Raises:
        ValueError: The columns differ in length, or have fewer than 2 rows.
    """
    arrays = [np.asarray(column) for column in columns]
    count = _common_length(arrays)
    everything = np.arange(count)
    without = [
        float(statistic(*(array[everything != left_out] for array in arrays)))
        for left_out in range(count)
    ]
    return _spread(float(statistic(*arrays)), np.array(without))


def spearman_contributions(predicted: ArrayLike, expected: ArrayLike) -> FloatArray:
    """Divide Spearman's rank correlation of n items among them; see :func:`contributions`.

    Products of standardized ranks have the same mean, but spread with the correlation where its
    error shrinks: at 0.89, 200 items of normal variables have a standard error of 0.017, which
    these contributions give, and those products put at 0.064.
    Ties share their mean rank, as in ``scipy.stats.spearmanr``. Where all predictions, or all
    expected values, are equal, no association can be seen: the correlation counts as 0. Takes
    n steps of n operations each, 0.1 s for 2,000 items.

    Args:
        predicted: ``(n,)`` finite numbers, n >= 2: similarities of a model, say.
        expected: ``(n,)`` finite numbers that they should rise with.

    Returns:
        ``(n,)`` float64 array whose mean is the correlation, in [-1, 1]; single entries can lie
        outside.

    Raises:
        ValueError: The shapes are not ``(n,)`` both, n is below 2, or a number is not finite.
    """
    columns = [np.asarray(column, dtype=np.float64) for column in (predicted, expected)]
    count = _common_length(columns)
    for name, column in zip(("predicted", "expected"), columns, strict=True):
        if column.ndim != 1:
            raise ValueError(f"`{name}` must have shape (n,), found {column.shape}")
        if not np.isfinite(column).all():
            index = int(np.flatnonzero(~np.isfinite(column))[0])
            raise ValueError(f"`{name}` is {column[index]} for item {index} of {count}")
    ranks = [rankdata(column) for column in columns]
    without = [
        _correlation(*(_ranks_without(column, index) for column in ranks)) for index in range(count)
    ]
    return _spread(_correlation(*ranks), np.array(without))


def _common_length(arrays: Sequence[NDArray[np.generic]]) -> int:
    lengths = {len(array) if array.ndim else 0 for array in arrays}
    if len(lengths) != 1 or min(lengths) < 2:
        raise ValueError(f"needs columns of one length, at least 2, found {sorted(lengths)}")
    return lengths.pop()


def _spread(whole: float, without: FloatArray) -> FloatArray:
    shared: FloatArray = whole + (len(without) - 1) * (without.mean() - without)
    return shared


def _ranks_without(ranks: FloatArray, index: int) -> FloatArray:
    """Return the ranks that the others have when one item is left out: those above move down."""
    moved = ranks - (ranks > ranks[index]) - 0.5 * (ranks == ranks[index])
    return np.delete(moved, index)


def _correlation(x: FloatArray, y: FloatArray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0
