"""One worker of a pool as a Ray actor: what lives in its process, and its place in the pool."""

import math
import os
import socket
from dataclasses import dataclass
from typing import Any

import ray

from workers.attempts import Assignment
from workers.pool import WorkerState
from workers.worker_process import Started, WorkerProcess


@dataclass(frozen=True, slots=True)
class Arrived:
    """A worker has a process: where."""

    host: str
    pid: int
    node: str


class WorkerActor(WorkerProcess):
    """What lives in a worker's process, as a Ray actor."""

    def arrive(self) -> Arrived:
        """Say where this process is, before anything is loaded."""
        return Arrived(socket.gethostname(), os.getpid(), ray.get_runtime_context().get_node_id())

    def ping(self) -> None:
        """Answer, which only a process does that lives and is idle."""


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one worker, whose process may be replaced.

    ``since``, ``began`` and ``deadline`` are in seconds of ``time.monotonic``: when its actor was
    made, its request was sent, and will be given up, and ``heard`` when it said something last.
    ``is_hang_limit`` tells a deadline that comes from medians. ``held`` is the id of the recipe
    that the worker was given last, whose tensors its model may still hold. ``num_done`` counts the
    requests of this process, ``num_failed`` those that failed one after another.
    """

    name: str
    state: WorkerState = "starting"
    actor: Any = None
    arrived: Arrived | None = None
    process: Started | None = None
    assignment: Assignment | None = None
    held: str = ""
    since: float = 0.0
    began: float = 0.0
    heard: float = -math.inf
    deadline: float = math.inf
    is_hang_limit: bool = False
    num_done: int = 0
    num_failed: int = 0
    failed_starts: int = 0

    @property
    def title(self) -> str:
        """Name for outcomes: slot, and host and pid once they are known."""
        return self.process.name if self.process else self.name

    @property
    def node(self) -> str:
        """Ray's id of the node where the process is; empty where it is not known."""
        return self.arrived.node if self.arrived else ""

    @property
    def where(self) -> str:
        """Node for messages."""
        return f"node {self.arrived.host}" if self.arrived else "an unknown node"
