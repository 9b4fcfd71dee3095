"""Checking, running and resuming a search from a program."""

import logging
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from configs.load import job_of
from configs.schema import JobConfig
from mergefront.search import Search
from optimizer.archive.archive import Archive
from optimizer.events import Event, Finished

if TYPE_CHECKING:
    from optimizer.preflight.preflight import Prepared
    from workers.pool import WorkerPool

logger = logging.getLogger("mergefront")

OnOutcome = Callable[[Finished], None]


def check(job: JobConfig, *, headers_only: bool = False) -> "Prepared":
    """Find everything that is wrong with a job, evaluating nothing.

    Args:
        job: From ``load_job``.
        headers_only: Read no weights.

    Returns:
        What a search needs: among it ``warnings``, and an ``estimate`` of what it costs.

    Raises:
        MergefrontError: All that was found, at once.
    """
    from optimizer.preflight.preflight import prepare

    return prepare(job, headers_only=headers_only)


def run(job: JobConfig, *, on_outcome: OnOutcome | None = None, in_process: bool = False) -> Search:
    """Search until the budget is spent, then validate and choose.

    Args:
        job: From ``load_job``; its archive must not exist.
        on_outcome: Called in this thread whenever a candidate is finished, baselines and
            candidates on held-out items too. What it raises ends the search, which ``resume``
            goes on with.
        in_process: Score in this process, one candidate after another, instead of starting
            workers: nothing to wait for where models are small.

    Raises:
        MergefrontError: The job cannot work, or too many candidates failed.
    """
    from optimizer.beginning import begun, on_cluster
    from optimizer.preflight.preflight import prepare

    if in_process:
        prepared = prepare(job)
        with prepared.new_archive() as archive:
            return _search(archive, prepared, on_outcome, in_process)
    with on_cluster(job):
        prepared = prepare(job)
        with begun(prepared) as archive:
            return _search(archive, prepared, on_outcome, in_process)


def resume(
    place: str,
    overrides: Mapping[str, object] | None = None,
    *,
    on_outcome: OnOutcome | None = None,
    in_process: bool = False,
) -> Search:
    """Go on with a search that was stopped, or with a larger budget.

    Args:
        place: Its archive.
        overrides: Dotted key -> value of what may change, ``{"budget.evaluations": 300}`` say.
        on_outcome: As for ``run``.
        in_process: As for ``run``.

    Raises:
        ConfigError: An override changes what is searched.
        MergefrontError: The search cannot go on here.
    """
    from optimizer.job_changes import refuse_unresumable
    from optimizer.preflight.preflight import prepare

    changes = overrides or {}
    refuse_unresumable(changes, "the search cannot go on so")
    with Archive.open(place, writable=True) as archive:
        content = archive.job.model_dump(mode="json")
        job = job_of(content, changes, name="the archived job")
        prepared = prepare(job, archive=archive)
        return _search(archive, prepared, on_outcome, in_process)


def _search(
    archive: Archive, prepared: "Prepared", on_outcome: OnOutcome | None, in_process: bool
) -> Search:
    """Run the search of an archive."""
    from optimizer.beginning import checking
    from optimizer.cli.running import watchers
    from optimizer.driver import run_search

    job = prepared.job
    for warning in prepared.warnings:
        logger.warning("%s", warning)
    if in_process:
        # The metrics are Ray's.
        telemetry = job.telemetry.model_copy(update={"metrics": False})
        job = job.model_copy(update={"telemetry": telemetry})

    def tell(event: Event) -> None:
        if on_outcome is not None and isinstance(event, Finished):
            on_outcome(event)

    with ExitStack() as stack:
        watching = stack.enter_context(watchers(archive, job))
        pool = stack.enter_context(_pool(archive, prepared, in_process))
        on_event = watching.beside(tell)
        if job.workers.address is not None and not in_process:
            from workers.ray_head import watching_head

            check = stack.enter_context(watching_head(job.workers.address))
            on_event = checking(check, on_event)
        given = prepared.baselines
        run_search(archive, pool, prepared.space, job=job, given=given, on_event=on_event)
    return Search(archive.place)


def _pool(archive: Archive, prepared: "Prepared", in_process: bool) -> "WorkerPool":
    from workers.job import JobRunner, WorkerSpec

    spec = WorkerSpec(prepared.job, prepared.sources, prepared.manifest, archive.uid)
    if in_process:
        from workers.pool import LocalPool

        return LocalPool(JobRunner(spec, "here"))
    from optimizer.remembered import past_of
    from workers.ray_pool import RayPool

    return RayPool(spec, past=past_of(archive))
