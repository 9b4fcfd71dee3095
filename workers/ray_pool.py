"""Workers as Ray actors: each a process of its own with one live model in it.

Nothing that Ray tells is trusted to come once or in order. The pool waits for at most one call
per worker; a worker that died, hangs or cannot be reached is killed and replaced, the reference
to its call is dropped with it, and an outcome that it may still produce surfaces nowhere.
Beside ``workers.ray_session`` this is the only module that imports ray.
"""

import logging
import math
import time
from collections import deque
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import ray
import ray.exceptions

from configs.errors import WorkerError, WorkerLostError, WorkerTimeoutError
from workers.job import JobRunner, RunnerFactory, WorkerSpec, failure_of
from workers.outcome import EvaluationRequest, Failed, Outcome, Stage
from workers.pool import WorkerState
from workers.ray_session import ray_session, require_resources
from workers.worker_process import NotStarted, Started, WorkerProcess

logger = logging.getLogger(__name__)

# Deadlines are looked at, and signals answered, at least this often.
_POLL_S = 0.5
# What idle workers have to end their own processes before they are killed.
_CLOSE_S = 5.0
# A process that dies while it starts may have been unlucky (memory, a lost node), but not thrice.
_MAX_FAILED_STARTS = 3
# After these the accelerator context of the process is broken for every later candidate.
_POISONING_ERRORS = frozenset({"AcceleratorError"})


@dataclass(slots=True)
class _Assignment:
    """A request on its way to an outcome; ``attempt`` counts the workers that took it."""

    request: EvaluationRequest
    attempt: int = 0


@dataclass(slots=True, eq=False)
class _Slot:
    """The place of one worker, whose process may be replaced.

    ``deadline`` is in seconds of ``time.monotonic``; ``held`` is the id of the recipe that the
    worker was given last, whose tensors its model may still hold.
    """

    name: str
    state: WorkerState = "starting"
    actor: Any = None
    process: Started | None = None
    assignment: _Assignment | None = None
    held: str = ""
    deadline: float = math.inf
    failed_starts: int = 0

    @property
    def title(self) -> str:
        """Name for outcomes: slot, and host and pid once they are known."""
        return self.process.name if self.process else self.name


class RayPool:
    """Runs evaluations in ``workers.count`` Ray actors, on this machine or on a cluster.

    Building a pool starts or joins Ray (or uses the one that this process has joined already)
    and returns while the workers are still starting; a request goes to the first worker that
    can take it. Build it in a thread that outlives it: a local Ray dies with the thread that
    started it, and so with a driver that is killed.

    Args:
        spec: Job, resolved checkpoints and manifest; ``job.workers`` says how many workers, with
            which resources and where, and how long and how often an evaluation is tried.
        make_runner: Builds the runner inside each worker's process; importable there by name.

    Raises:
        WorkerError: Ray cannot be started or joined, or lacks what the job asks for.
    """

    def __init__(self, spec: WorkerSpec, make_runner: RunnerFactory = JobRunner) -> None:
        self._spec = spec
        self._settings = spec.job.workers
        self._make_runner = make_runner
        self._slots = [_Slot(f"worker-{number}") for number in range(1, self._settings.count + 1)]
        # The calls whose answers count. Oldest first, since ray.wait prefers the front.
        self._calls: dict[ray.ObjectRef[Any], _Slot] = {}
        self._waiting: deque[_Assignment] = deque()
        self._settled: deque[Outcome] = deque()
        self._num_pending = 0
        self._has_started_once = False
        self._start_failure = ""
        self._exit = ExitStack()
        try:
            self._exit.enter_context(ray_session(self._settings))
            require_resources(self._settings)
            self._actor_class = ray.remote(WorkerProcess).options(
                num_cpus=self._settings.cpus,
                num_gpus=self._settings.gpus,
                max_restarts=0,
                max_task_retries=0,
            )
            for slot in self._slots:
                self._start(slot)
        except BaseException:
            self.close()
            raise

    @property
    def num_free(self) -> int:
        """How many more requests may be submitted now: workers less pending requests."""
        usable = sum(slot.state != "lost" for slot in self._slots)
        return max(0, usable - self._num_pending)

    @property
    def num_pending(self) -> int:
        """Requests submitted whose outcome was not taken yet."""
        return self._num_pending

    def submit(self, request: EvaluationRequest) -> None:
        """Give a request to an idle worker, or to the first that will have started.

        Raises:
            ValueError: No worker is free.
        """
        if self.num_free == 0:
            raise ValueError("no worker is free; take an outcome first")
        self._waiting.append(_Assignment(request))
        self._num_pending += 1
        self._dispatch()

    def next_outcome(self, timeout_s: float | None = None) -> Outcome | None:
        """Wait for the next evaluation to finish; None when ``timeout_s`` passes first.

        Raises:
            ValueError: Nothing is pending.
            WorkerError: The first worker cannot be started, or no worker any more.
        """
        if self._num_pending == 0:
            raise ValueError("nothing is pending; submit a request first")
        end = math.inf if timeout_s is None else time.monotonic() + timeout_s
        while not self._settled:
            remaining_s = end - time.monotonic()
            self._collect(max(0.0, min(_POLL_S, remaining_s)))
            self._dispatch()
            if not self._settled and remaining_s <= 0:
                return None
        self._num_pending -= 1
        return self._settled.popleft()

    def worker_states(self) -> dict[str, WorkerState]:
        """Worker name -> what it did when the pool last looked."""
        return {slot.name: slot.state for slot in self._slots}

    def worker_pids(self) -> dict[str, int]:
        """Worker name -> process id on its node, for the workers that are up."""
        return {slot.name: slot.process.pid for slot in self._slots if slot.process}

    def close(self) -> None:
        """End the workers, and Ray if this pool started it; may be called twice."""
        try:
            self._let_close()
        finally:
            for slot in self._slots:
                self._kill(slot)
        self._waiting.clear()
        self._settled.clear()
        self._num_pending = 0
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _start(self, slot: _Slot) -> None:
        """Create the actor and let it build its runner; neither is waited for."""
        slot.actor = self._actor_class.remote()
        self._calls[slot.actor.start.remote(self._spec, self._make_runner, slot.name)] = slot
        slot.state = "starting"

    def _kill(self, slot: _Slot) -> None:
        """End a worker's process, and forget the call that it may still answer."""
        for call in [call for call, owner in self._calls.items() if owner is slot]:
            del self._calls[call]
        if slot.actor is not None and ray.is_initialized():
            ray.kill(slot.actor, no_restart=True)
        slot.actor = slot.process = slot.assignment = None
        slot.held = ""
        slot.deadline = math.inf

    def _let_close(self) -> None:
        """Let idle workers end what they started: a kill runs no exit handlers."""
        idle = [slot.actor for slot in self._slots if slot.state == "idle" and slot.actor]
        if idle and ray.is_initialized():
            calls = [actor.close.remote() for actor in idle]
            ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_S)

    def _replace(self, slot: _Slot) -> None:
        self._kill(slot)
        self._start(slot)

    def _dispatch(self) -> None:
        """Send waiting requests to idle workers, in their order.

        The next block of a candidate goes to the worker whose model holds its tensors, if that
        is idle.
        """
        while self._waiting:
            recipe_id = self._waiting[0].request.recipe.recipe_id
            idle = [slot for slot in self._slots if slot.state == "idle"]
            if not idle:
                return
            slot = next((slot for slot in idle if slot.held == recipe_id), idle[0])
            slot.assignment = self._waiting.popleft()
            slot.assignment.attempt += 1
            slot.state, slot.held = "busy", recipe_id
            slot.deadline = time.monotonic() + (self._settings.timeout_s or math.inf)
            call = slot.actor.run.remote(slot.assignment.request, slot.assignment.attempt)
            self._calls[call] = slot

    def _collect(self, wait_s: float) -> None:
        """Wait for at most one call to answer, then give up those that outlast their limit."""
        if not self._calls:
            raise WorkerError(
                f"no worker is left: each failed {_MAX_FAILED_STARTS} times to start, "
                f"the last with: {self._start_failure}"
            )
        nearest_s = min(slot.deadline for slot in self._calls.values()) - time.monotonic()
        ready, _ = ray.wait(
            list(self._calls), num_returns=1, timeout=max(0.0, min(wait_s, nearest_s))
        )
        for call in ready:
            self._take(call)
        now = time.monotonic()
        for call, slot in list(self._calls.items()):
            # An answer that is there but not taken yet came in time.
            if slot.deadline <= now and not ray.wait([call], timeout=0)[0]:
                self._expire(slot)

    def _take(self, call: "ray.ObjectRef[Any]") -> None:
        """Take the answer of a finished call, whatever it is."""
        slot = self._calls.pop(call)
        try:
            answer = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            # The process lives, but its answer could not be sent.
            self._fail(slot, error.cause or error)
        except ray.exceptions.RayError as error:
            self._lose(slot, _reason_of(error))
        else:
            if isinstance(answer, Started):
                slot.process = answer
                slot.failed_starts = 0
                slot.state = "idle"
                self._has_started_once = True
            elif isinstance(answer, NotStarted) and not self._has_started_once:
                slot.state = "lost"
                raise WorkerError(f"a worker cannot be made from this job: {answer.cause}")
            elif isinstance(answer, NotStarted):
                self._fail_start(slot, answer.cause)
            else:
                self._settle(slot, answer)

    def _settle(self, slot: _Slot, outcome: Outcome) -> None:
        """Keep the outcome of a worker's request, and free the worker."""
        self._settled.append(outcome)
        slot.assignment = None
        slot.deadline = math.inf
        slot.state = "idle"
        if isinstance(outcome, Failed) and outcome.error_class in _POISONING_ERRORS:
            logger.warning("%s: its accelerator context is broken; replacing it", slot.title)
            self._replace(slot)

    def _fail(self, slot: _Slot, error: BaseException) -> None:
        """Settle a worker's request as failed, or its start where it has none."""
        if slot.assignment is None:
            self._fail_start(slot, f"{type(error).__name__}: {error}")
            return
        request, attempt = slot.assignment.request, slot.assignment.attempt
        self._settle(
            slot, failure_of(error, request, attempt, worker=slot.title, stage=Stage.WORKER)
        )

    def _lose(self, slot: _Slot, reason: str) -> None:
        """Replace a worker whose process died; its request is tried again, but not for ever."""
        assignment = slot.assignment
        if assignment is None:
            self._fail_start(slot, reason)
            return
        logger.warning("%s is lost: %s", slot.title, reason)
        if assignment.attempt < self._settings.max_attempts:
            self._waiting.appendleft(assignment)
        else:
            self._fail(
                slot,
                WorkerLostError(
                    f"the worker's process died in attempt {assignment.attempt} of "
                    f"{self._settings.max_attempts}: {reason} Look for lack of memory (dmesg) or "
                    "a crash in native code"
                ),
            )
        self._replace(slot)

    def _expire(self, slot: _Slot) -> None:
        """Give up an evaluation that outlasts its limit; its worker may hang, so it goes too."""
        limit_s = self._settings.timeout_s
        self._fail(
            slot,
            WorkerTimeoutError(
                f"the evaluation outlasted workers.timeout_s = {limit_s:g} s; "
                "raise it if candidates may take that long"
            ),
        )
        self._replace(slot)

    def _fail_start(self, slot: _Slot, reason: str) -> None:
        """Start a worker again that did not come up, a few times."""
        logger.warning("%s did not start: %s", slot.name, reason)
        self._start_failure = reason
        slot.failed_starts += 1
        self._kill(slot)
        if slot.failed_starts < _MAX_FAILED_STARTS:
            self._start(slot)
        else:
            slot.state = "lost"


def _reason_of(error: ray.exceptions.RayError) -> str:
    """Return the part of Ray's account of a loss that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].partition(" Some common causes include")[0] if lines else ""
    return reason.rpartition("Worker exit detail: ")[2] or type(error).__name__
