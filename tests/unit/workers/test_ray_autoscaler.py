"""What an autoscaler may start, and what a pool makes of it; no Ray is started here."""

import json
import types
from pathlib import Path

import psutil
import pytest
import ray
import yaml

from configs.errors import WorkerError
from configs.worker_settings import WorkerSettings
from tests.contract.light_runners import LightRunner, light_spec
from workers import ray_session
from workers.ray_autoscaler import Autoscaler, NodeKind, autoscaler_of, look
from workers.ray_fleet import Fleet
from workers.ray_session import require_resources

CLUSTER = Path(__file__).parents[3] / "configs" / "cluster"
BIG = NodeKind("gpu", {"CPU": 16, "GPU": 8}, 2)
SMALL = NodeKind("one", {"CPU": 4, "GPU": 1}, 3)
PER_GPU = WorkerSettings.model_validate({"device": "cuda", "address": "auto"})


def node(cpus=0, gpus=0, *, alive=True, head=False, kind=None):
    resources = {"CPU": float(cpus), "GPU": float(gpus)}
    return {
        "NodeID": "n",
        "Alive": alive,
        "Resources": resources | ({"node:__internal_head__": 1.0} if head else {}),
        "Labels": {"ray.io/node-group": kind} if kind else {},
    }


HEAD = node(head=True)


@pytest.mark.parametrize(
    ("kinds", "most", "nodes", "more"),
    [
        ([BIG], 2, [HEAD], 16),
        ([BIG], 2, [HEAD, node(16, 8)], 8),
        ([BIG], 2, [HEAD, node(16, 8, alive=False)], 16),
        ([BIG], 2, [HEAD, node(16, 8), node(16, 8), node(16, 8)], 0),
        # By its label, where the machine has something else than was said.
        ([BIG], 2, [HEAD, node(15, 8, kind="gpu")], 8),
        # The head counts for nothing, though it be as large; nor do nodes that somebody else added.
        ([BIG], 2, [node(16, 8, head=True), node(32, 2)], 16),
        # All kinds together have a limit, which goes to the larger ones first.
        ([SMALL, BIG], 3, [HEAD], 17),
        ([SMALL, BIG], 3, [HEAD, node(4, 1)], 16),
        ([NodeKind("cpu", {"CPU": 64}, 5)], 5, [HEAD], 0),
    ],
)
def test_what_may_still_be_started_has_room_for_so_many(kinds, most, nodes, more):
    assert Autoscaler(tuple(kinds), most).num_more(PER_GPU, nodes) == more


def test_configuration_of_ray_up_is_read():
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    # As Ray writes it to the head, when it has asked the cloud for the size of the machine.
    config["available_node_types"]["gpu"]["resources"] = {"CPU": 96, "GPU": 8}
    assert autoscaler_of(config) == Autoscaler((NodeKind("gpu", {"CPU": 96, "GPU": 8}, 8),), 8)
    del config["available_node_types"]["gpu"]["max_workers"]
    assert autoscaler_of(config).kinds[0].most == 8


@pytest.fixture
def on_the_head(monkeypatch):
    """Looking on a head where nobody has said anything yet."""
    monkeypatch.setattr(ray._private.state.state, "get_cluster_config", lambda: None)
    monkeypatch.setattr(psutil, "process_iter", lambda _: [])
    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: types.SimpleNamespace(gcs_address="10.0.0.1:6379")
    )
    monkeypatch.delenv("RAY_CLUSTER_NAME", raising=False)
    assert look() is None
    return monkeypatch


def test_file_of_the_autoscaler_on_the_head_is_read(on_the_head, tmp_path):
    def monitor(port, path):
        words = ["python", "monitor.py", f"--gcs-address=10.0.0.1:{port}", "--logs-dir=x"]
        words += [f"--autoscaling-config={path}"] if path else []
        return types.SimpleNamespace(info={"cmdline": words})

    other, ours = tmp_path / "other.yaml", tmp_path / "ours.json"
    kinds = {"head": {"resources": {"CPU": 0}, "max_workers": 0}}
    ours.write_text(
        json.dumps(
            {"max_workers": 4, "available_node_types": kinds | {"c": {"resources": {"CPU": 2}}}}
        )
    )
    strange = types.SimpleNamespace(info={"cmdline": None})
    on_the_head.setattr(
        psutil, "process_iter", lambda _: [strange, monitor(7000, other), monitor(6379, ours)]
    )
    assert look() == Autoscaler((NodeKind("c", {"CPU": 2}, 4),), 4)
    # Ray starts one everywhere, to count nodes, also where none is ever started.
    on_the_head.setattr(psutil, "process_iter", lambda _: [monitor(6379, None)])
    assert look() is None
    on_the_head.setattr(psutil, "process_iter", lambda _: [monitor(6379, tmp_path / "gone")])
    assert look() is None


def test_ray_cluster_of_kubernetes_is_read(on_the_head):
    from ray.autoscaler._private.kuberay import node_provider

    job = yaml.safe_load((CLUSTER / "kuberay-rayjob.yaml").read_text())
    cluster = {
        "metadata": {"name": "mergefront-x", "namespace": "team"},
        "spec": job["spec"]["rayClusterSpec"],
    }
    asked = []

    class Client:
        def __init__(self, namespace):
            asked.append(namespace)

        def get(self, path):
            asked.append(path)
            return cluster

    on_the_head.setattr(node_provider, "KubernetesHttpApiClient", Client)
    on_the_head.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    on_the_head.setenv("RAY_CLUSTER_NAME", "mergefront-x")
    on_the_head.setenv("RAY_CLUSTER_NAMESPACE", "team")
    found = look()
    assert asked == ["team", "rayclusters/mergefront-x"]
    assert (found.most, found.num_more(PER_GPU, [HEAD])) == (8, 8)
    cluster["spec"]["enableInTreeAutoscaling"] = False
    assert look() is None


@pytest.mark.parametrize(("limit", "more"), [(3, 3), (-1, 1)])
def test_what_a_platform_says_is_read(on_the_head, limit, more):
    from ray.core.generated.autoscaler_pb2 import ClusterConfig

    config = ClusterConfig()
    config.node_group_configs.add(name="gpu", resources={"CPU": 8, "GPU": 1}, max_count=limit)
    config.node_group_configs.add(name="head", resources={"CPU": 8}, max_count=0)
    on_the_head.setattr(ray._private.state.state, "get_cluster_config", lambda: config)
    assert look().num_more(PER_GPU, [HEAD]) == more


@pytest.fixture
def cluster(monkeypatch):
    """Nodes and an autoscaler, in lists that a test may change."""
    nodes, growth = [HEAD], []
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(ray_session, "find_autoscaler", lambda: growth[0] if growth else None)
    return nodes, growth


def test_cluster_without_room_is_taken_where_room_can_be_started(cluster):
    _, growth = cluster
    with pytest.raises(WorkerError, match=r"found 0 CPUs, 0 GPUs\. Lower"):
        require_resources(PER_GPU)
    growth.append(Autoscaler((NodeKind("cpu", {"CPU": 64}, 5),), 5))
    with pytest.raises(
        WorkerError, match=r"0 GPUs, and an autoscaler for 5 x `cpu` \(64 CPUs, 0 GPUs\)\. Lower"
    ):
        require_resources(PER_GPU)
    growth[0] = Autoscaler((BIG,), 2)
    assert require_resources(PER_GPU) == growth[0]


def test_a_ray_of_our_own_starts_no_nodes(cluster):
    cluster[1].append(Autoscaler((BIG,), 2))
    with pytest.raises(WorkerError, match="do not fit here"):
        require_resources(WorkerSettings.model_validate({"device": "cuda"}))


@pytest.fixture
def make_fleet(cluster, monkeypatch):
    monkeypatch.setattr(Fleet, "start", lambda _, slot: setattr(slot, "state", "starting"))
    monkeypatch.setattr(Fleet, "kill", lambda *_: None)

    def make(autoscaler=None, **workers):
        settings = {"address": "auto", "device": "cuda", "count": "auto", **workers}
        fleet = Fleet(light_spec(**settings), LightRunner)
        fleet.fill(autoscaler)
        return fleet

    return make


def states(fleet):
    return [slot.state for slot in fleet.slots]


def test_auto_asks_for_all_that_may_be_started(make_fleet, cluster, monkeypatch):
    nodes, _ = cluster
    fleet = make_fleet(Autoscaler((SMALL,), 3))
    # They wait for room, so that no candidate is proposed for them yet.
    assert states(fleet) == ["waiting"] * 3
    monkeypatch.setattr("workers.ray_fleet._LOOK_S", -1.0)
    nodes.append(node(4, 1))
    fleet.adjust()
    assert len(fleet.slots) == 3
    # A machine that was added beside has room for more of them.
    nodes.append(node(32, 2))
    fleet.adjust()
    assert len(fleet.slots) == 5
    # What the autoscaler has taken away again it may start again.
    del nodes[1]
    fleet.adjust()
    assert len(fleet.slots) == 5


def test_auto_without_an_autoscaler_is_what_fits(make_fleet, cluster):
    cluster[0].append(node(4, 2))
    assert states(make_fleet()) == ["starting"] * 2


def test_a_number_is_the_most_that_are_asked_for(make_fleet):
    assert states(make_fleet(Autoscaler((BIG,), 2), count=3)) == ["waiting"] * 3


def test_who_waits_too_long_learns_what_was_asked_of_the_autoscaler(make_fleet, monkeypatch):
    fleet = make_fleet(Autoscaler((SMALL,), 3), count=1, start_timeout_s=0.001)
    fleet.calls = {object(): fleet.slots[0]}
    fleet._was_up_at -= 1.0
    with pytest.raises(
        WorkerError,
        match=r"all are waiting; its autoscaler was asked, for up to 3 x `one` \(4 CPUs, 1 GPUs\)",
    ):
        fleet.check()
