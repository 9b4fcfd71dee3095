"""Stand-ins of the ports of a Ray cluster: they answer one question, as Ray's own servers do."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version

import grpc
from ray.core.generated import (
    gcs_service_pb2,
    gcs_service_pb2_grpc,
    ray_client_pb2,
    ray_client_pb2_grpc,
)


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
