"""Compare the searches on closed-form landscapes at equal budgets.

    python -m scripts.bench.search --json
    python -m scripts.bench.search --full --runs runs/search.jsonl --json

Every strategy searches every landscape of ``scripts.bench.landscapes`` with several seeds, 12
candidates under evaluation at a time, told one by one in the order in which they were proposed;
the base is told first. The front of every method is chosen in the same way, by the posterior mean
of a surrogate of all its evaluations; what is reported is the true hypervolume of that front, as a
share of what can be reached, so that luck in noisy scores counts for nobody. ``items_to_match``
and ``evaluations_to_match`` say when the mean over seeds first reached a rival's final value.

``--full`` takes every landscape with 10 seeds and hours; it goes on where it stopped, with the
runs that the file has. ``ask_ms`` of a row is the median of its last asks; the time of one ask at
300, 2,000 and 5,000 outcomes is measured on its own (``--ask``).
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from optimizer.candidate import Candidate, Observation
from optimizer.dirichlet_strategy import DirichletStrategy
from optimizer.pareto import non_dominated
from optimizer.space import SearchSpace
from optimizer.strategies import make_strategy
from optimizer.strategy import Strategy
from optimizer.surrogate import posterior_candidates
from scripts.bench.landscapes import OBJECTIVES, SHAPES, Landscape, search_items
from scripts.bench.search_rows import (
    SearchRow,
    SearchRun,
    TracePoint,
    append_run,
    read_runs,
    search_rows,
)

STRATEGIES = ("surrogate_cma", "cma", "scalar_cma", "nsga2", "dirichlet", "sobol")
CHECKPOINTS = (12, 25, 36, 50, 75, 100, 150, 200, 300)
SHORT_LANDSCAPES, SHORT_EVALUATIONS, SHORT_SEEDS = ("N8", "4x6"), 100, 2
FULL_LANDSCAPES = tuple(SHAPES)
FULL_EVALUATIONS, FULL_SEEDS = 300, 10
NUM_PENDING = 12
ASK_OUTCOMES = (300, 2000, 5000)


def run_search(landscape: Landscape, name: str, seed: int, evaluations: int) -> SearchRun:
    """Search a landscape once; returns how far it was along the way."""
    strategy_name, search = _settings(name)
    job = landscape.job(strategy_name, seed=seed, **search)
    space = landscape.space(job)
    strategy = make_strategy(job, space)
    # The noise of a candidate is the same whatever proposed it: drawn by seed and index.
    observations = [_tell_base(landscape, space, strategy, seed)]
    pending: list[Candidate] = []
    trace: list[TracePoint] = []
    times: list[float] = []
    items = 0.0
    driver_s = 0.0
    for index in range(1, evaluations + 1):
        while len(pending) < NUM_PENDING and index + len(pending) <= evaluations:
            start = time.perf_counter()
            pending.append(strategy.ask(index + len(pending), pending))
            times.append(time.perf_counter() - start)
        done = pending.pop(0)
        observations.append(landscape.observe(done, np.random.default_rng([seed, index])))
        items += search_items(observations[-1])
        start = time.perf_counter()
        strategy.tell(observations[-1])
        driver_s += time.perf_counter() - start
        if index in CHECKPOINTS or index == evaluations:
            trace.append(_trace_point(landscape, space, observations, index, items))
    driver_s += sum(times)
    ask_ms = statistics.median(times[-50:]) * 1e3
    return SearchRun(landscape.name, name, seed, tuple(trace), ask_ms, driver_s)


def _settings(name: str) -> tuple[str, dict[str, object]]:
    """Split ``strategy[key=value,...]`` into a strategy and its settings."""
    strategy, _, rest = name.partition("[")
    pairs = [pair.split("=") for pair in rest.rstrip("]").split(",") if pair]
    return strategy, {key: json.loads(value) for key, value in pairs}


def _tell_base(
    landscape: Landscape, space: SearchSpace, strategy: Strategy, seed: int
) -> Observation:
    recipe = space.recipe(np.zeros(space.shape).tolist())
    genotype = space.encode(recipe.weights, recipe.drop_ratios)
    base = Candidate(0, genotype, recipe, "baseline:base", seen=0)
    observation = landscape.observe(base, np.random.default_rng([seed, 0]))
    strategy.tell(observation)
    return observation


def _trace_point(
    landscape: Landscape,
    space: SearchSpace,
    observations: Sequence[Observation],
    evaluations: int,
    items: float,
) -> TracePoint:
    candidates, posterior = posterior_candidates(space, OBJECTIVES, observations)
    front = np.flatnonzero(non_dominated(posterior.mean))
    truth = np.array([landscape.truth(candidates[row].recipe) for row in front])
    chosen = int(np.argmax(posterior.mean.mean(axis=1)))
    best = float(landscape.truth(candidates[chosen].recipe).mean())
    return TracePoint(evaluations, items, landscape.relative_hypervolume(truth), best)


def measure_asks(outcomes: int, name: str = "surrogate_cma", asks: int = 9) -> float:
    """Return the median milliseconds of an ask after so many outcomes on N8, each with news.

    Outcomes are those of random search, half of which improve on nothing; between asks one more
    is told, so that nothing is answered from what the last ask computed.
    """
    landscape = Landscape("N8")
    job = landscape.job(name)
    space = landscape.space(job)
    strategy = make_strategy(job, space)
    random = DirichletStrategy(job, space)
    rng = np.random.default_rng(0)
    for index in range(outcomes):
        strategy.tell(landscape.observe(random.ask(index, []), rng))
    times = []
    for index in range(outcomes, outcomes + asks):
        start = time.perf_counter()
        candidate = strategy.ask(index, [])
        times.append(time.perf_counter() - start)
        strategy.tell(landscape.observe(candidate, rng))
    return statistics.median(times) * 1e3


def table(rows: Sequence[SearchRow]) -> str:
    """Return rows as Markdown."""
    lines = [
        "| landscape | strategy | seeds | hypervolume | best mean | evals to reach | ask ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        reached = ", ".join(
            f"{rival} {'never' if cost is None else round(cost)}"
            for rival, cost in row.evaluations_to_match.items()
        )
        lines.append(
            f"| {row.landscape}@{row.evaluations:.0f} | {row.strategy} | {row.seeds} "
            f"| {row.hv_mean:.3f} ± {row.hv_sd:.3f} | {row.best_mean:.3f} | {reached} "
            f"| {row.ask_ms:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what the arguments say and print it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="all landscapes, 10 seeds")
    parser.add_argument("--landscapes", nargs="+", choices=sorted(SHAPES))
    parser.add_argument("--strategies", nargs="+", default=list(STRATEGIES))
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--evaluations", type=int)
    parser.add_argument("--runs", type=Path, help="file of runs to go on with")
    parser.add_argument("--ask", action="store_true", help="measure the time of an ask only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args()
    if given.ask:
        print(json.dumps({str(count): measure_asks(count) for count in ASK_OUTCOMES}))
        return
    landscapes = given.landscapes or (FULL_LANDSCAPES if given.full else SHORT_LANDSCAPES)
    seeds = given.seeds or (FULL_SEEDS if given.full else SHORT_SEEDS)
    evaluations = given.evaluations or (FULL_EVALUATIONS if given.full else SHORT_EVALUATIONS)
    runs = read_runs(given.runs) if given.runs else []
    known = {run.key for run in runs}
    for seed in range(seeds):
        for landscape in (Landscape(name) for name in landscapes):
            for name in given.strategies:
                if (landscape.name, name, seed) in known:
                    continue
                runs.append(run_search(landscape, name, seed, evaluations))
                if given.runs:
                    append_run(given.runs, runs[-1])
    rows = search_rows(runs)
    if given.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(table(rows))


if __name__ == "__main__":
    main()
