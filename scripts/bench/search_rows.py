"""What a search benchmark measures, in one shape for closed forms and for real merges.

A benchmark writes one :class:`SearchRun` per landscape, strategy and seed, each as one line of
JSON in a file that it goes on with when it is started again. :func:`search_rows` makes the
:class:`SearchRow` of every landscape and strategy from them, as ``--json`` prints it.
"""

import dataclasses
import json
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np


@dataclasses.dataclass(frozen=True, slots=True)
class TracePoint:
    """How far one search was after some of its evaluations.

    Attributes:
        evaluations: Candidates that had been proposed and told, baselines included.
        items: Item evaluations that they took: one item scored for one candidate counts one,
            one that is read without generating counts its measured share of that.
        hypervolume: Of the front that would be returned now, by its true or held-out scores;
            relative to ``reference`` of the landscape where there is one (1 is all of it).
        best_mean: True or held-out mean of the objectives of the merge that would be chosen now.
        model_s: Seconds that models took for it; 0 where there is no model.
    """

    evaluations: int
    items: float
    hypervolume: float
    best_mean: float
    model_s: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class SearchRun:
    """One search: a strategy on a landscape with a seed.

    ``trace`` is ascending in evaluations, and holds the same evaluations for every seed, as far as
    the strategy allows. ``ask_ms`` is the median time of the last 50 asks, in milliseconds;
    ``driver_s`` everything that was not evaluating, in seconds. ``version`` is raised when the same
    search would come out otherwise; records without one are of the first.
    """

    landscape: str
    strategy: str
    seed: int
    trace: tuple[TracePoint, ...]
    ask_ms: float
    driver_s: float
    version: int = 1

    @property
    def key(self) -> tuple[str, str, int, int, int]:
        """What a run is told from the others by; a short one is not a long one."""
        evaluations = self.trace[-1].evaluations
        return self.landscape, self.strategy, self.seed, evaluations, self.version


@dataclasses.dataclass(frozen=True, slots=True)
class SearchRow:
    """A strategy on a landscape, over its seeds.

    Attributes:
        landscape: Name of the landscape, or of the zoo.
        strategy: Name of the strategy.
        seeds: How many runs.
        evaluations: Of the longest trace, mean over seeds.
        items: The same in item evaluations.
        hv_mean: Final hypervolume, mean over seeds.
        hv_sd: Its standard deviation over seeds (0 for one).
        best_mean: Final mean of the objectives of the chosen merge, mean over seeds.
        best_mean_sd: Its standard deviation over seeds.
        items_to_match: Rival -> items after which the mean over seeds first reaches the rival's
            final ``hv_mean``, interpolated between points of the trace; None if it never does.
        evaluations_to_match: The same in evaluations.
        model_s_to_match: The same in seconds of model time.
        items_to_match_best_mean: Rival -> items to reach the rival's final ``best_mean``.
        items_to_own: Items after which the mean over seeds first reaches its own final ``hv_mean``.
            A curve that wanders, or has come to rest, reaches it before its end: who says how many
            times fewer items another takes has to divide this, not ``items``.
        evaluations_to_own: The same in evaluations.
        model_s_to_own: The same in seconds of model time.
        items_to_own_best_mean: Items to reach its own final ``best_mean``.
        model_s: Seconds that models took, mean over seeds.
        ask_ms: Median over seeds of the runs' ``ask_ms``.
        driver_s: Median over seeds.
    """

    landscape: str
    strategy: str
    seeds: int
    evaluations: float
    items: float
    hv_mean: float
    hv_sd: float
    best_mean: float
    best_mean_sd: float
    items_to_match: dict[str, float | None]
    evaluations_to_match: dict[str, float | None]
    model_s_to_match: dict[str, float | None]
    items_to_match_best_mean: dict[str, float | None]
    items_to_own: float | None
    evaluations_to_own: float | None
    model_s_to_own: float | None
    items_to_own_best_mean: float | None
    model_s: float
    ask_ms: float
    driver_s: float


def append_run(path: Path, run: SearchRun) -> None:
    """Write a run to a file of runs, durably, so that an interrupted benchmark goes on after it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(dataclasses.asdict(run)) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_runs(path: Path) -> list[SearchRun]:
    """Return the runs of a file, in the order in which they ended; none when it does not exist.

    A last line that was cut off by a crash is left out.
    """
    if not path.exists():
        return []
    runs = []
    for line in path.read_text().splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        content["trace"] = tuple(TracePoint(**point) for point in content["trace"])
        runs.append(SearchRun(**content))
    return runs


def search_rows(runs: Iterable[SearchRun]) -> list[SearchRow]:
    """Sum up runs, one row per landscape and strategy, in the order of their first runs."""
    groups: dict[tuple[str, str], list[SearchRun]] = {}
    for run in runs:
        groups.setdefault((run.landscape, run.strategy), []).append(run)
    curves = {key: mean_curve(group) for key, group in groups.items()}
    return [
        _row(
            group, curves[key], {k[1]: c for k, c in curves.items() if k[0] == key[0] and k != key}
        )
        for key, group in groups.items()
    ]


def mean_curve(runs: Sequence[SearchRun]) -> list[TracePoint]:
    """Average traces over seeds, point by point; where some are longer, what all have."""
    return [
        TracePoint(
            evaluations=round(statistics.mean(point.evaluations for point in points)),
            items=statistics.mean(point.items for point in points),
            hypervolume=statistics.mean(point.hypervolume for point in points),
            best_mean=statistics.mean(point.best_mean for point in points),
            model_s=statistics.mean(point.model_s for point in points),
        )
        for points in zip(*(run.trace for run in runs), strict=False)
    ]


def cost_to_reach(
    curve: Sequence[TracePoint], target: float, value: str, cost: str
) -> float | None:
    """Return the cost at which a curve first reaches a value; None when it never does.

    Args:
        curve: Ascending in cost.
        target: What is to be reached.
        value: Attribute of a trace point that must be at least ``target``.
        cost: Attribute of a trace point that is returned, interpolated linearly.
    """
    before: TracePoint | None = None
    for point in curve:
        reached = getattr(point, value)
        if reached >= target:
            if before is None:
                return float(getattr(point, cost))
            ends = (getattr(before, value), reached)
            return float(np.interp(target, ends, (getattr(before, cost), getattr(point, cost))))
        before = point
    return None


def _row(
    runs: Sequence[SearchRun],
    curve: Sequence[TracePoint],
    rivals: Mapping[str, Sequence[TracePoint]],
) -> SearchRow:
    def to_match(value: str, cost: str) -> dict[str, float | None]:
        return {
            rival: cost_to_reach(curve, getattr(theirs[-1], value), value, cost)
            for rival, theirs in rivals.items()
        }

    def to_own(value: str, cost: str) -> float | None:
        return cost_to_reach(curve, getattr(curve[-1], value), value, cost)

    ends = [run.trace[-1] for run in runs]
    return SearchRow(
        landscape=runs[0].landscape,
        strategy=runs[0].strategy,
        seeds=len(runs),
        evaluations=statistics.mean(end.evaluations for end in ends),
        items=statistics.mean(end.items for end in ends),
        hv_mean=statistics.mean(end.hypervolume for end in ends),
        hv_sd=_spread([end.hypervolume for end in ends]),
        best_mean=statistics.mean(end.best_mean for end in ends),
        best_mean_sd=_spread([end.best_mean for end in ends]),
        items_to_match=to_match("hypervolume", "items"),
        evaluations_to_match=to_match("hypervolume", "evaluations"),
        model_s_to_match=to_match("hypervolume", "model_s"),
        items_to_match_best_mean=to_match("best_mean", "items"),
        items_to_own=to_own("hypervolume", "items"),
        evaluations_to_own=to_own("hypervolume", "evaluations"),
        model_s_to_own=to_own("hypervolume", "model_s"),
        items_to_own_best_mean=to_own("best_mean", "items"),
        model_s=statistics.mean(end.model_s for end in ends),
        ask_ms=statistics.median(run.ask_ms for run in runs),
        driver_s=statistics.median(run.driver_s for run in runs),
    )


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
