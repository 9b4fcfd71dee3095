"""Starting searches and ending them: processes of this machine, or jobs of a Ray cluster.

All of it goes through the command line's own ways (``mergefront run`` and ``resume``,
``optimizer.launch``): the service decides nothing about a search.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import yaml

from configs.errors import ClusterError, ConfigError, Problem
from configs.job_yaml import parse_yaml, read_yaml
from configs.load import job_of
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.archive.store import backend_of
from optimizer.service.cluster import Cluster
from optimizer.service.detached import write_whole
from optimizer.service.errors import BusyError, ConflictError
from optimizer.service.job_policy import check_job
from optimizer.service.life import Life
from optimizer.service.processes import (
    LAST_BYTES,
    DetachedProcess,
    command_line,
    read_record,
)
from optimizer.service.search_files import SearchFiles
from optimizer.service.searches import Searches
from optimizer.service.settings import ServiceSettings

# Of a job: what may change when its search goes on.
_CHANGEABLE = ("budget", "validation")
_ACTIVE = frozenset({"starting", "running", "stopping"})


class Runner:
    """Starts, continues and ends the searches of a directory."""

    def __init__(self, searches: Searches, settings: ServiceSettings) -> None:
        self._searches = searches
        self._settings = settings
        self._starting = threading.Lock()
        self._cluster = Cluster(settings)

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
        job = self.read_job(text, changes, str(self._searches.directory / "new.sqlite"))
        if start_from is not None and not start_from.archive.is_file():
            raise ConflictError(f"search `{start_from.key}` has no archive yet to begin with")
        if start_from is not None and self._settings.cluster is not None:
            raise ConflictError("a search on a cluster cannot begin with another one's archive")
        files = self._searches.begin(job.name)
        job = job.model_copy(update={"archive": str(files.archive)})
        try:
            with files.changing():
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
        with files.changing():
            self._refuse_active(files)
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
        if files.state.is_dir() and self._stop_own(files, force=force):
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
            ConflictError: It runs, nobody can say whether it does, or an export is being written.
        """
        with files.changing():
            self._refuse_active(files)
            if any(DetachedProcess(found).is_alive for found in files.exports.glob("*")):
                raise ConflictError("an export is being written; wait until it is there")
            self._searches.remove(files)

    @contextmanager
    def room(self) -> Iterator[None]:
        """Keep a place among what may run on this machine for who starts a process in it.

        Enter it last, and start at once: all others who start something wait. So a search's own
        lock, which may be long in coming, is taken before.

        Raises:
            BusyError: As much runs as may.
        """
        with self._starting:
            limit = self._settings.max_searches
            if (count := self.num_running()) >= limit:
                raise BusyError(
                    f"{count} searches and exports run on this machine, and at most {limit} may "
                    "(`mergefront serve --max-searches`); wait, or stop one"
                )
            yield

    def life(self, files: SearchFiles) -> Life:
        """Return how a search lives now; each request looks anew."""
        return Life(files, self._cluster)

    def process(self, files: SearchFiles) -> DetachedProcess:
        """Return the process of a search, that may have ended or never been."""
        return DetachedProcess(files.state)

    def last_output(self, files: SearchFiles) -> str:
        """Return the end of what a search printed, where it ran last.

        Raises:
            ClusterError: It was launched on a cluster that cannot be asked, or has forgotten it.
        """
        launch = self.life(files).launch
        if launch is None:
            return self.process(files).last_output()
        return self._cluster.output_of(launch)[-LAST_BYTES:]

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

    def _stop_own(self, files: SearchFiles, *, force: bool) -> bool:
        """Ask what was started here to end; returns whether there is anything that runs."""
        with files.changing():
            process = self.process(files)
            if process.is_alive and force:
                process.kill()
                return True
            if process.is_alive:
                is_asked = files.stopping.exists()
                if not is_asked:
                    write_whole(files.stopping, {"asked_at": time.time()})
                process.ask_to_end(again=is_asked)
                return True
            life = self.life(files)
            launch = life.launch
        # Unlocked: a cluster takes its time, and it is told of this very launch.
        if launch is None or life.launched_state not in _ACTIVE:
            return False
        self._cluster.end(launch)
        return True

    def _refuse_active(self, files: SearchFiles) -> None:
        life = self.life(files)
        try:
            is_launched = life.launched_state in _ACTIVE
        except ClusterError as error:
            raise ConflictError(
                f"nobody can say whether search `{files.key}` still runs: {error.message}; where "
                f"it surely does not, remove {files.launched}"
            ) from error
        if is_launched or life.owner is not None or life.process.is_alive:
            who = "" if life.owner is None else f" ({life.owner})"
            raise ConflictError(f"search `{files.key}` runs{who}; stop it first")

    def _job_content(self, files: SearchFiles) -> dict[str, object]:
        """Return the job of a search as it ran last, or as its archive has it."""
        if files.job.is_file():
            return read_yaml(files.job)[0]
        with Archive.open(files.archive) as archive:
            content: dict[str, object] = archive.job.model_dump(mode="json")
        return content

    def _start(self, files: SearchFiles, job: JobConfig) -> None:
        is_here = self._settings.cluster is None
        with self.room() if is_here else nullcontext():
            _write_job(files, job)
            files.stopping.unlink(missing_ok=True)
            # Only of the last life is there a record, of whatever kind it was.
            if is_here:
                files.launched.unlink(missing_ok=True)
                self.process(files).start(_command(files))
            else:
                self._cluster.launch(job, files)
                self.process(files).forget()


def _write_job(files: SearchFiles, job: JobConfig) -> None:
    text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    new = files.job.with_name(".job.yaml.new")
    new.write_text(text, encoding="utf-8")
    new.replace(files.job)


def _command(files: SearchFiles) -> list[str]:
    """Return the command that begins a search, or goes on with it."""
    if files.archive.exists():
        return command_line("resume", files.archive, "--job", files.job, "--plain")
    command = command_line("run", files.job, "--plain")
    earlier = read_record(files.start).get("from")
    return command if earlier is None else [*command, "--from", str(earlier)]
