"""What a study is: how one zoo is measured, which tables that gives, and what papers claim of it.

A study returns records, plain rows of names and numbers, of one zoo at a time. Everything that is
printed is computed from the records of all seeds, the verdict on each claim included, so no
sentence can say more than they show.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np
from pandas import DataFrame
from scipy import stats

if TYPE_CHECKING:
    from scripts.papers.bench import Bench

Record = dict[str, str | int | float]
Verdict = Literal["holds", "does not hold", "not decided"]
CONFIDENCE = 0.95
"""Of the interval that decides on a claim."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim of a paper as a number per seed that has to be larger than a margin.

    Attributes:
        key: Its name in ``--json`` and in tests.
        text: What the paper says, one sentence, with its number.
        measured: What the number is, with its unit.
        value: Returns it from the records of one seed, all widths.
        margin: What it must exceed for the claim to hold.
        fast_above: What it must exceed in a ``--fast`` run; None where so few items cannot show
            it. Chosen from ``--fast`` runs of all seeds, with room (``papers_fast.jsonl``).
        fast_below: What it must stay below there, likewise.
        full_only: Whether it is about a width or a part that ``--fast`` does not measure.
    """

    key: str
    text: str
    measured: str
    value: Callable[[DataFrame], float]
    margin: float = 0.0
    fast_above: float | None = None
    fast_below: float | None = None
    full_only: bool = False

    def split(
        self, column: str, parts: Mapping[str, str], *, full_only: Sequence[str] = ()
    ) -> "tuple[Claim, ...]":
        """Return a claim for each value of a column, since a mean over them may hide a refutation.

        Args:
            column: Of the records.
            parts: What is appended to the key -> value of the column.
            full_only: Which parts ``--fast`` does not measure.
        """
        return tuple(
            replace(
                self,
                key=f"{self.key}_{part}",
                measured=f"{column} {value}: {self.measured}",
                value=partial(_value_where, self.value, column, value),
                fast_above=None if part in full_only else self.fast_above,
                fast_below=None if part in full_only else self.fast_below,
                full_only=part in full_only,
            )
            for part, value in parts.items()
        )


def _value_where(
    value: Callable[[DataFrame], float], column: str, wanted: str, records: DataFrame
) -> float:
    return value(records[records[column] == wanted])


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim and what the seeds say of it.

    ``low`` and ``high`` bound the mean over seeds with 95 % confidence (Student's t over seeds);
    they are NaN for a single seed, which decides nothing.
    """

    claim: Claim
    by_seed: Mapping[int, float]
    mean: float
    sd: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """Whether the interval of the mean lies above the margin, below it, or around it."""
        if self.low > self.claim.margin:
            return "holds"
        return "does not hold" if self.high < self.claim.margin else "not decided"


@dataclass(frozen=True, slots=True)
class Table:
    """A table over seeds: ``columns`` of records as rows and columns, mean ± sd in the cells."""

    title: str
    rows: Sequence[str]
    column: str
    value: str
    digits: int = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """Lines over a numeric column, one per value of ``series``, a panel per value of ``panel``.

    Drawn are the records of one ``width``.
    """

    name: str
    title: str
    x: str
    value: str
    series: str
    panel: str
    label: str
    width: int = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One question to the zoos.

    Attributes:
        name: Of its module, records and options.
        title: Headline.
        papers: Author, title, arXiv number.
        how: What is done, a paragraph; settings are named by their values. Line breaks in texts
            are spaces.
        measure: Returns the records of one zoo. What it trains or scores is kept, so a study that
            was interrupted goes on where it stood.
        checkpoints: Names of the tuned checkpoints that it needs (``scripts.papers.zoos``).
        claims: What the papers say.
        tables: Returns what is printed; of records with the columns of all of them.
        widths: Of the models that it is measured on; the first alone with ``--fast``.
        figures: Drawn from the same records.
        notes: Returns sentences with numbers from the records, beyond the claims.
    """

    name: str
    title: str
    papers: tuple[str, ...]
    how: str
    measure: Callable[["Bench"], list[Record]]
    checkpoints: tuple[str, ...]
    claims: tuple[Claim, ...]
    tables: tuple[Table, ...]
    widths: tuple[int, ...] = (128,)
    figures: tuple[Figure, ...] = ()
    notes: Callable[[DataFrame], Sequence[str]] = lambda _: ()


def judge(claim: Claim, records: DataFrame) -> Judged:
    """Work out a claim over all seeds of some records.

    Raises:
        ValueError: It is not a number in some seed.
    """
    by_seed = {int(seed): float(claim.value(part)) for seed, part in records.groupby("seed")}
    if broken := [seed for seed, value in by_seed.items() if not math.isfinite(value)]:
        raise ValueError(f"claim `{claim.key}` has no value in seeds {broken}")
    values = np.array(list(by_seed.values()))
    mean = float(values.mean())
    if len(values) < 2:
        return Judged(claim, by_seed, mean, math.nan, math.nan, math.nan)
    sd = float(values.std(ddof=1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sd / math.sqrt(len(values))
    return Judged(claim, by_seed, mean, sd, mean - half, mean + half)


def mean_of(records: DataFrame, value: str = "score", /, **where: object) -> float:
    """Return the mean of a column over the records that have these values; NaN where none has."""
    chosen = records
    for column, wanted in where.items():
        chosen = chosen[chosen[column] == wanted]
    return float(chosen[value].mean())
