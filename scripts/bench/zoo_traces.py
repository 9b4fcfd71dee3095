"""Traces of the search benchmark on real merges, kept until the code that made them changes.

A trace is what a search proposed, and what its fronts were worth on unseen items. Both follow
from code and from scores; scores are remembered (``scripts.bench.zoo_store``). So a trace of other
code is no lost work: its search is replayed, which scores only what other proposals need, and
nothing where they are the same. Until then it is an old result, and said to be one.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from configs.evaluation import SplitSizes
from scripts.bench.zoo_job import ROOT
from scripts.bench.zoo_runs import VARIANTS, Trace

_BENCH_FILES = ("merge_lab.py", "zoo_job.py", "zoo_pool.py", "zoo_runs.py")


def code_version() -> str:
    """Name the code that could change a trace: 10 hexadecimal digits."""
    files = [
        file for part in ("configs", "optimizer") for file in sorted((ROOT / part).rglob("*.py"))
    ]
    files += [ROOT / "scripts" / "bench" / name for name in _BENCH_FILES]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:10]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceKey:
    """Which search a trace is of: everything but the code."""

    pool: str
    rival: str
    seed: int
    budget: int
    splits: SplitSizes

    @property
    def file_name(self) -> str:
        """The name of its file; what the rival's name means counts, too."""
        content = repr((VARIANTS[self.rival], self.splits)).encode()
        digest = hashlib.sha256(content).hexdigest()[:6]
        return f"{self.pool}-{self.rival}-{self.seed}-{self.budget}-{digest}.json"


class TraceStore:
    """Traces as files of one directory.

    Args:
        directory: Made when the first trace is kept.
        version: Of the code that runs now.
    """

    def __init__(self, directory: Path, version: str) -> None:
        self._directory = directory
        self._version = version
        self.num_old = 0
        """How many traces of other code were returned."""

    def recall(self, key: TraceKey, *, old: bool = False) -> Trace | None:
        """Return the trace of a search that this code would run; ``old`` takes any code's."""
        path = self._directory / key.file_name
        if not path.exists():
            return None
        content = json.loads(path.read_text())
        is_old = content["code"] != self._version
        if is_old and not old:
            return None
        self.num_old += is_old
        return Trace.from_json(content["trace"])

    def keep(self, key: TraceKey, trace: Trace) -> None:
        """Keep a trace, in the place of one that other code left."""
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._directory / key.file_name
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"code": self._version, "trace": trace.to_json()}))
        partial.rename(path)
