"""A pool whose finishing order is a script, and whose scores are a formula.

Of what is pending, the evaluation with the smallest hash finishes next: whoever has the same
evaluations in flight sees the same order, whatever happened before. Scores are item scores of
a smooth landscape with fixed noise per item, and a fixed share of recipes fails. Companions follow
the landscape; fixed shares of recipes with drops find every reference unlikely, or only repeat
themselves.
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
    task_scores, companions = {}, {}
    broken = np.max(recipe.drop_ratios) > 0 and _unit("broken", recipe.recipe_id) < 0.2
    repeats = np.max(recipe.drop_ratios) > 0 and _unit("repeats", recipe.recipe_id) < 0.15
    tasks = list(manifest.items(request.key.split))
    asked = manifest.items(request.key.split) if request.items is None else request.items
    specs = [spec for objective in job.objectives.values() for spec in objective.tasks]
    with_companion = {spec.task for spec in specs if spec.companion}
    beside = asked if request.companions is None else request.companions
    if request.key.signal == "companions":
        asked, beside = {}, asked
    for task, items in beside.items():
        if task in with_companion:
            level = 20.0 if broken else 2.0 - quality
            values = [-level * (0.5 + _unit("bits", task, item)) for item in items]
            companions[task] = TaskScores(task, tuple(items), np.array(values))
    for task, items in asked.items():
        own = 0.6 * quality + 0.4 * min(1.0, weights[tasks.index(task) % len(weights)])
        values = [float(_unit(task, item) < own) for item in items]
        task_scores[task] = TaskScores(task, tuple(items), np.array(values))
    return Completed(
        key=request.key, attempt=1, worker="scripted", weights_digest=recipe.recipe_id[:32],
        task_scores=task_scores, companions=companions,
        texts={task: ("!" * 40 if repeats else "fine",) * len(asked[task]) for task in asked},
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
        # Who waits long comes before who is new.
        key = min(
            self._pending,
            key=lambda key: (
                key.candidate / 20 + _unit("order", key.candidate, key.split, key.block)
            ),
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
