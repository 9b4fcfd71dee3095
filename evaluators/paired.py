"""Two candidates on the same items: differences, their errors, and exact tests.

Pairing items takes out what makes an item hard for every candidate, which is most of the noise
(Miller, "Adding Error Bars to Evals", arXiv:2411.00640). All functions are pure; a comparison is a
list of :class:`Stratum`, one per task, so that weighted objectives work alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy
from numpy.typing import NDArray

from configs.evaluation import Objective
from evaluators.scores import FloatArray, TaskScores, standard_error

# Of scipy, `scipy.stats` is loaded by its first use: it takes half a second.

EXACT_SUMS = 2**20
"""Up to so many sums, the test by signs looks at all assignments of signs."""

_CHUNK = 1024
# Sums that are equal but for the order of their terms count as equal.
_RELATIVE_TIE = 1e-9


@dataclass(frozen=True, slots=True)
class Stratum:
    """Differences on the items of one task, and how much their mean counts.

    ``share`` is >= 0, and the shares of a comparison sum to one; ``differences`` has shape
    ``(n,)``, n >= 1, finite. ``weights`` says how much each item counts, None that all count
    alike.
    """

    share: float
    differences: FloatArray
    weights: FloatArray | None = None

    @property
    def mean(self) -> float:
        """Weighted mean of the differences."""
        return float(np.average(self.differences, weights=self.weights))

    @property
    def terms(self) -> FloatArray:
        """What each item adds to the comparison, ``(n,)``; their sum is ``share * mean``."""
        weights = np.ones(self.differences.size) if self.weights is None else self.weights
        terms: FloatArray = self.share * weights / weights.sum() * self.differences
        return terms


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Mean of ``a - b`` over the same items, its standard error, and the degrees of freedom."""

    mean: float
    stderr: float
    degrees_of_freedom: float = math.inf

    @property
    def sigmas(self) -> float:
        """The mean in units of its standard error; infinite when every item differs alike."""
        if self.stderr > 0:
            return self.mean / self.stderr
        return math.copysign(math.inf, self.mean) if self.mean else 0.0

    def interval(self, confidence: float = 0.95) -> tuple[float, float]:
        """Return the confidence interval of the mean, by Student's t distribution.

        For one task this is the interval of the paired t-test.

        Raises:
            ValueError: ``confidence`` is not in (0, 1).
        """
        if not 0.0 < confidence < 1.0:
            raise ValueError(f"confidence must be in (0, 1), got {confidence}")
        reach = (
            float(scipy.stats.t.ppf(0.5 + confidence / 2, self.degrees_of_freedom)) * self.stderr
        )
        return self.mean - reach, self.mean + reach


@dataclass(frozen=True, slots=True)
class McNemar:
    """Exact McNemar test of two candidates that are right or wrong on each item.

    ``only_a`` and ``only_b`` count the items that one of the two got right; under the null
    hypothesis each of them is as likely to be of either kind. ``p_value`` is two-sided.
    """

    only_a: int
    only_b: int
    p_value: float


def strata(
    objectives: Mapping[str, Objective],
    preference: Mapping[str, float],
    a: Mapping[str, TaskScores],
    b: Mapping[str, TaskScores],
) -> list[Stratum]:
    """Lay out the comparison of two candidates on a weighted mean of objectives.

    Args:
        objectives: The job's objectives; an objective is the weighted mean of its tasks.
        preference: Objective -> weight; the weights sum to one. Objectives that are missing
            or have weight 0 do not count.
        a: Per-item scores of the first candidate.
        b: Per-item scores of the second, on the same items in the same order.

    Raises:
        ValueError: The two were not scored on the same items.
    """
    parts = []
    for name, objective in objectives.items():
        total = sum(spec.weight for spec in objective.tasks)
        for spec in objective.tasks:
            share = preference.get(name, 0.0) * spec.weight / total
            if share == 0.0:
                continue
            if a[spec.task].item_ids != b[spec.task].item_ids:
                raise ValueError(f"candidates were scored on different items of `{spec.task}`")
            gaps = a[spec.task].values - b[spec.task].values
            parts.append(Stratum(share, gaps, a[spec.task].weights))
    return parts


def difference(parts: Sequence[Stratum]) -> PairedDifference:
    """Estimate the weighted mean of the strata's means.

    Variances of the strata add up, since their items are different; the degrees of freedom are
    those of Welch and Satterthwaite (1946), n - 1 for a single stratum.
    """
    mean, variance, spread = 0.0, 0.0, 0.0
    for part in parts:
        mean += part.share * part.mean
        own = (part.share * standard_error(part.differences, part.weights)) ** 2
        variance += own
        spread += own**2 / max(1, part.differences.size - 1)
    freedom = variance**2 / spread if spread else math.inf
    return PairedDifference(mean, math.sqrt(variance), freedom)


def paired_difference(
    objectives: Mapping[str, Objective],
    preference: Mapping[str, float],
    a: Mapping[str, TaskScores],
    b: Mapping[str, TaskScores],
) -> PairedDifference:
    """Compare two candidates item by item on a weighted mean of objectives; see ``strata``.

    Raises:
        ValueError: The two were not scored on the same items.
    """
    return difference(strata(objectives, preference, a, b))


def mcnemar(a: FloatArray, b: FloatArray) -> McNemar:
    """Test whether two candidates are right equally often (McNemar 1947; exact, two-sided).

    Args:
        a: ``(n,)``, 1 where the first is right and 0 where it is wrong.
        b: The same of the second, on the same items.

    Raises:
        ValueError: Shapes differ, or a score is neither 0 nor 1.
    """
    if a.shape != b.shape:
        raise ValueError(f"candidates must have the same items, found {a.shape} and {b.shape}")
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise ValueError("McNemar's test needs scores of 0 and 1; use the sign-flip test")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    total = only_a + only_b
    p_value = float(scipy.stats.binomtest(only_a, total, 0.5).pvalue) if total else 1.0
    return McNemar(only_a, only_b, p_value)


def sign_flip_p_value(
    parts: Sequence[Stratum], *, seed: int = 0, num_resamples: int = 10_000
) -> float:
    """Test by flipping signs whether differences are centred on zero (Fisher 1935; two-sided).

    If the two candidates were alike, each item's difference could as well have the other sign.
    The p-value is the share of all 2^n assignments of signs whose weighted mean is at least as far
    from zero. It is exact where at most ``EXACT_SUMS`` sums are possible: of items that differ by
    equal amounts only the number of plus signs matters, so that right-or-wrong scores are tested
    exactly whatever their number (for one task that is McNemar's test), and any 20 items are.
    Otherwise it is estimated from random signs as (1 + hits) / (1 + draws), so that it is never
    zero (Phipson and Smyth, arXiv:1603.05766).

    Args:
        parts: The comparison.
        seed: Of the random signs; equal seeds give equal p-values.
        num_resamples: How many are drawn, >= 1.
    """
    terms = np.concatenate([part.terms for part in parts])
    terms = terms[terms != 0.0]
    if not terms.size:
        return 1.0
    limit = abs(float(terms.sum())) - _RELATIVE_TIE * float(np.abs(terms).sum())
    sizes, counts = _equal_sizes(np.abs(terms))
    if math.prod((counts + 1).tolist()) <= EXACT_SUMS:
        sums, chances = _signed_sums(sizes, counts)
        return min(1.0, float(chances[np.abs(sums) >= limit].sum()))
    rng = np.random.default_rng(seed)
    hits = 0
    for start in range(0, num_resamples, _CHUNK):
        count = min(_CHUNK, num_resamples - start)
        signs = 1.0 - 2.0 * rng.integers(0, 2, size=(count, terms.size), dtype=np.int8)
        hits += int((np.abs(signs @ terms) >= limit).sum())
    return (1 + hits) / (1 + num_resamples)


def _equal_sizes(sizes: FloatArray) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return the different ones of ``(n,)`` positive numbers, and how often each is there."""
    # Equal but for rounding is equal.
    steps = np.round(sizes / sizes.max() / _RELATIVE_TIE).astype(np.int64)
    _, first, counts = np.unique(steps, return_index=True, return_counts=True)
    return sizes[first], counts.astype(np.int64)


def _signed_sums(sizes: FloatArray, counts: NDArray[np.int64]) -> tuple[FloatArray, FloatArray]:
    """Return all sums of numbers with random signs, and the probability of each.

    Args:
        sizes: (m,) different sizes of the numbers.
        counts: (m,) how many numbers have each size.
    """
    sums, chances = np.zeros(1), np.ones(1)
    for size, count in zip(sizes, counts.tolist(), strict=True):
        positive = np.arange(count + 1)
        added, weight = size * (2 * positive - count), scipy.stats.binom.pmf(positive, count, 0.5)
        sums = (sums[:, None] + added).ravel()
        chances = (chances[:, None] * weight).ravel()
    return sums, chances
