"""Where evaluations run: the contract of every pool, and the pool inside this process."""

from collections import deque
from typing import Literal, Protocol, Self

from typing_extensions import override

from workers.job import failure_of
from workers.outcome import EvaluationRequest, Outcome, Stage

WorkerState = Literal["waiting", "starting", "idle", "busy", "lost"]
"""``waiting`` is for room on a cluster."""


class WorkerPool(Protocol):
    """Runs evaluations, several at once, and gives back their outcomes as they finish.

    Exactly one outcome comes back for every request, in finishing order; a worker that dies
    is replaced and its request tried again, up to a stated number of attempts. Used as a
    context manager, it ends what it started.
    """

    @property
    def num_free(self) -> int:
        """How many more requests may be submitted now."""
        ...

    @property
    def num_pending(self) -> int:
        """Requests submitted whose outcome was not taken yet."""
        ...

    def submit(self, request: EvaluationRequest) -> None:
        """Start an evaluation.

        Raises:
            ValueError: No worker is free.
        """
        ...

    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        """Wait for the next evaluation to finish; None when ``timeout_s`` passes first.

        Raises:
            ValueError: Nothing is pending.
            WorkerError: No worker can be started any more.
        """
        ...

    def worker_states(self) -> dict[str, WorkerState]:
        """Worker name -> what it does now."""
        ...

    def close(self) -> None:
        """End the workers that this pool started; pending requests are abandoned."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exc_info: object) -> None: ...


class EvaluationRunner(Protocol):
    """Runs one evaluation to its outcome; never raises for a candidate's own failure."""

    def run(self, request: EvaluationRequest, attempt: int = 1) -> Outcome:
        """Materialize, evaluate, and say what came of it."""
        ...

    def close(self) -> None:
        """End the processes that it started; may be called twice."""
        ...


class LocalPool(WorkerPool):
    """One evaluation at a time, in this process: for tests and for debugging a job."""

    def __init__(self, runner: EvaluationRunner) -> None:
        self._runner = runner
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
        """Run the waiting request; a call in this process cannot be interrupted."""
        if not self._queue:
            raise ValueError("nothing is pending; submit a request first")
        request = self._queue.popleft()
        try:
            return self._runner.run(request)
        except Exception as error:  # noqa: BLE001 - one outcome per request, whatever happens
            return failure_of(error, request, attempt=1, worker="local", stage=Stage.WORKER)

    def worker_states(self) -> dict[str, WorkerState]:
        """This process."""
        return {"local": "busy" if self._queue else "idle"}

    def close(self) -> None:
        """Forget what waits, and let the runner end what it started."""
        self._queue.clear()
        self._runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
