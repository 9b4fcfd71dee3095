"""The workers of a pool as Ray actors: started, placed, counted and ended.

Decides nothing about evaluations, which ``workers.ray_pool`` does. A worker has a slot, whose
process may be replaced; of a cluster the number of slots follows the job, the nodes, and what its
autoscaler may start: an actor that waits for room is what it starts nodes for.
"""

import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import ray
import ray.exceptions

from configs.errors import WorkerError
from configs.worker_settings import WorkerSettings
from workers.attempts import Assignment
from workers.job import RunnerFactory, WorkerSpec
from workers.pool_size import local_count, workers_that_fit
from workers.ray_autoscaler import Autoscaler
from workers.ray_cluster import nodes_with_room
from workers.ray_slot import Arrived, Slot, WorkerActor
from workers.worker_process import NotStarted, Started

logger = logging.getLogger(__name__)

# What idle workers have to end their own processes before they are killed.
_CLOSE_S = 5.0
# What an idle worker has to answer, which takes it a millisecond; who has just said something is
# not asked.
_ANSWER_S = 10.0
_SOON_S = 0.5
_FRESH_S = 0.1
# An actor that has no process after this waits for room on a cluster.
_PLACE_S = 15.0
# How often a cluster is asked for its nodes.
_LOOK_S = 5.0
# A process that dies while it starts may have been unlucky (memory, a lost node), but not thrice.
_MAX_FAILED_STARTS = 3
# Ray's name for the id of a node among its labels.
_NODE_LABEL = "ray.io/node-id"


class Fleet:
    """All slots of a pool, and the calls to their actors.

    Args:
        spec: What workers are made from.
        make_runner: Builds the runner inside each worker's process; importable there by name.

    Attributes:
        slots: In the order of their numbers.
        calls: The calls whose answers count. Oldest first, since ray.wait prefers the front.
    """

    def __init__(self, spec: WorkerSpec, make_runner: RunnerFactory) -> None:
        self._spec = spec
        self._settings: WorkerSettings = spec.job.workers
        self._make_runner = make_runner
        self._is_cluster = self._settings.address is not None
        # Node -> how often no worker could be built there; those that get none any more.
        self._refusals: Counter[str] = Counter()
        self._avoided: set[str] = set()
        self._has_started_once = False
        self._start_failure = ""
        self._was_up_at = time.monotonic()
        self._numbers = itertools.count(1)
        self._looked_at = time.monotonic()
        self._autoscaler: Autoscaler | None = None
        self.slots: list[Slot] = []
        self.calls: dict[ray.ObjectRef[Any], Slot] = {}

    def fill(self, autoscaler: Autoscaler | None = None) -> None:
        """Make the slots that there should be, and start their workers; none is waited for.

        Args:
            autoscaler: What starts nodes of the cluster, if something does.
        """
        self._autoscaler = autoscaler
        self._add_until(self._wanted())

    def start(self, slot: Slot) -> None:
        """Create the actor of a slot and let it build its runner; neither is waited for."""
        slot.actor = self._actor_class().remote()
        slot.since = time.monotonic()
        slot.state = "starting"
        for call in (
            slot.actor.arrive.remote(),
            slot.actor.start.remote(self._spec, self._make_runner, slot.name),
        ):
            self.calls[call] = slot

    def silent(self, slot: Slot, idle: Sequence[Slot]) -> list[Slot]:
        """Ask an idle worker for a sign of life: nobody was told if it has died or froze since.

        What it would have been given next is not to blame then. Where it does not answer at once,
        whatever stopped it may have stopped others: all idle ones are asked, and waited for
        together.

        Returns:
            Those that gave none, the worker first; none where it did.
        """
        if time.monotonic() - slot.heard < _FRESH_S:
            return []
        asked = {slot.actor.ping.remote(): slot}
        if not ray.wait(list(asked), timeout=_SOON_S)[0]:
            asked |= {other.actor.ping.remote(): other for other in idle if other is not slot}
            ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_S)
        return [other for call, other in asked.items() if not self._has_answered(call, other)]

    def _has_answered(self, call: "ray.ObjectRef[Any]", slot: Slot) -> bool:
        try:
            ray.get(call, timeout=0)
        except ray.exceptions.GetTimeoutError:
            reason = f"no answer in {_ANSWER_S:g} s"
        except ray.exceptions.RayError as error:
            reason = reason_of(error)
        else:
            slot.heard = time.monotonic()
            return True
        logger.warning("%s on %s was lost while it was idle: %s", slot.title, slot.where, reason)
        return False

    def run(self, slot: Slot, assignment: Assignment) -> None:
        """Send a request to an idle worker."""
        assignment.attempt += 1
        slot.assignment = assignment
        slot.state, slot.held = "busy", assignment.recipe_id
        slot.began = time.monotonic()
        call = slot.actor.run.remote(assignment.request, assignment.attempt)
        self.calls[call] = slot

    def kill(self, slot: Slot) -> None:
        """End a worker's process, and forget the calls that it may still answer."""
        for call in [call for call, owner in self.calls.items() if owner is slot]:
            del self.calls[call]
        if slot.actor is not None and ray.is_initialized():
            ray.kill(slot.actor, no_restart=True)
        slot.actor = slot.arrived = slot.process = slot.assignment = None
        slot.held = ""
        slot.heard = -math.inf
        slot.deadline = math.inf
        slot.num_done = slot.num_failed = 0

    def welcome(self, slot: Slot, news: Arrived | Started | NotStarted) -> None:
        """Take notice of what a worker says while it starts.

        Raises:
            WorkerError: None has started, and this one cannot be built anywhere.
        """
        if isinstance(news, Arrived):
            slot.arrived = news
            # Ray may tell last what was said first.
            if slot.process is None:
                slot.state = "starting"
        elif isinstance(news, Started):
            slot.process, slot.state = news, "idle"
            slot.failed_starts = 0
            self._refusals.pop(slot.node, None)
            self._has_started_once = True
        elif self._is_cluster:
            self._refuse(slot, news.cause)
        elif self._has_started_once:
            self.fail_start(slot, news.cause)
        else:
            slot.state = "lost"
            raise WorkerError(f"a worker cannot be made from this job: {news.cause}")

    def fail_start(self, slot: Slot, reason: str, *, counts: bool = True) -> None:
        """Start a worker again that did not come up, a few times.

        Args:
            slot: Of the worker.
            reason: For the log, and for the error where this was the last one.
            counts: False where its node was lost.
        """
        logger.warning("%s did not start: %s", slot.name, reason)
        self._start_failure = reason
        slot.failed_starts += counts
        self.kill(slot)
        if slot.failed_starts < _MAX_FAILED_STARTS:
            self.start(slot)
        else:
            slot.state = "lost"

    def check(self) -> None:
        """Look whether there is still somebody to wait for.

        Raises:
            WorkerError: Every worker failed to start, or none has been up for too long.
        """
        if not self.calls:
            raise WorkerError(
                f"no worker is left: each failed {_MAX_FAILED_STARTS} times to start, "
                f"the last with: {self._start_failure}"
            )
        now, limit_s = time.monotonic(), self._settings.start_timeout_s
        if any(slot.state in {"idle", "busy"} for slot in self.slots):
            self._was_up_at = now
        elif now - self._was_up_at > limit_s:
            states = ", ".join(sorted({slot.state for slot in self.slots}))
            last = f"; the last failed with: {self._start_failure}" if self._start_failure else ""
            growth = self._autoscaler
            asked = f"; its autoscaler was asked, for up to {growth}" if growth else ""
            raise WorkerError(
                f"no worker has been up for {limit_s:g} s (workers.start_timeout_s), all are "
                f"{states}{last}{asked}. Look at `ray status` of the cluster"
            )

    def replace(self, slot: Slot) -> None:
        """Give a slot another process."""
        self.kill(slot)
        self.start(slot)

    def close(self) -> None:
        """End all workers; idle ones may end first what they started: a kill runs no handlers."""
        idle = [slot.actor for slot in self.slots if slot.state == "idle" and slot.actor]
        try:
            if idle and ray.is_initialized():
                calls = [actor.close.remote() for actor in idle]
                ray.wait(calls, num_returns=len(calls), timeout=_CLOSE_S)
        finally:
            for slot in self.slots:
                self.kill(slot)

    def adjust(self) -> None:
        """Let the slots follow the cluster: note who waits for room, add and remove workers."""
        now = time.monotonic()
        if not self._is_cluster or now - self._looked_at < _LOOK_S:
            return
        self._looked_at = now
        for slot in self.slots:
            is_placed = slot.arrived is not None or slot.state != "starting"
            if not is_placed and now - slot.since > _PLACE_S:
                slot.state = "waiting"
        if self._settings.count != "auto":
            return
        wanted = self._wanted()
        self._add_until(wanted)
        for slot in [slot for slot in reversed(self.slots) if slot.state in {"waiting", "lost"}]:
            if len(self.slots) > wanted:
                self.kill(slot)
                self.slots.remove(slot)

    def is_lost(self, node: str) -> bool:
        """Say whether a node is gone."""
        known = ray.nodes()
        return node not in {found["NodeID"] for found in known if found["Alive"]}

    def _refuse(self, slot: Slot, cause: str) -> None:
        """Start a worker again that could not be built on its node, elsewhere after a while."""
        node, where = slot.node, slot.where
        self._refusals[node] += 1
        with_room = {str(found["NodeID"]) for found in nodes_with_room(self._settings)}
        if not self._has_started_once and with_room <= self._refusals.keys():
            slot.state = "lost"
            raise WorkerError(f"a worker cannot be made from this job: {cause} ({where})")
        if self._refusals[node] >= _MAX_FAILED_STARTS and with_room - self._avoided - {node}:
            logger.warning("%s gets no worker any more: %s", where, cause)
            self._avoided.add(node)
            slot.failed_starts = 0
        self.fail_start(slot, f"{cause} ({where})")

    def _add_until(self, wanted: int) -> None:
        """Make slots until there are so many; those that no node has room for wait from now on."""
        room = self._room() if self._is_cluster else wanted
        while len(self.slots) < wanted:
            slot = Slot(f"worker-{next(self._numbers)}")
            self.slots.append(slot)
            self.start(slot)
            if len(self.slots) > room:
                slot.state = "waiting"

    def _wanted(self) -> int:
        if not self._is_cluster:
            return local_count(self._settings)
        if self._settings.count != "auto":
            return self._settings.count
        more = self._autoscaler.num_more(self._settings, ray.nodes()) if self._autoscaler else 0
        # With none there would be nobody to wait for.
        return max(1, self._room() + more)

    def _room(self) -> int:
        """Return how many workers fit on the nodes that there are."""
        nodes = [
            node["Resources"]
            for node in nodes_with_room(self._settings)
            if node["NodeID"] not in self._avoided
        ]
        return workers_that_fit(self._settings, nodes)

    def _actor_class(self) -> Any:  # noqa: ANN401 - Ray's own
        options: dict[str, Any] = {
            "num_cpus": self._settings.cpus,
            "num_gpus": self._settings.gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        if self._avoided:
            options["label_selector"] = {_NODE_LABEL: f"!in({','.join(sorted(self._avoided))})"}
        return ray.remote(WorkerActor).options(**options)


def is_of_node(error: ray.exceptions.RayError) -> bool:
    """Say whether a worker was lost with its node, or with the way to it."""
    if isinstance(error, ray.exceptions.ActorUnavailableError | ray.exceptions.NodeDiedError):
        return True
    return getattr(error, "preempted", False) or "node has died" in str(error)


def reason_of(error: ray.exceptions.RayError) -> str:
    """Return the part of Ray's account of a loss that says what happened."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[-1].partition(" Some common causes include")[0] if lines else ""
    return reason.rpartition("Worker exit detail: ")[2] or type(error).__name__
