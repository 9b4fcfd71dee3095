"""Search real merges by every strategy at equal budgets, and compare their fronts on unseen items.

    python -m scripts.bench.search_zoo --json
    python -m scripts.bench.search_zoo --full --seeds 5 --minutes 60

Two pools of one zoo (made, in minutes, if it is not there): ``zoo3`` has three specialists,
``zoo5`` two generalists as well; weights are free in [0, 1.5] and drop ratios in [0, 0.9], so
there are 6 and 10 genes. The project's own driver runs every search: baselines first, then what
the strategy asks for, on 64 search items per skill. Nothing is scored twice: item scores are
remembered by recipe and item (``scripts.bench.zoo_store``) under ``runs/``, so that a bench that
was interrupted, or is repeated with another strategy, goes on where it stands. What a search
proposed with other code is replayed from memory in seconds (``scripts.bench.zoo_traces``).

For every cost of ``zoo_runs.CHECKPOINTS``, and of ``EARLY_CHECKPOINTS`` where not every candidate
is scored in full, the front that would be returned is taken, by one rule for all, and scored on 128
report items per skill, which no strategy sees. ``hypervolume`` is that
of these scores above 0.9 times the base's, relative to that of all points that any run found.
Cost counts items: one that was generated and scored is one, one whose reference answer was read is
the share of it that the model's processor time says. ``best_mean`` is the mean of the three skills
of the merge with the best mean on search items, ``chosen_mean`` of the one that the driver chose
on select items; both on report items. The baselines, a dozen and a half, are part of every cost.

Without ``--full`` one seed and 30 evaluations of a few strategies, on half of the items or fewer:
a few minutes, in which everything runs and nothing is shown.
"""

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np

from configs.evaluation import SplitSizes
from evaluators.scores import FloatArray
from optimizer.pareto import hypervolume
from scripts.bench.search_rows import SearchRun, TracePoint, search_rows
from scripts.bench.zoo_job import POOLS, SKILLS, SPLITS
from scripts.bench.zoo_pool import PausedError, ZooLab
from scripts.bench.zoo_runs import BUDGET, VARIANTS, Trace, points_of, run_search_of
from scripts.bench.zoo_store import ScoreStore
from scripts.bench.zoo_tables import tables
from scripts.bench.zoo_traces import TraceKey, TraceStore, code_version
from scripts.zoo.build import build_zoo
from scripts.zoo.recipe import GENERALISTS, SPECIALISTS, Recipe

FULL_SEEDS = 5
SHORT_BUDGET = 30
SHORT_SPLITS = SplitSizes(search=32, select=32, report=32)
SHORT_STRATEGIES = ("surrogate_cma", "scalar_cma", "dirichlet")
LIKELIHOOD_COST = 0.62
"""Model time of a likelihood relative to that of a generated item; see ``results``."""


def run_all(options: argparse.Namespace, deadline: float) -> tuple[list[Trace], bool]:
    """Run what is not there yet; returns the traces, and whether all are of this code."""
    traces: list[Trace] = []
    complete = True
    kept = TraceStore(options.runs / "traces", code_version())
    with ScoreStore(options.runs / "scores.sqlite") as store:
        for pool in options.pool:
            with ZooLab(options.zoo, pool, store, splits=options.splits, deadline=deadline) as lab:
                for seed in range(options.seeds):
                    for rival in options.strategy:
                        trace = one_run(options, lab, kept, rival, seed)
                        complete &= trace is not None
                        traces += [trace] if trace else []
    if kept.num_old:
        print(
            f"{kept.num_old} of {len(traces)} traces are of other code than this", file=sys.stderr
        )
    return traces, complete and not kept.num_old


def one_run(
    options: argparse.Namespace, lab: ZooLab, kept: TraceStore, rival: str, seed: int
) -> Trace | None:
    """Return the trace of one run: a kept one, or a new one; None when time is over."""
    budget = options.budget if VARIANTS[rival].is_whole else options.raced_budget
    key = TraceKey(pool=lab.pool, rival=rival, seed=seed, budget=budget, splits=options.splits)
    trace = kept.recall(key, old=options.report_only)
    if trace is not None or options.report_only:
        return trace
    scored = lab.scored_items
    started = time.monotonic()
    try:
        trace = run_search_of(lab, rival, seed, budget=budget, likelihood_cost=LIKELIHOOD_COST)
    except PausedError:
        return None
    finally:
        print(
            f"{lab.pool} {rival} seed {seed}: {lab.scored_items - scored} items scored, "
            f"{time.monotonic() - started:.0f} s",
            file=sys.stderr,
            flush=True,
        )
    kept.keep(key, trace)
    return trace


def runs_of(traces: Sequence[Trace], *, relative: bool = True) -> list[SearchRun]:
    """Turn traces into runs; hypervolumes are ``relative`` to all points of all runs of a pool."""
    best = dict.fromkeys(POOLS, 1.0)
    if relative:
        best = {pool: best_volume([t for t in traces if t.pool == pool]) for pool in POOLS}
    return [
        SearchRun(
            landscape=trace.pool,
            strategy=trace.rival,
            seed=trace.seed,
            trace=tuple(_trace_points(trace, best[trace.pool])),
            ask_ms=trace.ask_ms,
            driver_s=trace.driver_s,
        )
        for trace in traces
    ]


def best_volume(traces: Iterable[Trace]) -> float:
    """Return the hypervolume of all held-out points of some runs together; 1 where none is."""
    found = list(traces)
    if not found:
        return 1.0
    points = [points_of(part.points) for trace in found for part in trace.checkpoints]
    return hypervolume(np.vstack(points), np.array(found[0].reference))


def _trace_points(trace: Trace, best: float) -> Iterable[TracePoint]:
    reference = np.array(trace.reference)
    for part in trace.checkpoints:
        points: FloatArray = points_of(part.points)
        yield TracePoint(
            evaluations=part.evaluations,
            items=part.generated + LIKELIHOOD_COST * part.likelihoods,
            hypervolume=hypervolume(points, reference) / best,
            best_mean=float(points[0].mean()),
            model_s=part.model_s,
        )


def report(traces: Sequence[Trace]) -> list[dict[str, object]]:
    """Return one row per pool and strategy, as ``--json`` prints them.

    Beside what ``search_rows`` says, lists with one number per seed, in the order of ``seed``:
    ``best_mean_of_seed`` and ``chosen``.
    """
    rows: list[dict[str, object]] = []
    runs = runs_of(traces)
    for row in search_rows(runs):
        own = [
            (trace, run)
            for trace, run in zip(traces, runs, strict=True)
            if (run.landscape, run.strategy) == (row.landscape, row.strategy)
        ]
        chosen = [float(np.mean(trace.chosen)) for trace, _ in own]
        extra = {
            "seed": [run.seed for _, run in own],
            "best_mean_of_seed": [run.trace[-1].best_mean for _, run in own],
            "chosen_mean": float(np.mean(chosen)),
            "chosen": chosen,
        }
        rows.append(dataclasses.asdict(row) | extra)
    return rows


def show(rows: Sequence[dict[str, object]]) -> None:
    """Print the rows as a table, and what each needs to reach the others."""
    heads = ["landscape", "strategy", "seeds", "evaluations", "items", "hv_mean", "hv_sd"]
    heads += ["best_mean", "chosen_mean", "model_s", "ask_ms", "driver_s"]
    print(" ".join(f"{name:>13}" for name in heads))
    for row in rows:
        cells = [row[name] for name in heads]
        print(" ".join(f"{c:>13.3f}" if isinstance(c, float) else f"{c!s:>13}" for c in cells))
    for row in rows:
        needed = row["items_to_match"]
        place = f"{row['landscape']} {row['strategy']}"
        print(f"items to match, {place}: itself {row['items_to_own']}, {needed}")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what it leaves open depends on ``--full``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.add_argument("--markdown", action="store_true", help="print tables over costs")
    parser.add_argument("--full", action="store_true", help="200 evaluations, 5 seeds; hours")
    parser.add_argument("--strategy", choices=sorted(VARIANTS), action="append", help="only these")
    parser.add_argument("--pool", choices=sorted(POOLS), action="append", help="only these")
    parser.add_argument("--seeds", type=int, help="seeds 0 to N - 1")
    parser.add_argument("--budget", type=int, help="full evaluations of a search")
    parser.add_argument(
        "--raced-budget", type=int, help="of those that race or screen (default: as the others)"
    )
    parser.add_argument("--minutes", type=float, default=float("inf"), help="then stop scoring")
    parser.add_argument(
        "--report-only", action="store_true", help="run nothing; take traces of any code"
    )
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"), help="made if missing")
    parser.add_argument("--zoo-seed", type=int, default=0, help="of a zoo that is made")
    parser.add_argument("--runs", type=Path, default=Path("runs/search_zoo"), help="what is kept")
    options = parser.parse_args(arguments)
    options.zoo = options.zoo.resolve()
    few = [name for name in SHORT_STRATEGIES if name in VARIANTS]
    options.strategy = options.strategy or (list(VARIANTS) if options.full else few)
    options.splits = SPLITS if options.full else SHORT_SPLITS
    options.pool = options.pool or list(POOLS)
    options.seeds = options.seeds or (FULL_SEEDS if options.full else 1)
    options.budget = options.budget or (BUDGET if options.full else SHORT_BUDGET)
    options.raced_budget = options.raced_budget or options.budget
    return options


def main() -> None:
    """Run, or go on with, the benchmark, and print what there is of it."""
    options = parse()
    deadline = time.monotonic() + 60 * options.minutes
    build_zoo(options.zoo, Recipe(tuned=(*SPECIALISTS, *GENERALISTS)), seed=options.zoo_seed)
    traces, complete = run_all(options, deadline)
    rows = report(traces)
    if options.json:
        print(json.dumps({"complete": complete, "rows": rows}))
        return
    if options.markdown:
        full_items = options.splits.search * len(SKILLS)
        print("\n".join(tables(runs_of(traces, relative=False), full_items)))
    else:
        show(rows)
    if not complete:
        print("not all runs are done; start again to go on", file=sys.stderr)


if __name__ == "__main__":
    main()
