"""The searches that the service launches on a Ray cluster, and what the cluster says of them.

It is asked for all of its jobs at once, every few seconds at most: a list of many searches waits
for one answer, or for one that does not come. How a job ended is written down beside its search,
since clusters go when their work is done.
"""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import ClusterError
from configs.schema import JobConfig
from optimizer.launch import submit
from optimizer.service.detached import write_whole
from optimizer.service.processes import read_record
from optimizer.service.search_files import SearchFiles
from optimizer.service.settings import ServiceSettings

if TYPE_CHECKING:
    from workers.ray_jobs import JobClient, JobFacts

_END = "cluster-end.json"
_ANSWER_S = 5.0
"""How long an answer holds, and that there was none."""


@dataclass(frozen=True, slots=True)
class Launch:
    """A launch of a search.

    Attributes:
        job: Id of its job.
        address: Of the cluster that has it.
        end: File that says how it ended, once that is known.
    """

    job: str
    address: str
    end: Path


@dataclass(frozen=True, slots=True)
class Said:
    """What a cluster says of a job: Ray's status, and a message, which may be empty."""

    status: str
    message: str


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the cluster said, or why it did not, and when."""

    at_s: float
    jobs: "Mapping[str, JobFacts] | ClusterError"


class Cluster:
    """Launches searches on the cluster of the service, and ends them; safe for several threads."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._access = settings.cluster
        self._python = settings.cluster_python
        self._lock = threading.Lock()
        self._client: JobClient | None = None
        self._answer: _Answer | None = None

    def launch(self, job: JobConfig, files: SearchFiles) -> None:
        """Start a search there, and write down which job it is.

        Raises:
            ConfigError: The files that the job names are too large to be sent.
            ClusterError: The cluster does not take it.
        """
        with self._lock:
            client = self._connected()
        job_id = submit(job, client, python=self._python, environment={})
        with self._lock:
            # No answer to what was asked before knows it; what is asked now holds the lock.
            self._answer = None
        write_whole(files.launched, {"job": job_id, "address": client.address})

    def said_of(self, launch: Launch) -> Said | None:
        """Return what the cluster says of a launch; None where it knows of none (any more).

        Raises:
            ClusterError: It cannot be asked, or was another cluster.
        """
        ended = read_record(launch.end)
        if ended.get("job") == launch.job:
            return Said(str(ended.get("status")), str(ended.get("message")))
        self._refuse_others(launch)
        found = self._jobs().get(launch.job)
        return None if found is None else _noted(launch, found)

    def output_of(self, launch: Launch) -> str:
        """Return what a launch has printed so far; the head node keeps it.

        Raises:
            ClusterError: The cluster cannot be asked, knows of no such launch (any more), or is
                another one.
        """
        self._refuse_others(launch)
        with self._lock:
            client = self._connected()
        return client.logs(launch.job)

    def end(self, launch: Launch) -> None:
        """Ask a search to end, and wait until it has.

        Raises:
            ClusterError: The cluster cannot be reached, or the search does not end.
        """
        with self._lock:
            client = self._connected()
        _noted(launch, client.stop(launch.job))

    def _refuse_others(self, launch: Launch) -> None:
        if self._access is None:
            raise ClusterError(
                f"it was launched on {launch.address}, and the service was started without "
                "--address"
            )
        if launch.address != (here := self._access.address.rstrip("/")):
            raise ClusterError(f"it was launched on {launch.address}; the service uses {here}")

    def _jobs(self) -> "Mapping[str, JobFacts]":
        with self._lock:  # others wait for the same answer
            known = self._answer
            if known is None or time.monotonic() > known.at_s + _ANSWER_S:
                jobs = self._asked()
                known = self._answer = _Answer(time.monotonic(), jobs)
        if isinstance(known.jobs, ClusterError):
            raise ClusterError(str(known.jobs))
        return known.jobs

    def _asked(self) -> "Mapping[str, JobFacts] | ClusterError":
        try:
            return {facts.job_id: facts for facts in self._connected().jobs()}
        except ClusterError as error:
            # The next one asks whether anybody answers first, which it does not wait long for.
            self._client = None
            return error

    def _connected(self) -> "JobClient":
        from workers.ray_jobs import JobClient

        if self._access is None:
            raise ClusterError("the service was started without --address")
        if self._client is None:
            self._client = JobClient(self._access)
        return self._client


def launch_of(files: SearchFiles) -> Launch | None:
    """Return the launch of a search that was written down; None where there is none."""
    found = read_record(files.launched)
    job, address = found.get("job"), found.get("address")
    if not isinstance(job, str) or not isinstance(address, str):
        return None
    return Launch(job, address, files.state / _END)


def _noted(launch: Launch, facts: "JobFacts") -> Said:
    """Write down how a job ended, once it has."""
    said = Said(facts.status, facts.message)
    if facts.has_ended:
        content = {"job": launch.job, "status": said.status, "message": said.message}
        with suppress(OSError):  # it is asked for again
            write_whole(launch.end, content)
    return said
