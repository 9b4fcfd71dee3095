"""Real merges for the search benchmark: pools of the zoo, and workers that remember scores."""

from collections import deque
from pathlib import Path
from typing import Self

from typing_extensions import override

from configs.evaluation import SplitSizes
from scripts.bench.merge_lab import MergeLab, PausedError, failed
from scripts.bench.zoo_job import SPLITS, zoo_job
from scripts.bench.zoo_store import ScoreStore
from workers.outcome import Completed, EvaluationRequest, Failed, Outcome
from workers.pool import WorkerPool, WorkerState

__all__ = ["PausedError", "RememberingPool", "ZooLab"]


class ZooLab(MergeLab):
    """Scores merges of one pool of the zoo.

    Args:
        zoo: Directory of the zoo.
        pool: One of ``POOLS``.
        store: What was scored before.
        splits: Items per skill.
        deadline: As for :class:`MergeLab`.
    """

    def __init__(
        self,
        zoo: Path,
        pool: str,
        store: ScoreStore,
        *,
        splits: SplitSizes = SPLITS,
        deadline: float = float("inf"),
    ) -> None:
        self.zoo = zoo
        self.splits = splits
        self.pool = pool
        super().__init__(
            {
                "generate": zoo_job(zoo, pool, splits=splits),
                "likelihood": zoo_job(zoo, pool, kind="likelihood", splits=splits),
            },
            store,
            deadline=deadline,
        )


class RememberingPool(WorkerPool):
    """A ``WorkerPool`` of one worker in this process, which remembers what it scored.

    Args:
        lab: Where merges are scored.
        companion: Whether the job's tasks have companions.
    """

    def __init__(self, lab: MergeLab, *, companion: bool = False) -> None:
        self._lab = lab
        self._companion = companion
        self._queue: deque[EvaluationRequest] = deque()

    @property
    def num_free(self) -> int:
        """1 when nothing waits, else 0."""
        return 0 if self._queue else 1

    @property
    def num_pending(self) -> int:
        """Requests whose outcome was not taken yet."""
        return len(self._queue)

    def submit(self, request: EvaluationRequest) -> None:
        """Keep the request; it runs when its outcome is asked for."""
        if self._queue:
            raise ValueError("no worker is free; take an outcome first")
        self._queue.append(request)

    @override
    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        """Score the waiting request, or recall its scores; this cannot be interrupted."""
        if not self._queue:
            raise ValueError("nothing is pending; submit a request first")
        request = self._queue.popleft()
        items = request.items or self._lab.manifest.items(request.key.split)
        beside = items if request.companions is None else request.companions
        if request.key.signal == "companions":
            items = {}
        scores = self._lab.scores(request.recipe, items)
        if isinstance(scores, Failed):
            return failed(scores.message, request.key)
        # A lab may have no likelihoods at all.
        companions = (
            self._lab.scores(request.recipe, beside, "likelihood") if self._companion else {}
        )
        if isinstance(companions, Failed):
            return failed(companions.message, request.key)
        return Completed(
            key=request.key,
            attempt=1,
            worker="bench",
            weights_digest=self._lab.digest(request.recipe),
            task_scores=scores,
            companions=companions,
        )

    def worker_states(self) -> dict[str, WorkerState]:
        """This process."""
        return {"bench": "busy" if self._queue else "idle"}

    def close(self) -> None:
        """Forget what waits; the lab stays."""
        self._queue.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
