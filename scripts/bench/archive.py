"""Measure the archive: how fast it records, and how soon it answers when it is large.

    python -m scripts.bench.archive --json
    python -m scripts.bench.archive --json --postgres postgresql://USER@HOST/DATABASE

Prints one JSON object. An evaluation has 3 tasks of 64 items; every record is on the disk when its
method returns. ``archive_outcomes_per_s`` counts outcomes, recorded and read back as what a
strategy is told; ``archive_evaluations_per_s`` counts proposals and outcomes together, two commits
each. ``fsyncs_per_s`` is what the same disk does with as many bytes appended to a plain file before
each fsync, and so the limit for commits. ``..._while_read`` are the same with a process that reads
the front all the time. The rest opens an archive with a million item scores: ``open_s`` opens it
and reads what ``mergefront front --raw`` prints, in a fresh process after its imports;
``front_command_s`` is that command from start to end, and ``..._cpu_s`` are processor seconds; each
is the median of ``--repeats``, and ``..._range`` the least and the most.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.evaluation import SPLITS
from configs.place import read_place
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.archive.store import AnyPlace
from optimizer.candidate import Candidate
from optimizer.space import SearchSpace
from scripts.bench.printing import print_report
from workers.outcome import Completed, EvaluationKey
from workers.sources import ResolvedSource, Sources

CHECKPOINTS = ("instruct", "code", "math")
NUM_ITEMS = 64
LARGE_ITEM_SCORES = 1_000_000

FSYNC_BYTES = 8192
"""About what a commit appends to the log: a page and its header, twice."""

_READ_FRONT = """
import sys, time
from optimizer.archive.archive import Archive
from optimizer.results.front_view import front_of, scored_candidates
while True:
    start = time.perf_counter(), time.process_time()
    with Archive.open(sys.argv[1]) as archive:
        rows = front_of(scored_candidates(archive, "search"))
    print(time.perf_counter() - start[0], time.process_time() - start[1], len(rows), flush=True)
    if sys.argv[2] == "once":
        break
    time.sleep(0.05)
"""


class Workload:
    """A made-up search: candidates and outcomes as fast as they can be recorded."""

    def __init__(self, num_items: int = NUM_ITEMS) -> None:
        """Prepare; ``num_items`` is per task and split."""
        self.job = JobConfig.model_validate(
            {
                "name": "benchmark",
                "models": {"base": "/base", "checkpoints": {n: f"/{n}" for n in CHECKPOINTS}},
                "objectives": {name: f"zoo_{name}" for name in CHECKPOINTS},
                "archive": "benchmark.sqlite",
            }
        )
        base, *tuned = (
            ResolvedSource(name, Path("/") / name, digest=name.encode().hex().ljust(64, "0"))
            for name in ("base", *CHECKPOINTS)
        )
        self.sources = Sources(base, tuple(tuned))
        self.items = {
            f"zoo_{name}": tuple(f"{name}-{item:04d}" for item in range(num_items))
            for name in CHECKPOINTS
        }
        splits = {
            split: {
                task: tuple(f"{split}-{item}" for item in ids) for task, ids in self.items.items()
            }
            for split in SPLITS
        }
        self.manifest = Manifest(splits, dict.fromkeys(self.items, "0" * 16))
        self._space = SearchSpace(self.job, self.sources)
        self._rng = np.random.default_rng(0)

    def begin(self, place: AnyPlace) -> Archive:
        """Make the archive."""
        archive = Archive.create(
            place, job=self.job, job_path=None, sources=self.sources, manifest=self.manifest
        )
        archive.begin_run()
        return archive

    def candidate(self, index: int) -> Candidate:
        """Propose at random."""
        genotype = self._rng.random(self._space.size)
        recipe = self._space.decode(genotype)
        return Candidate(index, genotype, recipe, "strategy:dirichlet", index)

    def outcome(self, index: int) -> Completed:
        """Score at random: right or wrong, with a skill per task."""
        scores = {}
        for task, ids in self.manifest.items("search").items():
            skill = self._rng.random()
            values = (self._rng.random(len(ids)) < skill).astype(np.float64)
            scores[task] = TaskScores(task, tuple(ids), values)
        return Completed(
            key=EvaluationKey(index, "search"),
            attempt=1,
            worker="benchmark",
            weights_digest=f"{index:064x}",
            task_scores=scores,
            texts={task: ("42",) * len(ids) for task, ids in self.items.items()},
            seconds={"materialize": 0.1, "forward": 1.0},
        )


@dataclass(frozen=True)
class Rates:
    """What was recorded per second, and how long a reader beside took for each front."""

    outcomes_per_s: float
    evaluations_per_s: float
    cpu_ms: float
    reader_s: float | None


def record(place: AnyPlace, count: int, *, watched: bool = False) -> Rates:
    """Record evaluations in a new archive, beside a process that reads it where asked."""
    work = Workload()
    outcome_s = proposal_s = cpu_s = 0.0
    with ExitStack() as stack:
        archive = stack.enter_context(work.begin(place))
        seconds = stack.enter_context(reading(place)) if watched else []
        for index in range(count):
            candidate, outcome = work.candidate(index), work.outcome(index)
            started, before = time.perf_counter(), time.process_time()
            archive.record_proposal(candidate)
            proposed = time.perf_counter()
            archive.record_outcome(outcome)
            if archive.observations()[-1].candidate.index != index:
                raise RuntimeError("what was recorded is not what is told")
            outcome_s += time.perf_counter() - proposed
            proposal_s += proposed - started
            cpu_s += time.process_time() - before
    return Rates(
        outcomes_per_s=count / outcome_s,
        evaluations_per_s=count / (outcome_s + proposal_s),
        cpu_ms=1000 * cpu_s / count,
        reader_s=statistics.median(seconds) if seconds else None,
    )


def fsync_rate(directory: Path, size_bytes: int, count: int) -> float:
    """Append to a plain file and wait for the disk each time; returns how often per second."""
    content = os.urandom(size_bytes)
    path = directory / "plain"
    with path.open("wb", buffering=0) as file:
        started = time.perf_counter()
        for _ in range(count):
            file.write(content)
            os.fsync(file.fileno())
        rate = count / (time.perf_counter() - started)
    path.unlink()
    return rate


@contextmanager
def reading(place: AnyPlace) -> Iterator[list[float]]:
    """Read the front all the time in another process; lends the seconds that each took."""
    seconds: list[float] = []
    command = [sys.executable, "-c", _READ_FRONT, str(place), "always"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reader:
        try:
            yield seconds
        finally:
            reader.terminate()
            printed = reader.communicate()[0].splitlines()
            seconds += [float(line.split()[0]) for line in printed if len(line.split()) == 3]


def build_large(path: Path, num_items: int) -> int:
    """Make an archive with a million item scores; returns the number of candidates."""
    work = Workload(num_items)
    count = -(-LARGE_ITEM_SCORES // (num_items * len(CHECKPOINTS)))
    with work.begin(path) as archive:
        for index in range(count):
            archive.record_proposal(work.candidate(index))
            archive.record_outcome(work.outcome(index))
    return count


def opening(path: Path, repeats: int) -> dict[str, object]:
    """Measure how soon a large archive answers, from a process that has just begun."""
    seconds: dict[str, list[float]] = {}
    for _ in range(repeats):
        command = [sys.executable, "-c", _READ_FRONT, str(path), "once"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wall, cpu, _rows = map(float, done.stdout.split())
        seconds.setdefault("open_s", []).append(wall)
        seconds.setdefault("open_cpu_s", []).append(cpu)
        for name, options in (("raw_front", ["--raw"]), ("front", [])):
            before, started = _children_cpu_s(), time.perf_counter()
            command = [sys.executable, "-m", "optimizer.cli", "front", str(path), "--json"]
            subprocess.run([*command, *options], capture_output=True, check=True)
            seconds.setdefault(f"{name}_command_s", []).append(time.perf_counter() - started)
            seconds.setdefault(f"{name}_command_cpu_s", []).append(_children_cpu_s() - before)
    report: dict[str, object] = {}
    for name, found in seconds.items():
        report[name] = statistics.median(found)
        report[f"{name}_range"] = [min(found), max(found)]
    return report


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(directory: Path, count: int, repeats: int, postgres: str | None) -> dict[str, object]:
    """Return the whole report."""
    path = directory / "archive.sqlite"
    alone = record(path, count)
    watched = record(directory / "watched.sqlite", count, watched=True)
    report: dict[str, object] = {
        "archive_outcomes_per_s": alone.outcomes_per_s,
        "archive_evaluations_per_s": alone.evaluations_per_s,
        "cpu_ms_per_evaluation": alone.cpu_ms,
        "fsyncs_per_s": fsync_rate(directory, FSYNC_BYTES, count),
        "archive_outcomes_per_s_while_read": watched.outcomes_per_s,
        "reader_s_while_written": watched.reader_s,
    }
    if postgres is not None:
        name = f"benchmark-{os.getpid()}-{int(time.time())}"
        found = record(read_place(postgres).beside(name), count)
        report["postgres_outcomes_per_s"] = found.outcomes_per_s
        report["postgres_evaluations_per_s"] = found.evaluations_per_s
    for num_items in (NUM_ITEMS, 334):
        large = directory / f"large-{num_items}.sqlite"
        candidates = build_large(large, num_items)
        report[f"{candidates}_candidates_of_{num_items * len(CHECKPOINTS)}_items"] = {
            "file_mib": large.stat().st_size / 2**20,
            **opening(large, repeats),
        }
    return report


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--outcomes", type=int, default=1000, help="how many are recorded")
    parser.add_argument("--repeats", type=int, default=5, help="how often archives are opened")
    parser.add_argument("--postgres", metavar="URL", help="measure that database, too")
    parser.add_argument("--dir", type=Path, help="on which disk; default: that of TMPDIR")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-", dir=options.dir) as scratch:
        found = measure(Path(scratch), options.outcomes, options.repeats, options.postgres)
    print_report(found, as_json=options.json)


if __name__ == "__main__":
    main()
