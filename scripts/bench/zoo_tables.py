"""The tables of the search benchmark on real merges, over seeds, as Markdown."""

import statistics
from collections.abc import Iterator, Mapping, Sequence

from scripts.bench.search_rows import SearchRun, TracePoint, cost_to_reach, mean_curve

RIVALS = ("scalar_cma", "dirichlet", "nsga2", "cma", "sobol")
Runs = Mapping[str, Sequence[SearchRun]]
"""Strategy -> its runs on one pool, by seed."""


def tables(runs: Sequence[SearchRun], full_items: int) -> Iterator[str]:
    """Yield the lines of all tables, pool by pool.

    Args:
        runs: Hypervolumes in any unit that is one for a pool.
        full_items: Items of one full evaluation: costs are given in those.
    """
    for pool in dict.fromkeys(run.landscape for run in runs):
        here: dict[str, list[SearchRun]] = {}
        for run in sorted(runs, key=lambda run: run.seed):
            if run.landscape == pool:
                here.setdefault(run.strategy, []).append(run)
        yield from [f"## {pool}: hypervolume, mean over seeds ± their standard deviation"]
        yield from _curves(here, full_items, "hypervolume", digits=4)
        yield from ["", f"## {pool}: best mean of the objectives"]
        yield from _curves(here, full_items, "best_mean", digits=3)
        yield from ["", f"## {pool}: cost to reach what rivals have at the end"]
        yield from _reached(here, full_items)
        yield from ["", f"## {pool}: paired differences of best means from scalar_cma"]
        yield from _paired(here, full_items)
        yield ""


def _curves(runs: Runs, full_items: int, value: str, *, digits: int) -> Iterator[str]:
    """Yield one row per strategy; columns are the costs that any of them has."""
    costs = sorted({_cost(point, full_items) for own in runs.values() for point in own[0].trace})
    yield "| strategy | seeds | " + " | ".join(map(str, costs)) + " |"
    yield "|---" * (len(costs) + 2) + "|"
    for name, own in runs.items():
        cells = []
        for cost in costs:
            found = [
                getattr(p, value) for run in own for p in run.trace if _is_at(p, cost, full_items)
            ]
            cells.append(_spread(found, digits))
        yield f"| {name} | {len(own)} | " + " | ".join(cells) + " |"


def _reached(runs: Runs, full_items: int) -> Iterator[str]:
    """Yield what strategies need for the rivals' last hypervolume: of their mean, and by seed.

    Of their curves the rivals may have reached it before their end, too: a curve of noisy choices
    wanders, or has come to rest.
    """
    heads = ["strategy", "rival", "cost", "times fewer", "than its own first reach"]
    heads += ["model seconds, times fewer", "by seed"]
    yield "| " + " | ".join(heads) + " |"
    yield "|---" * len(heads) + "|"
    for name, own in runs.items():
        for rival in RIVALS:
            if rival == name or rival not in runs or name in RIVALS:
                continue
            theirs = mean_curve(runs[rival])
            end = theirs[-1]
            first = cost_to_reach(theirs, end.hypervolume, "hypervolume", "items")
            curve = mean_curve(own)
            items = cost_to_reach(curve, end.hypervolume, "hypervolume", "items")
            seconds = cost_to_reach(curve, end.hypervolume, "hypervolume", "model_s")
            seeds = [
                cost_to_reach(run.trace, end.hypervolume, "hypervolume", "items") for run in own
            ]
            cells = [
                _number(None if items is None else items / full_items),
                _number(None if items is None else end.items / items),
                _number(None if items is None or first is None else first / items),
                _number(None if not seconds else end.model_s / seconds),
                ", ".join(_number(None if s is None else s / full_items) for s in seeds),
            ]
            yield f"| {name} | {rival} | " + " | ".join(cells) + " |"


def _paired(runs: Runs, full_items: int) -> Iterator[str]:
    """Yield mean differences over the seeds that both have, with their standard error."""
    if "scalar_cma" not in runs:
        return
    theirs = {run.seed: run for run in runs["scalar_cma"]}
    costs = [_cost(point, full_items) for point in runs["scalar_cma"][0].trace]
    yield "| strategy | seeds | " + " | ".join(map(str, costs)) + " |"
    yield "|---" * (len(costs) + 2) + "|"
    for name, own in runs.items():
        pairs = [(run, theirs[run.seed]) for run in own if run.seed in theirs]
        if name == "scalar_cma" or not pairs:
            continue
        cells = []
        for cost in costs:
            gaps = [
                ours.best_mean - other.best_mean
                for run, rival in pairs
                for ours in run.trace
                for other in rival.trace
                if _is_at(ours, cost, full_items) and _is_at(other, cost, full_items)
            ]
            cells.append(_gap(gaps))
        yield f"| {name} | {len(pairs)} | " + " | ".join(cells) + " |"


def _cost(point: TracePoint, full_items: int) -> int:
    """The cost at which a point was taken: the next of five full evaluations above its items."""
    return 5 * -(-round(point.items) // (5 * full_items))


def _is_at(point: TracePoint, cost: int, full_items: int) -> bool:
    return _cost(point, full_items) == cost


def _spread(values: Sequence[float], digits: int) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def _gap(gaps: Sequence[float]) -> str:
    if not gaps:
        return ""
    mean = f"{statistics.mean(gaps):+.3f}"
    if len(gaps) < 2:
        return mean
    return f"{mean} ± {statistics.stdev(gaps) / len(gaps) ** 0.5:.3f}"


def _number(value: float | None) -> str:
    return "never" if value is None else f"{value:.1f}"
