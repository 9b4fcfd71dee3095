"""What a worker does on a node of a cluster before it builds its runner.

The job was resolved where the driver runs. A node may have its own copies, or none yet: it finds or
fetches every model itself, one process at a time, and must come to the same digests. Those are
remembered in the user's cache, so that only the first worker of a node reads everything.
"""

from dataclasses import replace

from configs.errors import CorruptCheckpointError
from workers.fetched import machine_lock
from workers.job import JobRunner, WorkerSpec
from workers.sources import resolve_sources


def build_runner(spec: WorkerSpec, worker: str) -> JobRunner:
    """Build the runner of a worker, from the models of the node that it is on."""
    return JobRunner(on_this_node(spec), worker)


def on_this_node(spec: WorkerSpec) -> WorkerSpec:
    """Return what a worker is made from, with the directories that the models have here.

    Raises:
        CheckpointError: A model cannot be found or fetched here.
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
    return replace(spec, sources=here)
