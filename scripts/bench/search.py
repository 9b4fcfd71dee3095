"""Compare the searches at equal budgets, on closed-form landscapes and on real merges.

    OMP_NUM_THREADS=1 python -m scripts.bench.search --json
    OMP_NUM_THREADS=1 python -m scripts.bench.search --full --json

Part one: every strategy on every landscape of ``scripts.bench.landscapes``; ``screen`` as well
where there are companions. What is reported is the true hypervolume of the front that would be
returned, as a share of what can be reached (``scripts.bench.search_closed``). Part two: every
strategy on merges of a small zoo, ``zoo3`` and ``zoo5``, with held-out scores
(``scripts.bench.search_zoo``, which also says what its rows have beside those of part one).

``--json`` prints ``rows``, one per landscape and strategy, with ``hv_mean``, ``hv_sd``,
``evaluations``, ``items``, ``items_to_match`` (rival -> items after which the mean over seeds first
reached the rival's final value; null: never), ``items_to_own`` (the same of its own final value,
which is what a rival's items are to be divided by) and ``ask_ms``, and ``complete``: whether all
runs that were asked for are in them. Without ``--full`` every part is short, ten minutes on two
cores in all: everything runs, and nothing is shown. ``--full`` takes 10 seeds (5 on the zoo) and
hours; it goes on where it stopped, with the runs that ``--runs`` and ``--zoo-runs`` have.

``--ask`` measures instead what an ask costs at 300, 2,000 and 5,000 outcomes, and what else of the
strategy the driver waits for (``scripts.bench.ask_times``).
"""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.bench.ask_times import measure_asks
from scripts.bench.landscapes import SHAPES, Landscape
from scripts.bench.search_closed import (
    NUM_PENDING,
    SAMPLED_VARIANTS,
    SCREEN,
    VARIANTS,
    run_search,
    version_of,
)
from scripts.bench.search_rows import SearchRow, append_run, read_runs, search_rows

SHORT_EVALUATIONS, SHORT_SEEDS = 36, 1
FULL_EVALUATIONS, FULL_SEEDS = 200, 10
SHORT_SAMPLED_EVALUATIONS, FULL_SAMPLED_EVALUATIONS = 5, 20
"""Of a search that samples: by then it has what others end with."""
FULL_RUNS = Path("runs/search_closed.jsonl")
SHORT_ZOO_MINUTES, SHORT_ZOO_BUDGET, SHORT_RACED_BUDGET = 5.0, 20, 12
ASK_OUTCOMES = (300, 2000, 5000)
ASK_LANDSCAPES = ("N8", "4x6", "N8c")


def table(rows: Sequence[SearchRow]) -> str:
    """Return rows as Markdown."""
    lines = [
        "| landscape | strategy | seeds | items | hypervolume | best mean | evaluations (items) to "
        "reach | ask ms | driver s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        own = _cost(row.evaluations_to_own, row.items_to_own)
        reached = ", ".join(
            f"{rival} {_cost(cost, row.items_to_match[rival])}"
            for rival, cost in row.evaluations_to_match.items()
        )
        lines.append(
            f"| {row.landscape}@{row.evaluations:.0f} | {row.strategy} | {row.seeds} "
            f"| {row.items:.0f} | {row.hv_mean:.3f} ± {row.hv_sd:.3f} | {row.best_mean:.3f} "
            f"| own {own}; {reached} | {row.ask_ms:.0f} | {row.driver_s:.1f} |"
        )
    return "\n".join(lines)


def _cost(evaluations: float | None, items: float | None) -> str:
    if evaluations is None or items is None:
        return "never"
    return f"{evaluations:.0f} ({items:.0f})"


def run_closed(given: argparse.Namespace) -> list[SearchRow]:
    """Run what is missing of part one, seed by seed, and return its rows."""

    def budget_of(name: str) -> int:
        samples = name.startswith(SAMPLED_VARIANTS)
        return int(given.sampled_evaluations if samples else given.evaluations)

    # Runs of another length or version stay in the file, and are no runs of this benchmark.
    runs = [
        run
        for run in (read_runs(given.runs) if given.runs else [])
        if run.trace[-1].evaluations == budget_of(run.strategy)
        and run.version == version_of(run.strategy)
    ]
    known = {run.key for run in runs}
    for seed in range(given.seeds):
        for landscape in (Landscape(name) for name in given.landscapes):
            for name in given.strategies:
                budget = budget_of(name)
                key = (landscape.name, name, seed, budget, version_of(name))
                if key in known:
                    continue
                if name.startswith(SCREEN) and not landscape.shape.companions:
                    continue
                runs.append(run_search(landscape, name, seed, budget, num_pending=given.pending))
                if given.runs:
                    append_run(given.runs, runs[-1])
    return search_rows(runs)


def run_zoo(given: argparse.Namespace) -> tuple[list[dict[str, object]], bool]:
    """Run part two, or what is missing of it; returns its rows, and whether they are all."""
    from scripts.bench import search_zoo
    from scripts.bench.zoo_runs import VARIANTS as RIVALS
    from scripts.zoo.build import build_zoo
    from scripts.zoo.recipe import GENERALISTS, SPECIALISTS, Recipe

    arguments = ["--zoo", str(given.zoo), "--runs", str(given.zoo_runs)]
    minutes = float("inf")
    if given.full:
        arguments.append("--full")
    else:
        minutes = SHORT_ZOO_MINUTES
        arguments += ["--budget", str(SHORT_ZOO_BUDGET)]
        arguments += ["--raced-budget", str(SHORT_RACED_BUDGET)]
        arguments += [word for name in RIVALS for word in ("--strategy", name)]
    options = search_zoo.parse(arguments)
    build_zoo(options.zoo, Recipe(tuned=(*SPECIALISTS, *GENERALISTS)), seed=0)
    traces, complete = search_zoo.run_all(options, time.monotonic() + 60 * minutes)
    return search_zoo.report(traces), complete


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; what it leaves open depends on ``--full``."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--full", action="store_true", help="10 seeds, 200 evaluations; hours")
    parser.add_argument("--part", choices=("closed", "zoo"), action="append", help="only this")
    parser.add_argument("--landscapes", nargs="+", choices=sorted(SHAPES), default=list(SHAPES))
    parser.add_argument("--strategies", nargs="+", default=list(VARIANTS), help="of part one")
    parser.add_argument("--seeds", type=int, help="of part one")
    parser.add_argument("--evaluations", type=int, help="of part one")
    parser.add_argument("--sampled-evaluations", type=int, help="of those that sample")
    parser.add_argument("--pending", type=int, default=NUM_PENDING, help="evaluations at a time")
    parser.add_argument(
        "--runs", type=Path,
        help=f"of part one, to go on with, all of one --pending (with --full: {FULL_RUNS}, where "
        "that is the default)",
    )  # fmt: skip
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"), help="made if missing")
    parser.add_argument("--zoo-runs", type=Path, default=Path("runs/search_zoo"))
    parser.add_argument("--ask", action="store_true", help="measure the time of an ask only")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    given = parser.parse_args(arguments)
    given.part = given.part or ["closed", "zoo"]
    given.seeds = given.seeds or (FULL_SEEDS if given.full else SHORT_SEEDS)
    # Records do not say how many were pending.
    goes_on = given.full and given.pending == NUM_PENDING
    given.runs = given.runs or (FULL_RUNS if goes_on else None)
    given.evaluations = given.evaluations or (FULL_EVALUATIONS if given.full else SHORT_EVALUATIONS)
    given.sampled_evaluations = given.sampled_evaluations or (
        FULL_SAMPLED_EVALUATIONS if given.full else SHORT_SAMPLED_EVALUATIONS
    )
    return given


def main() -> None:
    """Run what the arguments say and print it."""
    given = parse()
    if given.ask:
        times = [measure_asks(Landscape(name), ASK_OUTCOMES) for name in ASK_LANDSCAPES]
        print(json.dumps([dataclasses.asdict(found) for found in times], indent=1))
        return
    closed = run_closed(given) if "closed" in given.part else []
    zoo, complete = run_zoo(given) if "zoo" in given.part else ([], True)
    if given.json:
        rows = [*(dataclasses.asdict(row) for row in closed), *zoo]
        print(json.dumps({"complete": complete, "rows": rows}, indent=1))
        return
    print(table(closed))
    if zoo:
        from scripts.bench.search_zoo import show

        show(zoo)
    if not complete:
        print("not all runs are done; start again to go on", file=sys.stderr)


if __name__ == "__main__":
    main()
