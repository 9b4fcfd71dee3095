"""What is wrong inside a search on purpose: workers that misbehave, and a pool that does.

Both say what they did: a worker appends a line to a file for every attempt that it begins, a pool
tells whoever made it. Which requests meet which fault is a function of the search's seed and the
request, so a record can be held against it (``expected_error``).
"""

import json
import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Self

from scripts.bench.scripted import scripted_outcome, unit
from scripts.zoo.item import make_rng
from workers.job import WorkerSpec
from workers.outcome import EvaluationKey, EvaluationRequest, Outcome
from workers.pool import WorkerState
from workers.ray_pool import RayPool

# Seconds after which an evaluation counts as hanging: `workers.hang_floor_s` of the searches.
HANG_S = 2.0
# Seconds that an evaluation takes.
_FASTEST_S, _SLOWEST_S = 0.01, 0.1
# Of how many recipes or requests each kind of fault is part, one after another.
_DEADLY = 0.03
_RAISES, _STALE, _LATE = 0.1, 0.08, 0.06
# Of how many outcomes a pool delivers twice, or later than others.
_DOUBLED, _HELD = 0.1, 0.1
_HELD_S = 0.5


@dataclass(frozen=True, slots=True)
class Begun:
    """A worker began an attempt: of which key, for which life of the driver, and how it fared.

    ``fault`` is what the worker did then, and empty where it did what it should.
    """

    key: EvaluationKey
    attempt: int
    life: int
    worker: str
    pid: int
    fault: str

    @classmethod
    def read(cls, path: Path) -> list["Begun"]:
        """Return everything that was noted; the last line may still be on its way."""
        if not path.exists():
            return []
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        noted = [json.loads(line) for line in lines if line.endswith("\n")]
        return [cls(**{**entry, "key": EvaluationKey(**entry["key"])}) for entry in noted]


def fault_of(seed: int, request: EvaluationRequest) -> str:
    """Say what a worker does wrong with a request, every time or the first time; empty: nothing."""
    if request.key.split != "search":
        return ""
    if unit("deadly", seed, request.recipe.recipe_id) < _DEADLY:
        return "recipe_deadly"
    draw = unit("fault", seed, request.recipe.recipe_id, astuple(request.key))
    for kind, share in (
        ("worker_raises", _RAISES), ("outcome_stale", _STALE), ("outcome_late", _LATE),
    ):  # fmt: skip
        if draw < share:
            return kind
        draw -= share
    return ""


def expected_error(seed: int, request: EvaluationRequest) -> str:
    """Return the class of the error that a request ends with; empty where it has an outcome."""
    errors = {"recipe_deadly": "WorkerLostError", "worker_raises": "RuntimeError"}
    return errors.get(fault_of(seed, request), "")


class FaultyRunner:
    """Takes a while and gives the scripted outcome, unless the request meets a fault.

    Args:
        spec: Job and manifest.
        worker: Name for outcomes.
        log: Where attempts are noted.
        life: Of the driver.
    """

    def __init__(self, spec: WorkerSpec, worker: str, *, log: Path, life: int) -> None:
        self._spec = spec
        self._worker = worker
        self._log, self._life = log, life
        self._last: Outcome | None = None

    def run(self, request: EvaluationRequest, attempt: int = 1) -> Outcome:
        """Return the outcome, raise, die, be late, or deliver the last outcome once more."""
        fault = fault_of(self._spec.job.seed, request)
        is_passing = fault in {"outcome_stale", "outcome_late"}
        if is_passing and (attempt > 1 or (fault == "outcome_stale" and self._last is None)):
            fault = ""
        self._note(Begun(request.key, attempt, self._life, self._worker, os.getpid(), fault))
        draw = unit("duration", request.recipe.recipe_id, request.key.split, request.key.block)
        time.sleep(_FASTEST_S + (_SLOWEST_S - _FASTEST_S) * draw)
        if fault == "recipe_deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "worker_raises":
            raise RuntimeError("raised on purpose")
        if fault == "outcome_stale" and self._last is not None:
            return self._last
        if fault == "outcome_late":
            # Around the limit: some come just in time.
            time.sleep(HANG_S * (0.8 + draw))
        outcome = scripted_outcome(self._spec.job, self._spec.manifest, request)
        self._last = replace(outcome, attempt=attempt, worker=self._worker)
        return self._last

    def close(self) -> None:
        """Nothing was started."""

    def _note(self, begun: Begun) -> None:
        # One write: many processes append.
        with self._log.open("ab", buffering=0) as file:
            file.write(json.dumps(asdict(begun)).encode() + b"\n")


class DisturbedPool:
    """A pool that delivers some outcomes twice, and some later than those that came after them.

    Implements ``workers.pool.WorkerPool`` around another one.

    Args:
        pool: Where evaluations run; closed by the caller.
        seed: Of what is disturbed.
        tell: Called with the kind of every fault.
    """

    def __init__(self, pool: RayPool, seed: int, tell: Callable[[str], None]) -> None:
        self._pool = pool
        self._random = make_rng(seed, "disturbed")
        self._tell = tell
        # What is delivered at a time of ``time.monotonic``.
        self._kept: list[tuple[float, Outcome]] = []

    @property
    def num_free(self) -> int:
        """As of the other pool."""
        return self._pool.num_free

    @property
    def num_pending(self) -> int:
        """With what is kept back."""
        return self._pool.num_pending + len(self._kept)

    def submit(self, request: EvaluationRequest) -> None:
        """As of the other pool."""
        self._pool.submit(request)

    def drain(self) -> None:
        """As of the other pool."""
        self._pool.drain()

    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        """Wait for an outcome of the other pool, or one that was kept back."""
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while (now := time.monotonic()) < end or self._due(now):
            if due := self._due(now):
                self._kept.remove(due)
                return due[1]
            until = min([end, *(at for at, _ in self._kept)])
            if not self._pool.num_pending:
                time.sleep(max(0.0, until - now))
                continue
            wait_s = None if math.isinf(until) else max(0.0, until - now)
            outcome = self._pool.next_outcome(wait_s)
            if outcome is not None and not self._keeps(outcome):
                return outcome
        return None

    def worker_states(self) -> dict[str, WorkerState]:
        """As of the other pool."""
        return self._pool.worker_states()

    def close(self) -> None:
        """Left to the caller."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _due(self, now: float) -> tuple[float, Outcome] | None:
        return min(
            (kept for kept in self._kept if kept[0] <= now), default=None, key=lambda k: k[0]
        )

    def _keeps(self, outcome: Outcome) -> bool:
        """Say whether an outcome is kept back; one that is to come twice is kept, and given."""
        draw = self._random.random()
        if draw >= _DOUBLED + _HELD:
            return False
        self._kept.append((time.monotonic() + self._random.uniform(0, _HELD_S), outcome))
        self._tell("outcome_doubled" if draw < _DOUBLED else "outcome_held")
        return draw >= _DOUBLED
