"""How many workers fit: on this machine, or on the nodes of a cluster as they come and go."""

import math
from collections.abc import Iterable, Mapping

from configs.worker_settings import WorkerSettings
from workers.hardware import count_cores, count_gpus


def workers_that_fit(settings: WorkerSettings, nodes: Iterable[Mapping[str, float]]) -> int:
    """Return how many workers fit on nodes with these resources (``CPU``, ``GPU``).

    What other searches use of them is not known, and counts as free.
    """
    wanted = {"CPU": settings.cpus, "GPU": settings.gpus}
    needs = {kind: need for kind, need in wanted.items() if need > 0}
    if not needs:
        return sum(1 for _ in nodes)
    # Fractions of a GPU are not exact: 3 x 1/3 fit.
    return sum(
        min(math.floor(node.get(kind, 0.0) / need + 1e-9) for kind, need in needs.items())
        for node in nodes
    )


def local_count(settings: WorkerSettings) -> int:
    """Return the number of workers of a Ray that is started on this machine; at least one."""
    if settings.count != "auto":
        return settings.count
    cores = float(count_cores())
    gpus = float(count_gpus()) if settings.gpus else 0.0
    return max(1, workers_that_fit(settings, [{"CPU": cores, "GPU": gpus}]))
