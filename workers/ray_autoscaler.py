"""What the autoscaler of a cluster may start: which kinds of nodes, and how many of each.

Ray has no interface that says so, and nodes that are not there are no nodes to Ray. The autoscaler
reads it from its configuration, and so does this, on the head, wherever that is: among what a
platform has told the head, in the file that the autoscaler there was started with (``ray up``,
``ray start --autoscaling-config``), or in the RayCluster of Kubernetes.
"""

import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
import ray.exceptions
import yaml
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from configs.worker_settings import WorkerSettings
from workers.pool_size import workers_that_fit

logger = logging.getLogger(__name__)

# What the head has to start a process and look.
_LOOK_S = 10.0
# Ray's names: for what only the head has, and among a node's labels for its kind.
_HEAD_RESOURCE = "node:__internal_head__"
_KIND_LABEL = "ray.io/node-group"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")


@dataclass(frozen=True, slots=True)
class NodeKind:
    """A kind of nodes, what each has (``CPU``, ``GPU``), and how many there may be at most."""

    name: str
    resources: Mapping[str, float]
    most: int

    def has(self, node: Mapping[str, Any]) -> bool:
        """Say whether a node is one of this kind, by its label or by its size."""
        if node.get("Labels", {}).get(_KIND_LABEL) == self.name:
            return True
        found = node["Resources"]
        return all(found.get(key, 0) == self.resources.get(key, 0) for key in ("CPU", "GPU"))


@dataclass(frozen=True, slots=True)
class Autoscaler:
    """Starts nodes of some kinds where something waits for room, ``most`` in all."""

    kinds: tuple[NodeKind, ...]
    most: int

    def num_more(self, settings: WorkerSettings, nodes: Iterable[Mapping[str, Any]]) -> int:
        """Return how many workers would find room on the nodes that may still be started.

        Args:
            settings: What one worker takes.
            nodes: Those that there are, as Ray describes them.
        """
        left, of_kind = self.most, {kind.name: kind.most for kind in self.kinds}
        for node in nodes:
            kind = next((kind for kind in self.kinds if kind.has(node)), None)
            if node["Alive"] and kind is not None and _HEAD_RESOURCE not in node["Resources"]:
                of_kind[kind.name] -= 1
                left -= 1
        rooms = [(workers_that_fit(settings, [kind.resources]), kind.name) for kind in self.kinds]
        more = 0
        for room, name in sorted(rooms, reverse=True):
            number = max(0, min(of_kind[name], left)) if room else 0
            more += number * room
            left -= number
        return more

    def __str__(self) -> str:
        """Say what it may start, for messages."""
        return "; ".join(
            f"{kind.most} x `{kind.name}` ({kind.resources.get('CPU', 0):g} CPUs, "
            f"{kind.resources.get('GPU', 0):g} GPUs)"
            for kind in self.kinds
        )


def find_autoscaler() -> Autoscaler | None:
    """Look on the head of the cluster that was joined for what its autoscaler may start.

    Returns:
        None where no node is ever started, or nobody can say which.
    """
    known = ray.nodes()
    heads = [node for node in known if node["Alive"] and _HEAD_RESOURCE in node["Resources"]]
    if not heads:
        return None
    place = NodeAffinitySchedulingStrategy(heads[0]["NodeID"], soft=False)
    call = ray.remote(look).options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote()
    try:
        found: Autoscaler | None = ray.get(call, timeout=_LOOK_S)
    except ray.exceptions.RayError as error:
        logger.warning("the head does not say what the autoscaler may start: %s", error)
        ray.cancel(call, force=True)
        return None
    return found


def look() -> Autoscaler | None:
    """Return what the autoscaler may start, on the head itself."""
    for read in (_from_platform, _from_monitor, _from_kubernetes):
        try:
            found = read()
        except Exception as error:  # noqa: BLE001 - what is read there is nobody's interface
            logger.warning("%s: %s: %s", read.__name__, type(error).__name__, error)
            continue
        if found is not None and found.kinds:
            return found
    return None


def autoscaler_of(config: Mapping[str, Any]) -> Autoscaler:
    """Read a configuration of Ray's autoscaler."""
    most = int(config["max_workers"])
    kinds = (
        NodeKind(name, dict(kind.get("resources") or {}), int(kind.get("max_workers", most)))
        for name, kind in config["available_node_types"].items()
    )
    return Autoscaler(tuple(kind for kind in kinds if kind.most > 0 and kind.resources), most)


def _from_platform() -> Autoscaler | None:
    """Read what platforms with an autoscaler of their own tell the head."""
    config = ray._private.state.state.get_cluster_config()
    if config is None:
        return None
    # Where there is no limit, none is asked for beyond the first: they cost money.
    kinds = (
        NodeKind(group.name, dict(group.resources), 1 if group.max_count < 0 else group.max_count)
        for group in config.node_group_configs
    )
    kept = tuple(kind for kind in kinds if kind.most > 0 and kind.resources)
    return Autoscaler(kept, sum(kind.most for kind in kept))


def _from_monitor() -> Autoscaler | None:
    """Read the file with which this head's autoscaler was started."""
    port = ray.get_runtime_context().gcs_address.rpartition(":")[2]
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        options = dict(word.split("=", 1) for word in words if word[:2] == "--" and "=" in word)
        path = options.get("--autoscaling-config")
        if path and options.get("--gcs-address", "").rpartition(":")[2] == port:
            text = Path(path).expanduser().read_text(encoding="utf-8")
            return autoscaler_of(yaml.safe_load(text))
    return None


def _from_kubernetes() -> Autoscaler | None:
    """Read the RayCluster that this pod is part of, as the autoscaler beside it does."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or "KUBERNETES_SERVICE_HOST" not in os.environ:
        return None
    from ray.autoscaler._private.kuberay import autoscaling_config, node_provider  # noqa: PLC0415 - only there, and private

    namespace = os.environ.get("RAY_CLUSTER_NAMESPACE") or _NAMESPACE_FILE.read_text().strip()
    cluster = node_provider.KubernetesHttpApiClient(namespace).get(f"rayclusters/{name}")
    if not cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    return autoscaler_of(autoscaling_config._derive_autoscaling_config_from_ray_cr(cluster))
