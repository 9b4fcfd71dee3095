"""What a port answers before a cluster is joined: stand-ins of Ray's own servers, no Ray."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import grpc
import pytest
from ray.core.generated import (
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    ray_client_pb2,
    ray_client_pb2_grpc,
)

from configs.errors import ClusterError
from workers.ray_door import knock


class Head(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    def __init__(self, ray, is_open):
        self.ray, self.is_open = ray, is_open

    def CheckAlive(self, request, context):  # noqa: N802 - Ray's name
        if not self.is_open:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return gcs_service_pb2.CheckAliveReply(ray_version=self.ray)


class ClientServer(ray_client_pb2_grpc.RayletDriverServicer):
    def __init__(self, is_open):
        self.is_open = is_open

    def ClusterInfo(self, request, context):  # noqa: N802 - Ray's name
        if not self.is_open:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid or missing")
        assert request.type == ray_client_pb2.ClusterInfoType.PING
        return ray_client_pb2.ClusterInfoResponse(json="{}")


@contextmanager
def serving(kind, *, ray=None, is_open=True):
    """A port of a cluster, as ``workers.address`` names it."""
    server = grpc.server(ThreadPoolExecutor(1))
    if kind == "":
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(
            Head(ray or version("ray"), is_open), server
        )
    else:
        ray_client_pb2_grpc.add_RayletDriverServicer_to_server(ClientServer(is_open), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"{kind}127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


@pytest.fixture(autouse=True)
def _no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)


KINDS = pytest.mark.parametrize("kind", ["", "ray://"])


@KINDS
def test_cluster_that_takes_us_in_is_no_error(kind):
    with serving(kind) as address:
        knock(address)


@KINDS
def test_refused_token_is_named_with_where_it_came_from(kind, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    with serving(kind, is_open=False) as address:
        text = f"`{address}` refuses the token from RAY_AUTH_TOKEN; it is not that of this cluster"
        with pytest.raises(ClusterError, match=text) as refusal:
            knock(address)
    assert "wrong" not in str(refusal.value), "a token is a secret"


@KINDS
def test_missing_token_is_asked_for(kind, monkeypatch):
    with serving(kind, is_open=False) as address:
        with pytest.raises(ClusterError, match="wants a token, and none was sent: set RAY_AUTH_M"):
            knock(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "token")
        with pytest.raises(ClusterError, match="RAY_AUTH_MODE is `token`, but there is no token"):
            knock(address)


def test_other_ray_is_refused():
    with (
        serving("", ray="2.9.3") as address,
        pytest.raises(ClusterError, match=f"runs Ray 2.9.3, here is Ray {version('ray')}: install"),
    ):
        knock(address)


@KINDS
def test_other_port_of_ray_is_told_from_the_right_one(kind):
    with serving("" if kind else "ray://") as address:
        there = address.removeprefix("ray://")
        with pytest.raises(ClusterError, match=f"`{kind}{there}` is not such a port of Ray"):
            knock(f"{kind}{there}")


def test_nobody_is_told_from_another_service(tmp_path):
    with pytest.raises(ClusterError, match=r"nobody answers at `127.0.0.1:1`: .*refused"):
        knock("127.0.0.1:1")
    with serving("") as address:
        pass
    with pytest.raises(ClusterError, match="nobody answers at"):
        knock(address)
