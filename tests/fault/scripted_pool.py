"""A pool whose finishing order is a script, and whose scores are a formula.

Of what is pending, the evaluation with the smallest hash finishes next: whoever has the same
evaluations in flight sees the same order, whatever happened before. Scores are item scores of
a smooth landscape with fixed noise per item, and a fixed share of recipes fails.
"""

import hashlib
import time
from typing import Self

import numpy as np

from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from workers.outcome import Completed, EvaluationKey, EvaluationRequest, Failed, Outcome, Stage
from workers.pool import WorkerState


def _unit(*parts: object) -> float:
    """A number in [0, 1) that is a function of the parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def scripted_outcome(job: JobConfig, manifest: Manifest, request: EvaluationRequest) -> Outcome:
    recipe = request.recipe
    if _unit("fail", recipe.recipe_id) < 0.06:
        return Failed(
            key=request.key, attempt=1, worker="scripted", stage=Stage.EVALUATE,
            error_class="EvaluationError", message="logits are not finite",
        )  # fmt: skip
    weights = np.array(recipe.weights)[:, 0]
    # The best merge is no equal weighting, so that a search has something to win.
    quality = np.exp(-3 * ((weights - [0.3, 0.7, 1.2]) ** 2).sum()) * (
        1 - 0.2 * np.array(recipe.drop_ratios).mean()
    )
    task_scores = {}
    for position, (task, items) in enumerate(manifest.items(request.key.split).items()):
        own = 0.6 * quality + 0.4 * min(1.0, weights[position % len(weights)])
        values = [float(_unit(task, item) < own) for item in items]
        task_scores[task] = TaskScores(task, tuple(items), np.array(values))
    return Completed(
        key=request.key, attempt=1, worker="scripted", weights_digest=recipe.recipe_id[:32],
        task_scores=task_scores,
    )  # fmt: skip


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
        key = min(self._pending, key=lambda key: _unit("order", key.candidate, key.split))
        return scripted_outcome(self._job, self._manifest, self._pending.pop(key))

    def worker_states(self) -> dict[str, WorkerState]:
        return {}

    def close(self) -> None:
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
