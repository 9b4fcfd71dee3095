"""Time the reference solutions of HumanEval and MBPP in the sandbox, and programs per second.

    python -m scripts.bench.sandbox --json
    python -m scripts.bench.sandbox --kind weak --data DIRECTORY

Every solution goes through the metric of lm-eval's stock task, one at a time, as in an
evaluation, three times; its time is the median. ``overhead_ms`` is that less what the same code
takes in a plain ``exec`` of this process: what the sandbox costs. The slowest are named.
Rates are those of the other MBPP solutions, shared out to as many threads as servers. The data
(by default in MERGEFRONT_DATA) are JSONL files with the columns of the stock tasks.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.evaluation import SandboxKind
from evaluators.code_eval import sandboxed_code_eval
from evaluators.sandbox import Sandbox, select_sandbox, shared_sandbox

SUITES = ("humaneval", "mbpp", "mbpp_sanitized")
TARGET_MS = 10.0
"""What the sandbox may add to a solution, each."""
REPEATS = 3
SERVER_COUNTS = (1, 2)
NUM_SLOWEST = 6
_FILES = {
    "humaneval": ("humaneval/test.jsonl",),
    "mbpp": tuple(f"mbpp/{split}.jsonl" for split in ("prompt", "train", "validation", "test")),
    "mbpp_sanitized": tuple(
        f"mbpp/sanitized_{split}.jsonl" for split in ("prompt", "train", "validation", "test")
    ),
}

Metric = Callable[[str, str], float]
"""Tests and solution -> pass@1 by the stock task's own function."""


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem with its reference solution, as the stock task would ask and judge it."""

    name: str
    solution: str
    tests: str


def load_problems(data: Path, suite: str) -> list[Problem]:
    """Read the problems of a suite, all its splits.

    Args:
        data: Directory with ``humaneval`` and ``mbpp``.
        suite: One of ``SUITES``.

    Raises:
        FileNotFoundError: A file of the suite is missing.
    """
    return [
        _problem(suite, json.loads(line))
        for name in _FILES[suite]
        for line in (data / name).read_text(encoding="utf-8").splitlines()
    ]


def _problem(suite: str, doc: Mapping[str, Any]) -> Problem:
    name = f"{suite}/{doc['task_id']}"
    if suite == "humaneval":
        tests = f"{doc['test']}\ncheck({doc['entry_point']})"
        return Problem(name, doc["prompt"] + doc["canonical_solution"], tests)
    before = doc.get("test_imports", []) or [doc.get("test_setup_code", "")]
    return Problem(name, doc["code"], "\n".join([*before, *doc["test_list"]]))


def stock_metrics() -> dict[str, Metric]:
    """Return suite -> metric, as lm-eval's stock task files name them."""
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    tasks = Path(lm_eval.__file__).parent / "tasks"
    with sandboxed_code_eval():
        humaneval = _metric_of(load_yaml(tasks / "humaneval" / "humaneval.yaml", resolve_func=True))
        mbpp = _metric_of(load_yaml(tasks / "mbpp" / "mbpp.yaml", resolve_func=True))

    def humaneval_score(tests: str, solution: str) -> float:
        scores = humaneval(references=[tests], predictions=[[solution]], k=[1])
        return float(scores["pass@1"])

    def mbpp_score(tests: str, solution: str) -> float:
        return float(mbpp(references=tests, predictions=[solution]))

    return {"humaneval": humaneval_score, "mbpp": mbpp_score, "mbpp_sanitized": mbpp_score}


def _metric_of(config: Mapping[str, Any]) -> Callable[..., Any]:
    metric: Callable[..., Any] = config["metric_list"][0]["metric"]
    return metric


def time_suite(problems: Sequence[Problem], metric: Metric) -> dict[str, Any]:
    """Score every solution some times and return counts and milliseconds per solution."""
    milliseconds: dict[str, float] = {}
    overhead: dict[str, float] = {}
    failed = []
    for problem in problems:
        times, scores = [], []
        for _ in range(REPEATS):
            start = time.perf_counter()
            scores.append(metric(problem.tests, problem.solution))
            times.append(1000 * (time.perf_counter() - start))
        milliseconds[problem.name] = statistics.median(times)
        overhead[problem.name] = milliseconds[problem.name] - plain_ms(problem)
        if scores != [1.0] * REPEATS:
            failed.append(problem.name)
    return {
        "problems": len(problems),
        "passed": len(problems) - len(failed),
        "failed": failed,
        **_distribution("", milliseconds),
        **_distribution("overhead_", overhead),
    }


def _distribution(kind: str, milliseconds: Mapping[str, float]) -> dict[str, Any]:
    values = list(milliseconds.values())
    slowest = sorted(milliseconds, key=lambda name: -milliseconds[name])[:NUM_SLOWEST]
    return {
        f"{kind}mean_ms": round(statistics.fmean(values), 2),
        f"{kind}median_ms": round(statistics.median(values), 2),
        f"{kind}p99_ms": round(statistics.quantiles(values, n=100)[98], 2),
        f"{kind}at_most_10_ms": sum(value <= TARGET_MS for value in values),
        f"{kind}slowest_ms": {name: round(milliseconds[name], 1) for name in slowest},
    }


def plain_ms(problem: Problem) -> float:
    """Milliseconds that a problem's code itself takes in this process: dataset code, no model's.

    The median of as many runs as in the sandbox; what it prints is dropped.
    """
    code = compile(f"{problem.solution}\n{problem.tests}", problem.name, "exec")
    times = []
    for _ in range(REPEATS):
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            # No model wrote this: it is a published data set's own solution, and what it takes
            # without a sandbox is what is measured.
            exec(code, {})  # noqa: S102
            times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def programs_per_second(programs: Sequence[str], kind: SandboxKind, servers: int) -> float:
    """Run programs on some servers from as many threads, the servers' start not counted."""
    with Sandbox(kind, servers=servers) as sandbox, ThreadPoolExecutor(servers) as threads:
        list(threads.map(sandbox.run, [["import time\ntime.sleep(0.2)"]] * servers))
        start = time.perf_counter()
        list(threads.map(sandbox.run, [[program] for program in programs]))
        return len(programs) / (time.perf_counter() - start)


def start_seconds(kind: SandboxKind) -> float:
    """Seconds from nothing to the first verdict."""
    with Sandbox(kind) as sandbox:
        start = time.perf_counter()
        sandbox.run(["pass"])
        return time.perf_counter() - start


def measure(data: Path, kind: SandboxKind) -> dict[str, Any]:
    """Return everything that is printed for one kind of sandbox."""
    select_sandbox(kind)
    metrics = stock_metrics()
    shared_sandbox().run(["pass"])
    suites = {suite: time_suite(load_problems(data, suite), metrics[suite]) for suite in SUITES}
    slow = suites["mbpp"]["slowest_ms"]
    quick = [p for p in load_problems(data, "mbpp") if p.name not in slow]
    programs = [f"{problem.solution}\n{problem.tests}" for problem in quick]
    return {
        "kind": kind,
        "start_ms": round(1000 * statistics.median(start_seconds(kind) for _ in range(5)), 1),
        "suites": suites,
        "programs_per_s": {
            str(servers): round(programs_per_second(programs, kind, servers), 1)
            for servers in SERVER_COUNTS
        },
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--kind", choices=("strict", "weak"), default="strict")
    parser.add_argument("--data", type=Path, default=os.environ.get("MERGEFRONT_DATA"))
    parser.add_argument("--json", action="store_true", help="one JSON object instead of lines")
    options = parser.parse_args()
    if options.data is None:
        sys.exit("no data: set MERGEFRONT_DATA or give --data DIRECTORY")
    found = measure(options.data, options.kind)
    if options.json:
        print(json.dumps(found))
        return
    for suite, row in found["suites"].items():
        print(
            f"{suite}: {row['passed']} of {row['problems']} pass, mean {row['mean_ms']} ms, "
            f"median {row['median_ms']} ms; the sandbox adds at most 10 ms to "
            f"{row['overhead_at_most_10_ms']}"
        )
    print(f"start: {found['start_ms']} ms; programs per second by servers:", end=" ")
    print(", ".join(f"{count}: {rate}" for count, rate in found["programs_per_s"].items()))


if __name__ == "__main__":
    main()
