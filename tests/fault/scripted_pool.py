"""A pool whose finishing order is a script, and whose scores are a formula.

Of what is pending, the evaluation with the smallest hash finishes next: whoever has the same
evaluations in flight sees the same order, whatever happened before. Scores are those of
``scripts.bench.scripted``.
"""

import time
from typing import Self

from configs.schema import JobConfig
from evaluators.manifest import Manifest
from scripts.bench.scripted import scripted_outcome, unit
from workers.outcome import EvaluationKey, EvaluationRequest, Outcome
from workers.pool import WorkerState


class ScriptedPool:
    """Implements ``workers.pool.WorkerPool`` for ``capacity`` evaluations at a time."""

    def __init__(
        self, job: JobConfig, manifest: Manifest, *, capacity: int = 4, sleep_s: float = 0.0
    ) -> None:
        self._job, self._manifest = job, manifest
        self._capacity, self._sleep_s = capacity, sleep_s
        self._pending: dict[EvaluationKey, EvaluationRequest] = {}

    @property
    def num_free(self) -> int:
        return self._capacity - len(self._pending)

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def submit(self, request: EvaluationRequest) -> None:
        if not self.num_free or request.key in self._pending:
            raise ValueError(f"cannot submit {request.key}")
        self._pending[request.key] = request

    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        if not self._pending:
            raise ValueError("nothing is pending")
        time.sleep(self._sleep_s)
        # Who waits long comes before who is new.
        key = min(
            self._pending,
            key=lambda key: key.candidate / 20 + unit("order", key.candidate, key.split, key.block),
        )
        return scripted_outcome(self._job, self._manifest, self._pending.pop(key))

    def worker_states(self) -> dict[str, WorkerState]:
        return {}

    def close(self) -> None:
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
