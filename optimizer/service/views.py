"""Searches as summaries: what lists, live views and the page of one search begin with."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from configs.errors import ArchiveError, ArchiveNotFoundError, MergefrontError
from configs.job_yaml import read_yaml
from configs.load import job_of
from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.archive.reader import ArchiveCounters
from optimizer.convergence import convergence_of
from optimizer.progress import progress_of
from optimizer.service.life import Life
from optimizer.service.models import (
    Cost,
    Evaluations,
    SearchStatus,
    SearchSummary,
    State,
    WorkerActivity,
)
from optimizer.service.result_models import Convergence, Progress
from optimizer.service.runner import Runner
from optimizer.service.search_files import SearchFiles
from optimizer.service.searches import OpenArchive, Searches, revision_of
from optimizer.spending import spending_of
from optimizer.status import Recorded, archived_verdict, recorded_of

_Stamp = tuple[tuple[int, int, int, int], ...]

_WRITTEN = ("-wal", "-journal")
_STEP_NS = 100_000_000
_EXPLAINED = frozenset({"failed", "unknown"})


@dataclass(frozen=True, slots=True)
class _Archived:
    """What a summary says of an archive, whoever writes it; see ``SearchSummary``."""

    name: str
    created_at: str
    begun_at: float | None
    is_finished: bool
    objectives: list[str]
    checkpoints: list[str]
    recorded: int
    in_flight: int
    budget: int
    failures: int
    elapsed_s: float
    choice: int | None
    revision: str


@dataclass(frozen=True, slots=True)
class SearchViews:
    """Says how searches are.

    Attributes:
        searches: Where they are found.
        runner: Who starts and stops them.
    """

    searches: Searches
    runner: Runner
    _jobs: dict[Path, tuple[int, JobConfig | None]] = field(default_factory=dict)
    _archived: dict[Path, tuple[_Stamp, _Archived]] = field(default_factory=dict)

    def summary(self, files: SearchFiles) -> SearchSummary:
        """Return the summary of a search, whatever is there of it."""
        life = self.runner.life(files)
        try:
            found = self._looked_at(files, partial(self._glance, files))
            return SearchSummary(**self._of_archive(files, life, found))
        except ArchiveNotFoundError:
            self._archived.pop(files.archive, None)
            return SearchSummary(**self._without_archive(files, life))
        except ArchiveError as error:
            return SearchSummary(**self._unreadable(files, life, error))

    def status(self, files: SearchFiles) -> SearchStatus:
        """Return all that is known of a search as a whole."""
        life = self.runner.life(files)
        try:
            with self.searches.reading(files) as opened:
                now = opened.archive.counters()
                archived = self._looked_at(files, partial(_archived, opened, now))
                recorded = opened.kept("recorded", recorded_of, at=now)
                details = opened.kept("status", partial(_details, recorded=recorded), at=now)
            return SearchStatus(
                **self._of_archive(files, life, archived), **details, **_running(files, life)
            )
        except ArchiveNotFoundError:
            found = self._without_archive(files, life)
        except ArchiveError as error:
            found = self._unreadable(files, life, error)
        nothing: dict[str, Any] = {
            "job": None,
            "preference": {},
            "stopped": {},
            "validated": {},
            "failed": {},
            "workers": [],
            "cost": None,
            "verdict": None,
        }
        return SearchStatus(**found, **nothing, **_running(files, life))

    def _glance(self, files: SearchFiles) -> _Archived:
        with self.searches.glancing(files) as opened:
            return _archived(opened, opened.archive.counters())

    def _looked_at(self, files: SearchFiles, look: Callable[[], _Archived]) -> _Archived:
        """Look at an archive, unless its files are as they were: it is asked for often."""
        stamp = _stamp(files.archive)
        known = self._archived.get(files.archive)
        if known is not None and known[0] == stamp:
            return known[1]
        found = look()
        if _is_settled(stamp):
            self._archived[files.archive] = stamp, found
        return found

    def _of_archive(self, files: SearchFiles, life: Life, found: _Archived) -> dict[str, Any]:
        archived: State = "finished" if found.is_finished else "interrupted"
        if life.owner is not None:
            archived = "running"
        state = life.state(archived, begun_at=found.begun_at)
        # The evaluations of the job as it runs may have changed on a resume.
        job = self._stored_job(files)
        budget = found.budget if job is None else job.budget.evaluations
        eta_s = None
        if state == "running" and found.recorded and found.elapsed_s:
            eta_s = max(0, budget - found.recorded) * found.elapsed_s / found.recorded
        return {
            "id": files.key,
            "name": found.name,
            "state": state,
            "advice": _advice(state),
            "error": life.error() if state in _EXPLAINED else None,
            "archive": self._relative(files),
            "created_at": found.created_at,
            "objectives": found.objectives,
            "checkpoints": found.checkpoints,
            "evaluations": Evaluations(
                recorded=found.recorded, in_flight=found.in_flight, budget=budget
            ),
            "failures": found.failures,
            "elapsed_s": found.elapsed_s,
            "eta_s": eta_s,
            "choice": found.choice,
            "revision": found.revision,
        }

    def _without_archive(self, files: SearchFiles, life: Life) -> dict[str, Any]:
        state = life.state(None)
        job = self._stored_job(files)
        return {
            "id": files.key,
            "name": files.key if job is None else job.name,
            "state": state,
            "advice": _advice(state),
            "error": life.error() if state in _EXPLAINED else None,
            "archive": self._relative(files),
            "created_at": None,
            "objectives": [] if job is None else list(job.objectives),
            "checkpoints": [] if job is None else list(job.models.checkpoints),
            "evaluations": Evaluations(
                recorded=0, in_flight=0, budget=0 if job is None else job.budget.evaluations
            ),
            "failures": 0,
            "elapsed_s": 0.0,
            "eta_s": None,
            "choice": None,
            "revision": "0",
        }

    def _unreadable(self, files: SearchFiles, life: Life, error: ArchiveError) -> dict[str, Any]:
        found = self._without_archive(files, life)
        return {**found, "state": "unknown", "advice": _advice("unknown"), "error": error.message}

    def _stored_job(self, files: SearchFiles) -> JobConfig | None:
        """Return the job of a search as it runs; None where this service never started it."""
        try:
            changed = files.job.stat().st_mtime_ns
        except OSError:
            return None
        known = self._jobs.get(files.job)
        if known is None or known[0] != changed:
            try:
                known = (changed, job_of(read_yaml(files.job)[0]))
            except MergefrontError:
                known = (changed, None)
            self._jobs[files.job] = known  # YAML takes long where somebody watches
        return known[1]

    def _relative(self, files: SearchFiles) -> str:
        return str(files.archive.relative_to(self.searches.directory))


def _running(files: SearchFiles, life: Life) -> dict[str, Any]:
    try:
        text: str | None = files.submitted.read_text(encoding="utf-8")
    except OSError:
        text = None
    return {
        "submitted_job": text,
        "runner": life.where,
        "pid": life.process.pid,
        "cluster_job": None if life.launch is None else life.launch.job,
    }


def _archived(opened: OpenArchive, now: ArchiveCounters) -> _Archived:
    archive, recorded = opened.archive, opened.kept("recorded", recorded_of, at=now)
    # Runs and their time are recorded without being counted.
    begun = [datetime.fromisoformat(run.started_at).timestamp() for run in archive.runs()]
    return _Archived(
        name=archive.job.name,
        created_at=archive.created_at,
        begun_at=begun[-1] if begun else None,
        is_finished=recorded.is_finished,
        objectives=list(archive.job.objectives),
        checkpoints=list(archive.job.models.checkpoints),
        recorded=recorded.evaluations,
        in_flight=recorded.in_flight,
        budget=archive.job.budget.evaluations,
        failures=sum(recorded.failures.values()),
        elapsed_s=archive.elapsed_s,
        choice=recorded.choice,
        revision=revision_of(now),
    )


def _stamp(archive: Path) -> _Stamp:
    """Return what changes with every write: device, inode, size and time of change of its files."""
    found = []
    for suffix in ("", *_WRITTEN):
        with suppress(FileNotFoundError):
            file = archive.with_name(archive.name + suffix).stat()
            found.append((file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns))
    return tuple(found)


def _is_settled(stamp: _Stamp) -> bool:
    """Whether the next write will change it: clocks of file systems go in steps."""
    return all(time.time_ns() - changed_ns > _STEP_NS for *_, changed_ns in stamp)


def progress_answer(archive: Archive) -> Progress:
    """Return the course of a search as columns."""
    points = progress_of(archive)
    ended = {
        outcome.key.candidate: outcome.finished_at for outcome in archive.outcomes("search")
    } | {index: stop.stopped_at for index, stop in archive.stops().items()}
    return Progress(
        candidate=[point.candidate for point in points],
        evaluations=[point.evaluations for point in points],
        items=[point.items for point in points],
        model_s=[point.model_s for point in points],
        volume=[point.volume for point in points],
        finished_at=[ended.get(point.candidate) for point in points],
    )


def convergence_answer(archive: Archive) -> Convergence:
    """Return how CMA-ES narrowed as columns."""
    found = convergence_of(archive)
    return Convergence(
        candidate=[spread.candidate for spread in found],
        sigma=[spread.sigma for spread in found],
        axis_ratio=[spread.axis_ratio for spread in found],
    )


def _details(archive: Archive, *, recorded: Recorded) -> dict[str, Any]:
    spending = spending_of(archive)
    return {
        "job": archive.job.model_dump(mode="json"),
        "preference": archive.job.preference,
        "stopped": recorded.stopped,
        "validated": recorded.validated,
        "failed": recorded.failures,
        "workers": _workers(archive),
        "cost": Cost(
            items=spending.total_items,
            model_s=sum(spending.model_s.values()),
            worker_s=spending.worker_s,
            gpu_hours=spending.worker_s * archive.job.workers.gpus / 3600,
        ),
        "verdict": archived_verdict(archive) if recorded.is_finished else None,
    }


def _workers(archive: Archive) -> list[WorkerActivity]:
    evaluations, failures = Counter[str](), Counter[str]()
    busy_s: defaultdict[str, float] = defaultdict(float)
    last: dict[str, str] = {}
    for outcome in archive.evaluations():
        evaluations[outcome.worker] += 1
        failures[outcome.worker] += outcome.scores is None
        busy_s[outcome.worker] += sum(outcome.seconds.values())
        last[outcome.worker] = outcome.finished_at
    return [
        WorkerActivity(
            name=name,
            evaluations=evaluations[name],
            failures=failures[name],
            busy_s=busy_s[name],
            last_finished_at=last[name],
        )
        for name in sorted(evaluations)
    ]


def _advice(state: State) -> str:
    return {
        "starting": "its checkpoints and tasks are being checked",
        "running": "it is under way",
        "stopping": "it finishes what is under way",
        "interrupted": "it can be resumed",
        "finished": "its choice can be exported; with a larger budget it goes on",
        "failed": "mend what its error says, and resume it",
        "unknown": "its archive or cluster cannot be read now",
    }[state]
