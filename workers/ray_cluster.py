"""What every node of a cluster must have before a search begins on it."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.errors import ClusterError
from configs.schema import JobConfig, Models
from configs.worker_settings import WorkerSettings
from workers.column_coefficients import coefficients_beside, recipe_path
from workers.pool_size import workers_that_fit
from workers.sources import missing_directories

logger = logging.getLogger(__name__)

# What a node has to start a process and look for directories. Whoever launches a search waits for
# 25 s (`--wait`), in which its driver starts, joins, and looks.
_LOOK_S = 10.0


def nodes_with_room(settings: WorkerSettings) -> list[dict[str, Any]]:
    """Return the nodes that are alive and large enough for one worker, as Ray describes them."""
    known = ray.nodes()
    return [
        node for node in known if node["Alive"] and workers_that_fit(settings, [node["Resources"]])
    ]


def require_models(job: JobConfig) -> None:
    """Look for the directories of a job's models on every node that may get a worker.

    Learned merges that its ``baselines`` name are looked for, too.

    Raises:
        ClusterError: A node lacks one; every one of them is named. Of a node that does not answer
            in time nothing is known, which is logged.
    """
    learned = {
        name: path
        for name, path in job.baselines.items()
        if coefficients_beside(recipe_path(path)) is not None
    }
    look = ray.remote(_missing)
    nodes = nodes_with_room(job.workers)
    calls = {
        look.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        ).remote(job.models, learned): node
        for node in nodes
    }
    ready, late = ray.wait(list(calls), num_returns=len(calls), timeout=_LOOK_S)
    for call in late:
        logger.warning("%s does not say whether it has the models", _name(calls[call]))
        ray.cancel(call, force=True)
    problems = []
    for call in ready:
        try:
            missing = ray.get(call)
        except ray.exceptions.RayError as error:
            logger.warning("%s cannot look for the models: %s", _name(calls[call]), error)
            continue
        problems += [f"  node {_name(calls[call])}: {_lacks(missing)}"] if missing else []
    if problems:
        raise ClusterError(
            "\n".join(
                [
                    f"{len(problems)} of {len(nodes)} nodes lack checkpoints; copy them there, or "
                    "name them by a path or hub id that all nodes have",
                    *sorted(problems),
                ]
            )
        )


def _missing(models: Models, learned: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return name and path of what is not on this node."""
    missing = missing_directories(models)
    return missing + [
        (name, path)
        for name, path in learned.items()
        if coefficients_beside(recipe_path(path)) is None
    ]


def _lacks(missing: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"`{name}` ({path})" for name, path in missing)


def _name(node: dict[str, Any]) -> str:
    return f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
