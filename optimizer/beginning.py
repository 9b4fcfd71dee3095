"""Where a search begins: what can be wrong with its workers is found before there is an archive."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from configs.schema import JobConfig
from optimizer.events import Event, OnEvent

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive
    from optimizer.preflight.preflight import Prepared


@contextmanager
def on_cluster(job: JobConfig) -> Iterator[None]:
    """Join the cluster that a job names, if it names one, and look whether it has what is needed.

    Checkpoints may take hours to read, and a record that was begun refuses a job that was mended:
    what can be wrong with a cluster is found before both.

    Raises:
        WorkerError: It cannot be joined, has no room for a worker, or a node lacks a checkpoint.
    """
    if job.workers.address is None:
        yield
        return
    from workers.ray_cluster import require_models
    from workers.ray_session import ray_session, require_resources

    with ray_session(job.workers):
        require_resources(job.workers)
        require_models(job)
        yield


@contextmanager
def begun(prepared: "Prepared", job_path: Path | None = None) -> "Iterator[Archive]":
    """Make the archive of a search once it can begin: Ray runs, with room for its workers.

    Within :func:`on_cluster`, which has seen to that where it is a cluster's.

    Args:
        prepared: What is searched.
        job_path: The file of the job; None where it says something else.

    Raises:
        WorkerError: There is no Ray, or too little room; then there is no archive, either.
        ArchiveExistsError: There is an archive already.
    """
    from workers.ray_session import ray_session, require_resources

    settings = prepared.job.workers
    with ExitStack() as stack:
        if settings.address is None:
            stack.enter_context(ray_session(settings))
            require_resources(settings)
        yield stack.enter_context(prepared.new_archive(job_path))


def checking(check: Callable[[], None], on_event: OnEvent) -> OnEvent:
    """Return what the driver is to call instead of ``on_event``, so that it checks, too."""

    def checked(event: Event) -> None:
        on_event(event)
        check()

    return checked
