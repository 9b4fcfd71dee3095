"""Starting searches and ending them: processes of this machine, or jobs of a Ray cluster.

All of it goes through the command line's own ways (``mergefront run`` and ``resume``,
``optimizer.launch``): the service decides nothing about a search.
"""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import yaml

from configs.errors import ClusterError, ConfigError, Problem
from configs.job_yaml import parse_yaml, read_yaml
from configs.load import job_of
from configs.schema import JobConfig
from optimizer.archive import Archive
from optimizer.archive_store import backend_of
from optimizer.cli_guard import INTERRUPTED, TERMINATED
from optimizer.launch import submit
from optimizer.service.detached import write_whole
from optimizer.service.errors import BusyError, ConflictError
from optimizer.service.job_policy import check_job
from optimizer.service.models import State
from optimizer.service.processes import KILLED, DetachedProcess, command_line, read_record
from optimizer.service.searches import Searches, SearchFiles
from optimizer.service.settings import ServiceSettings

if TYPE_CHECKING:
    from workers.ray_jobs import JobClient, JobFacts

Where = Literal["local", "cluster", "elsewhere"]

# Of a job: what may change when its search goes on.
_CHANGEABLE = ("budget", "validation")
# How a search ends that can simply go on.
_INTERRUPTED = frozenset({INTERRUPTED, TERMINATED, KILLED, -15})
_ACTIVE = frozenset({"starting", "running", "stopping"})
_FACTS_S = 5.0


class Runner:
    """Starts, continues and ends the searches of a directory."""

    def __init__(self, searches: Searches, settings: ServiceSettings) -> None:
        self._searches = searches
        self._settings = settings
        self._starting = threading.Lock()
        self._facts: dict[str, tuple[float, JobFacts | None]] = {}
        self._cluster: JobClient | None = None
        self._unreachable: tuple[float, ClusterError] | None = None

    def read_job(self, text: str, changes: Mapping[str, object], archive: str) -> JobConfig:
        """Read the text of a job that came over HTTP.

        Raises:
            ConfigError: It is no valid job, or asks for what is not allowed; lists every problem.
        """
        limit, encoded = self._settings.max_job_bytes, text.encode("utf-8", "backslashreplace")
        if len(encoded) > limit:
            raise ConfigError.single("job", f"has {len(encoded)} bytes; at most {limit} are read")
        content, lines = parse_yaml(encoded, "the job")
        roots = self._settings.model_roots
        directory = roots[0] if roots else self._searches.directory
        overrides = {**changes, "archive": archive}
        job = job_of(content, overrides, name="the job", lines=lines, directory=directory)
        check_job(job, self._settings)
        return job

    def begin(
        self, text: str, changes: Mapping[str, object], *, start_from: SearchFiles | None = None
    ) -> SearchFiles:
        """Start a new search.

        Args:
            text: The job file.
            changes: Keys to set over it.
            start_from: Search that it begins with.

        Raises:
            ConfigError: The job cannot be used.
            BusyError: As many searches run as may.
            ConflictError: The warm start has no archive, or cannot be used on a cluster.
            ClusterError: The cluster does not take it.
        """
        # Nothing is made before it is known that the job can be read.
        name = self.read_job(text, changes, str(self._searches.directory / "new.sqlite")).name
        if start_from is not None and not start_from.archive.is_file():
            raise ConflictError(f"search `{start_from.key}` has no archive yet to begin with")
        if start_from is not None and self._settings.cluster is not None:
            raise ConflictError("a search on a cluster cannot begin with another one's archive")
        with self._starting:
            self._refuse_more()
            files = self._searches.begin(name)
            try:
                with files.changing():
                    job = self.read_job(text, changes, str(files.archive))
                    files.submitted.write_text(text, encoding="utf-8")
                    if start_from is not None:
                        write_whole(files.start, {"from": str(start_from.archive)})
                    self._start(files, job)
            except BaseException:
                self._searches.remove(files)
                raise
        return files

    def job_text(self, files: SearchFiles) -> str:
        """Return the job of a search as YAML, as it ran last.

        Raises:
            ArchiveError: There is neither a job nor an archive that can be read.
        """
        return yaml.safe_dump(self._job_content(files), sort_keys=False, allow_unicode=True)

    def resume(self, files: SearchFiles, changes: Mapping[str, object]) -> None:
        """Go on with a search.

        Raises:
            ConfigError: A change cannot be made, or the job asks for what is not allowed.
            ConflictError: It runs.
            BusyError: As many searches run as may.
        """
        refused = [
            Problem(f"changes.{key}", f"only keys of {' and '.join(_CHANGEABLE)} may change")
            for key in changes
            if key.partition(".")[0] not in _CHANGEABLE
        ]
        if refused:
            raise ConfigError("the search cannot go on so", refused)
        with self._starting, files.changing():
            self._refuse_active(files)
            self._refuse_more()
            content = self._job_content(files)
            # The archive may have been moved here.
            overrides = {**changes, "archive": str(files.archive)}
            job = job_of(content, overrides, name="the job")
            check_job(job, self._settings)
            self._start(files, job)

    def stop(self, files: SearchFiles, *, force: bool) -> None:
        """Ask a search to end, or end it at once.

        Raises:
            ConflictError: It does not run, or was started by somebody else.
            ClusterError: The cluster cannot be reached.
        """
        process = self.process(files)
        if process.is_alive:
            if force:
                process.kill()
                return
            write_whole(files.stopping, {"asked_at": time.time()})
            process.ask_to_end()
            return
        job_id = self.cluster_job(files)
        if job_id is not None and self._cluster_state(files) in _ACTIVE:
            self._facts[job_id] = (time.monotonic(), self._client().stop(job_id))
            return
        owner = backend_of(files.archive).owner()
        if owner is not None:
            raise ConflictError(
                f"search `{files.key}` is run by {owner}, which this service did not start; end "
                "it there"
            )
        raise ConflictError(f"search `{files.key}` does not run")

    def delete(self, files: SearchFiles) -> None:
        """Delete a search, its archive and its exports.

        Raises:
            ConflictError: It runs, or an export is being written.
        """
        with self._starting:
            with files.changing():
                self._refuse_active(files)
                if any(DetachedProcess(found).is_alive for found in files.exports.glob("*")):
                    raise ConflictError("an export is being written; wait until it is there")
            self._searches.remove(files)

    def state(self, files: SearchFiles, archived: State | None) -> State:
        """Say how a search is.

        Args:
            files: The search.
            archived: What its archive says; None where there is none.
        """
        process = self.process(files)
        if process.is_alive:
            if files.stopping.exists():
                return "stopping"
            # A finished search whose process lives is about to print its report.
            return "running" if archived in {"running", "finished"} else "starting"
        on_cluster = self._cluster_state(files)
        if on_cluster is not None and on_cluster != "finished":
            return "running" if on_cluster == "starting" and archived == "running" else on_cluster
        if archived == "running":
            return archived
        code = process.exit_code
        if code is not None and code not in {0, *_INTERRUPTED}:
            return "failed"
        return archived or "interrupted"

    def error(self, files: SearchFiles) -> str | None:
        """Return the last error that the process of a search printed."""
        job_id = self.cluster_job(files)
        if job_id is not None and (facts := self._known_facts(job_id)) is not None:
            return facts.message or None
        process = self.process(files)
        return process.error() or f"its process ended with exit code {process.exit_code}"

    def where(self, files: SearchFiles) -> Where | None:
        """Say where a search runs, or ran last; None where that is not known."""
        if self.cluster_job(files) is not None:
            return "cluster"
        if self.process(files).was_started:
            return "local"
        return None if backend_of(files.archive).owner() is None else "elsewhere"

    def process(self, files: SearchFiles) -> DetachedProcess:
        """Return the process of a search, that may have ended or never been."""
        return DetachedProcess(files.state)

    def cluster_job(self, files: SearchFiles) -> str | None:
        """Return under which id a search was launched on the cluster; None where it was not."""
        found = read_record(files.launched).get("job")
        return None if found is None else str(found)

    def num_running(self) -> int:
        """Count the processes of searches and exports on this machine."""
        return sum(
            process.is_alive
            for files in self._searches.all().values()
            for process in (
                self.process(files),
                *(DetachedProcess(found) for found in files.exports.glob("*")),
            )
        )

    def refuse_more(self) -> None:
        """Raise where as much runs on this machine as may.

        Raises:
            BusyError: It does.
        """
        limit = self._settings.max_searches
        if (count := self.num_running()) >= limit:
            raise BusyError(
                f"{count} searches and exports run on this machine, and at most {limit} may "
                "(`mergefront serve --max-searches`); wait, or stop one"
            )

    def _refuse_more(self) -> None:
        if self._settings.cluster is None:
            self.refuse_more()

    def _refuse_active(self, files: SearchFiles) -> None:
        owner = backend_of(files.archive).owner()
        active = self.process(files).is_alive or self._cluster_state(files) in _ACTIVE
        if active or owner is not None:
            who = "" if owner is None else f" ({owner})"
            raise ConflictError(f"search `{files.key}` runs{who}; stop it first")

    def _job_content(self, files: SearchFiles) -> dict[str, object]:
        """Return the job of a search as it ran last, or as its archive has it."""
        if files.job.is_file():
            return read_yaml(files.job)[0]
        with Archive.open(files.archive) as archive:
            content: dict[str, object] = archive.job.model_dump(mode="json")
        return content

    def _start(self, files: SearchFiles, job: JobConfig) -> None:
        text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        new = files.job.with_name(".job.yaml.new")
        new.write_text(text, encoding="utf-8")
        new.replace(files.job)
        files.stopping.unlink(missing_ok=True)
        if self._settings.cluster is not None:
            python = self._settings.cluster_python
            job_id = submit(job, self._client(), python=python, environment={})
            write_whole(files.launched, {"job": job_id})
            return
        if files.archive.exists():
            command = command_line("resume", files.archive, "--job", files.job, "--plain")
        else:
            command = command_line("run", files.job, "--plain")
            if (earlier := read_record(files.start).get("from")) is not None:
                command += ["--from", str(earlier)]
        self.process(files).start(command)

    def _client(self) -> "JobClient":
        from workers.ray_jobs import JobClient  # noqa: PLC0415 - imports Ray

        if self._settings.cluster is None:
            raise ClusterError("the service was started without --address")
        if self._unreachable is not None and time.monotonic() < self._unreachable[0] + _FACTS_S:
            raise self._unreachable[1]  # who asks for many searches waits once
        if self._cluster is None:
            try:
                self._cluster = JobClient(self._settings.cluster)
            except ClusterError as error:
                self._unreachable = (time.monotonic(), error)
                raise
        return self._cluster

    def _cluster_state(self, files: SearchFiles) -> State | None:
        """Say how the cluster's job of a search is; None where there is none."""
        job_id = self.cluster_job(files)
        if job_id is None:
            return None
        facts = self._known_facts(job_id)
        if facts is None:
            return "unknown"
        known: Mapping[str, State] = {
            "PENDING": "starting",
            "RUNNING": "starting",
            "SUCCEEDED": "finished",
            "STOPPED": "interrupted",
        }
        return known.get(facts.status, "failed")

    def _known_facts(self, job_id: str) -> "JobFacts | None":
        """Return what the cluster says of a job, asked for every few seconds at most."""
        kept = self._facts.get(job_id)
        if kept is not None and (
            time.monotonic() < kept[0] + _FACTS_S or (kept[1] is not None and kept[1].has_ended)
        ):
            return kept[1]
        try:
            facts = self._client().facts(job_id)
        except ClusterError:
            facts = None
        self._facts[job_id] = (time.monotonic(), facts)
        return facts
