"""What lives in a worker's process, whatever started the process."""

import logging
import os
import socket
from dataclasses import dataclass

from workers.job import RunnerFactory, WorkerSpec, failure_of
from workers.json_log import about, log_as_worker
from workers.outcome import EvaluationRequest, Outcome, Stage
from workers.pool import EvaluationRunner

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Started:
    """A worker is ready for evaluations: its full name (worker, host, pid) and its pid."""

    name: str
    pid: int


@dataclass(frozen=True, slots=True)
class NotStarted:
    """A worker's process is there, but its runner could not be built.

    ``cause`` is text, since not every exception of every library survives pickling.
    """

    cause: str


class WorkerProcess:
    """Builds a runner once and runs one evaluation after another in it.

    Building is a call of its own, not the constructor: where this is a Ray actor, an error in it
    comes back as what it was, and not as an actor that died.
    """

    def __init__(self) -> None:
        self._runner: EvaluationRunner | None = None
        self._name = ""

    def start(
        self, spec: WorkerSpec, make_runner: RunnerFactory, worker: str
    ) -> Started | NotStarted:
        """Build the runner.

        Args:
            spec: What the runner is made from.
            make_runner: Builds it.
            worker: Short name of the worker, to which host and pid are added.
        """
        # OpenMP reads it when torch is imported, so before the runner is built. Ray's own value
        # is the number of reserved cores.
        os.environ["OMP_NUM_THREADS"] = str(spec.job.workers.threads)
        self._name = f"{worker}@{socket.gethostname()}:{os.getpid()}"
        log_as_worker(spec.search, self._name)
        try:
            self._runner = make_runner(spec, self._name)
        except Exception as error:
            logger.exception("%s: the runner could not be built", self._name)
            return NotStarted(cause=f"{type(error).__name__}: {error}")
        return Started(name=self._name, pid=os.getpid())

    def run(self, request: EvaluationRequest, attempt: int) -> Outcome:
        """Run one evaluation; an exception that a runner should not have raised is an outcome."""
        if self._runner is None:
            raise RuntimeError("`run` was called before `start` succeeded")
        key = request.key
        with about(candidate=key.candidate, split=key.split, attempt=attempt):
            try:
                return self._runner.run(request, attempt)
            except Exception as error:  # noqa: BLE001 - one outcome per request, whatever happens
                return failure_of(error, request, attempt, worker=self._name, stage=Stage.WORKER)

    def close(self) -> None:
        """Let the runner end what it started, before this process is killed."""
        if self._runner is not None:
            self._runner.close()
