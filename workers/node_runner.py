"""What a worker does on a node of a cluster before it builds its runner.

The job was resolved where the driver runs. A node may have its own copies, or none yet: it finds or
fetches every model itself, one process at a time, and must come to the same digests. Those are
remembered in the user's cache, so that only the first worker of a node reads everything.
"""

from dataclasses import replace

from configs.errors import CorruptCheckpointError
from configs.recipe import Source
from workers.column_coefficients import coefficients_of, recall_coefficients, recipe_path
from workers.fetched import machine_lock
from workers.job import JobRunner, WorkerSpec
from workers.sources import ResolvedSource, resolve_sources


def build_runner(spec: WorkerSpec, worker: str) -> JobRunner:
    """Build the runner of a worker, from the models of the node that it is on."""
    return JobRunner(on_this_node(spec), worker)


def on_this_node(spec: WorkerSpec) -> WorkerSpec:
    """Return what a worker is made from, with the directories that the models have here.

    Raises:
        CheckpointError: A model, or the coefficients of a learned merge, cannot be found here.
        CorruptCheckpointError: One has other tensors than where the search was started.
    """
    if spec.job.workers.address is None:
        return spec
    with machine_lock("models"):
        here = resolve_sources(spec.job.models)
    for expected, found in zip(spec.sources.everything, here.everything, strict=True):
        if found.digest != expected.digest:
            raise CorruptCheckpointError(
                f"{found.directory}: `{found.name}` has other tensors on this node than where the "
                f"search was started (digest {found.digest[:12]}, expected "
                f"{expected.digest[:12]}); copy it again",
                path=str(found.directory),
            )
    places = spec.job.baselines
    coefficients = tuple(_here(each, places.get(each.name)) for each in spec.sources.coefficients)
    return replace(spec, sources=replace(here, coefficients=coefficients))


def _here(wanted: ResolvedSource, place: str | None) -> ResolvedSource:
    """Find coefficients on this node; the job may not name them any more, but its archive does."""
    source = Source(name=wanted.name, digest=wanted.digest)
    if place is None:
        return recall_coefficients(source)
    return coefficients_of(source, recipe_path(place))
