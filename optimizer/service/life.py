"""How a search lives, or lived last: its process, its job on a cluster, who writes its archive."""

from collections.abc import Mapping
from functools import cached_property
from typing import Literal

from configs.errors import INTERRUPTED, TERMINATED, ClusterError
from optimizer.archive.owner import Owner
from optimizer.archive.store import backend_of
from optimizer.service.cluster import Cluster, Launch, Said, launch_of
from optimizer.service.models import State
from optimizer.service.processes import KILLED, DetachedProcess, ProcessFacts
from optimizer.service.search_files import SearchFiles

Where = Literal["local", "cluster", "elsewhere"]

# How a search ends that can simply go on.
_INTERRUPTED = frozenset({INTERRUPTED, TERMINATED, KILLED, -15})
_STATES: Mapping[str, State] = {
    "PENDING": "starting",
    "RUNNING": "starting",
    "SUCCEEDED": "finished",
    "STOPPED": "interrupted",
}
"""What the cluster calls a job -> how its search is; all else has failed."""


class Life:
    """The last life of a search, as one request sees it: each fact is looked up once, when needed.

    Args:
        files: The search.
        cluster: Says what became of its job, where it has one.
    """

    def __init__(self, files: SearchFiles, cluster: Cluster) -> None:
        self._files = files
        self._cluster = cluster

    @cached_property
    def process(self) -> ProcessFacts:
        """Its process on this machine."""
        return DetachedProcess(self._files.state).facts()

    @cached_property
    def launch(self) -> Launch | None:
        """Its job on a cluster; None where it has none."""
        return launch_of(self._files)

    @cached_property
    def owner(self) -> Owner | None:
        """Who writes its archive; None where nobody does."""
        return backend_of(self._files.archive).owner()

    @cached_property
    def where(self) -> Where | None:
        """Where it runs, or ran last; None where that is not known."""
        if self.launch is not None:
            return "cluster"
        if self.process.was_started:
            return "local"
        return None if self.owner is None else "elsewhere"

    @property
    def launched_state(self) -> State | None:
        """How its job on the cluster is; None where there is none.

        One that the cluster has forgotten runs no more.

        Raises:
            ClusterError: The cluster cannot be asked.
        """
        if self.launch is None:
            return None
        said, error = self._said
        if error is not None:
            raise error
        return "interrupted" if said is None else _STATES.get(said.status, "failed")

    def state(self, archived: State | None, *, begun_at: float | None = None) -> State:
        """Say how it is.

        Args:
            archived: What its archive says; None where there is none.
            begun_at: When it was last started or resumed by its archive, seconds since 1970.
        """
        process = self.process
        if process.is_alive:
            if self._files.stopping.exists():
                return "stopping"
            # A finished search whose process lives is about to print its report.
            return "running" if archived in {"running", "finished"} else "starting"
        if archived == "running":  # whoever runs it, whatever became of an earlier life
            return archived
        on_cluster = self._on_cluster()
        if on_cluster is not None and on_cluster != "finished":
            return on_cluster
        code, ended_at = process.exit_code, process.ended_at
        # Somebody else may have gone on with it since.
        is_last = begun_at is None or ended_at is None or begun_at <= ended_at
        if is_last and code is not None and code not in {0, *_INTERRUPTED}:
            return "failed"
        return archived or "interrupted"

    def error(self) -> str | None:
        """Return the last error of one that failed, or why nobody knows how it is."""
        if self.launch is not None:
            said, error = self._said
            if error is not None:
                return error.message
            return None if said is None else said.message or None
        found = DetachedProcess(self._files.state).error()
        return found or f"its process ended with exit code {self.process.exit_code}"

    def _on_cluster(self) -> State | None:
        try:
            return self.launched_state
        except ClusterError:
            return "unknown"

    @cached_property
    def _said(self) -> tuple[Said | None, ClusterError | None]:
        if self.launch is None:
            return None, None
        try:
            return self._cluster.said_of(self.launch), None
        except ClusterError as error:
            return None, error
