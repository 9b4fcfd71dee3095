"""Workers as Ray actors: each a process of its own with one live model in it.

Nothing that Ray tells is trusted to come once or in order. The pool waits for at most one
evaluation per worker; a worker that died, hangs or cannot be reached is killed and replaced, the
reference to its call is dropped with it, and an outcome of another attempt than the last is dropped
wherever it comes from: the old processes of a node that was cut off may run on beside their
replacements. An idle worker gives a sign of life before it is given a request, which pays for
nothing that happened before. What is tried again is decided in ``workers.attempts`` and
``workers.toll``, where workers are in ``workers.ray_fleet``.
"""

import logging
import math
import time
from collections import deque
from contextlib import ExitStack
from typing import Any, Self

import ray
import ray.exceptions

from configs.errors import WorkerError, WorkerLostError, WorkerTimeoutError
from workers.attempts import POISONING_ERRORS, Assignment, Patience
from workers.job import RunnerFactory, WorkerSpec, failure_of
from workers.node_runner import build_runner
from workers.outcome import EvaluationRequest, Failed, Outcome, Stage
from workers.pool import WorkerState
from workers.ray_fleet import Fleet, is_of_node, reason_of
from workers.ray_session import ray_session, require_resources
from workers.ray_slot import Arrived, Slot
from workers.toll import Past, Toll
from workers.worker_process import NotStarted, Started

logger = logging.getLogger(__name__)

# Deadlines are looked at, and signals answered, at least this often.
_POLL_S = 0.5
# A worker whose recipes fail one after another is broken, more likely than they are.
_MAX_FAILED_RUNNING = 3


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
        past: What evaluations did to workers in earlier runs of the search.

    Raises:
        WorkerError: Ray cannot be started or joined, or lacks what the job asks for.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        make_runner: RunnerFactory = build_runner,
        *,
        past: Past | None = None,
    ) -> None:
        self._settings = spec.job.workers
        sizes = {
            split: sum(map(len, spec.manifest.items(split).values()))
            for split in spec.manifest.splits
        }
        self._patience = Patience(self._settings.hang_factor, self._settings.hang_floor_s, sizes)
        self._fleet = Fleet(spec, make_runner)
        self._waiting: deque[Assignment] = deque()
        self._settled: deque[Outcome] = deque()
        self._num_pending = 0
        self._is_draining = False
        self._toll = Toll(past or Past(), self._fleet.is_lost, self._settings.max_attempts)
        self._exit = ExitStack()
        try:
            self._exit.enter_context(ray_session(self._settings))
            self._fleet.fill(require_resources(self._settings))
        except BaseException:
            self.close()
            raise

    @property
    def num_free(self) -> int:
        """How many more requests may be submitted now: workers less pending requests.

        Workers that wait for room on the cluster do not count, unless all do: then one request
        waits for the first.
        """
        if self._is_draining:
            return 0
        states = [slot.state for slot in self._fleet.slots]
        usable = sum(state not in {"lost", "waiting"} for state in states)
        return max(0, (usable or int("waiting" in states)) - self._num_pending)

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
        self._num_pending += 1
        assignment = self._toll.assignment(request)
        if (reason := self._toll.refusal(assignment)) is not None:
            assignment.attempt = 1
            self._give_up(assignment, WorkerLostError(reason), "none")
            return
        self._waiting.append(assignment)
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

    def drain(self) -> None:
        """Take no further request; what is pending goes on."""
        self._is_draining = True

    def worker_states(self) -> dict[str, WorkerState]:
        """Worker name -> what it did when the pool last looked."""
        return {slot.name: slot.state for slot in self._fleet.slots}

    def worker_pids(self) -> dict[str, int]:
        """Worker name -> process id on its node, for the workers that are up."""
        return {slot.name: slot.process.pid for slot in self._fleet.slots if slot.process}

    def close(self) -> None:
        """End the workers, and Ray if this pool started it; may be called twice."""
        self._fleet.close()
        self._waiting.clear()
        self._settled.clear()
        self._num_pending = 0
        self._exit.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _dispatch(self) -> None:
        """Send waiting requests to idle workers, in their order.

        The next block of a candidate goes to the worker whose model holds its tensors, if that
        is idle; what killed a worker, to another node.
        """
        while self._waiting:
            idle = [slot for slot in self._fleet.slots if slot.state == "idle"]
            if not idle:
                return
            assignment = self._waiting.popleft()
            recipe_id, bad = assignment.recipe_id, assignment.died_on
            holders = [slot for slot in idle if slot.held == recipe_id]
            slot = (holders or [slot for slot in idle if slot.node not in bad] or idle)[0]
            if silent := self._fleet.silent(slot, idle):
                for each in silent:
                    self._fleet.replace(each)
                self._waiting.appendleft(assignment)
                continue
            self._fleet.run(slot, assignment)
            self._limit(slot, assignment)

    def _limit(self, slot: Slot, assignment: Assignment) -> None:
        """Say when a worker's evaluation is given up, as far as that is known by now."""
        hang_s = self._patience.limit_s(assignment.request, is_first=slot.num_done == 0)
        limit_s = self._settings.timeout_s or math.inf
        slot.is_hang_limit = hang_s is not None and hang_s < limit_s
        slot.deadline = slot.began + min(limit_s, math.inf if hang_s is None else hang_s)

    def _collect(self, wait_s: float) -> None:
        """Wait for at most one call to answer, then give up those that outlast their limit."""
        self._fleet.check()
        self._toll.forgive()
        calls = self._fleet.calls
        for slot in calls.values():
            # Who began before anything was known would have no limit for ever.
            if slot.assignment is not None and not slot.is_hang_limit:
                self._limit(slot, slot.assignment)
        nearest_s = min(slot.deadline for slot in calls.values()) - time.monotonic()
        ready, _ = ray.wait(list(calls), num_returns=1, timeout=max(0.0, min(wait_s, nearest_s)))
        for call in ready:
            self._take(call)
        now = time.monotonic()
        for call, slot in list(calls.items()):
            if (assignment := slot.assignment) is None or slot.deadline > now:
                continue
            # An answer that is there but not taken yet came in time.
            if not ray.wait([call], timeout=0)[0]:
                self._expire(slot, assignment)
        self._fleet.adjust()

    def _take(self, call: "ray.ObjectRef[Any]") -> None:
        """Take the answer of a finished call, whatever it is."""
        slot = self._fleet.calls.pop(call)
        try:
            answer = ray.get(call)
        except ray.exceptions.RayTaskError as error:
            # The process lives, but its answer could not be sent.
            self._fail(slot, error.cause or error)
        except ray.exceptions.RayError as error:
            self._lose(slot, error)
        else:
            slot.heard = time.monotonic()
            if isinstance(answer, Arrived | Started | NotStarted):
                self._fleet.welcome(slot, answer)
            else:
                self._accept(slot, answer)

    def _accept(self, slot: Slot, outcome: Outcome) -> None:
        """Take an outcome if it is that of the slot's request in its last attempt."""
        assignment = slot.assignment
        expected = assignment and (assignment.request.key, assignment.attempt)
        if assignment is None or (outcome.key, outcome.attempt) != expected:
            logger.warning(
                "%s: dropped an outcome of attempt %d of %s",
                slot.title,
                outcome.attempt,
                outcome.key,
            )
            self._fleet.replace(slot)
            if assignment is not None:
                self._waiting.appendleft(assignment)
            return
        slot.num_done += 1
        if not isinstance(outcome, Failed):
            self._patience.note(assignment.request, time.monotonic() - slot.began)
        elif assignment.may_pass(outcome):
            logger.warning(
                "%s: trying again after %s", slot.title, outcome.error_class, extra=assignment.ids
            )
            assignment.num_passing += 1
            self._waiting.appendleft(assignment)
            self._free(slot, outcome)
            return
        self._settled.append(outcome)
        self._free(slot, outcome)

    def _free(self, slot: Slot, outcome: Outcome) -> None:
        """Make a worker idle, or replace it where what it said shows that it is broken."""
        slot.assignment = None
        slot.deadline = math.inf
        slot.state = "idle"
        if not isinstance(outcome, Failed):
            slot.num_failed = 0
            return
        slot.num_failed += 1
        if outcome.error_class in POISONING_ERRORS:
            reason = "its accelerator context is broken"
        elif slot.num_failed >= _MAX_FAILED_RUNNING:
            reason = f"{slot.num_failed} recipes failed on it one after another"
        else:
            return
        logger.warning("%s on %s is replaced: %s", slot.title, slot.where, reason)
        self._fleet.replace(slot)

    def _fail(self, slot: Slot, error: BaseException) -> None:
        """Settle a worker's request as failed, or its start where it has none."""
        assignment = slot.assignment
        if assignment is None:
            self._fleet.fail_start(slot, f"{type(error).__name__}: {error}")
            return
        self._free(slot, self._give_up(assignment, error, slot.title))

    def _lose(self, slot: Slot, error: ray.exceptions.RayError) -> None:
        """Replace a worker whose process died; its request is tried again, but not for ever."""
        assignment, reason = slot.assignment, reason_of(error)
        is_innocent = is_of_node(error) or self._fleet.is_lost(slot.node)
        if assignment is None:
            self._fleet.fail_start(slot, reason, counts=not is_innocent)
            return
        logger.warning("%s on %s is lost: %s", slot.title, slot.where, reason, extra=assignment.ids)
        death = WorkerLostError(
            f"its worker's process died, the last time on {slot.where}: {reason} Look for lack "
            "of memory (dmesg) or a crash in native code"
        )
        self._try_again(slot, assignment, death, is_charged=not is_innocent)
        self._fleet.replace(slot)

    def _try_again(
        self, slot: Slot, assignment: Assignment, error: WorkerError, *, is_charged: bool = True
    ) -> None:
        """Give the request of a worker to another one, or fail it where that was done enough."""
        if is_charged:
            # Who ends this process may have ended its workers with it: that is not kept.
            self._toll.charge(assignment, slot.node, error, keep=not self._is_draining)
        if (message := self._toll.verdict(assignment, error)) is None:
            self._waiting.appendleft(assignment)
            return
        self._give_up(assignment, type(error)(message), slot.title)

    def _give_up(self, assignment: Assignment, error: BaseException, worker: str) -> Failed:
        """Settle a request as failed."""
        outcome = failure_of(
            error, assignment.request, assignment.attempt, worker=worker, stage=Stage.WORKER
        )
        self._settled.append(outcome)
        return outcome

    def _expire(self, slot: Slot, assignment: Assignment) -> None:
        """Give up an evaluation that outlasts its limit; its worker may hang, so it goes too."""
        if slot.is_hang_limit:
            limit_s = slot.deadline - slot.began
            logger.warning(
                "%s on %s hangs: no answer in %.0f s",
                slot.title,
                slot.where,
                limit_s,
                extra=assignment.ids,
            )
            hang = WorkerTimeoutError(
                f"no answer within {limit_s:.0f} s, {self._settings.hang_factor:g} times the "
                f"median of such evaluations (workers.hang_factor), the last time on {slot.where}"
            )
            self._try_again(slot, assignment, hang)
        else:
            late = WorkerTimeoutError(
                f"the evaluation outlasted workers.timeout_s = {self._settings.timeout_s:g} s; "
                "raise it if candidates may take that long"
            )
            self._give_up(assignment, late, slot.title)
        self._fleet.replace(slot)
