"""Knocking at a cluster before it is joined: is it a Ray, does it take our token, which version.

Ray itself tries for half a minute whatever the reason is, and some of what it says goes past
Python to the terminal. One question to the port answers within a second. Where to start:
:func:`knock`.
"""

import os
import re
import socket
from dataclasses import dataclass
from importlib.metadata import version

from ray._private.services import canonicalize_bootstrap_address

from configs.errors import ClusterError
from workers.cluster_token import PLACES, find_token, token_place

_ANSWER_S = 10.0
CLIENT = "ray://"
"""What the address of Ray Client begins with."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a port said: gRPC's status, words of it, and the version of Ray where it told that."""

    status: str
    words: str = ""
    ray_version: str = ""

    @property
    def is_there(self) -> bool:
        """Whether somebody answered, whatever it was."""
        return self.status not in {"UNAVAILABLE", "DEADLINE_EXCEEDED"}


def knock(address: str) -> None:
    """Find out whether a cluster takes us in, as far as one question can.

    Args:
        address: ``workers.address``. Of what ``auto`` means Ray is asked.

    Raises:
        ClusterError: Nobody answers, it is no Ray or the wrong port of one, it refuses the token
            or wants one, or it runs another version.
    """
    target = port_of(address)
    if target is None:
        return  # Ray says well what is wrong with it
    _require_listener(address, target)
    answer = ask(target, is_client=address.startswith(CLIENT), as_found=address == "auto")
    if answer is None or answer.status == "OK":
        _require_version(address, answer)
        if answer is not None and not address.startswith(CLIENT) and _sends_token():
            _require_same_mode(address, target)
        return
    if answer.status in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
        raise ClusterError(_refusal(address))
    if answer.status == "UNIMPLEMENTED":
        raise ClusterError(
            f"`{address}` is not such a port of Ray: `ray://HOST:PORT` is for the one of Ray "
            "Client (10001 by default), `HOST:PORT` for that of the head (6379 by default). "
            "Mend `workers.address`"
        )
    raise ClusterError(
        f"no Ray answers at `{address}`: {answer.words}. Check "
        "`workers.address` (the port of the head, 6379 by default, or `ray://` and that of Ray "
        "Client, 10001), and that Ray runs there (`ray status`)"
    )


def other_version(address: str, error: Exception) -> ClusterError | None:
    """Return what is wrong where Ray refused to join since versions differ; else None.

    The version of Python is told to who has joined only. Over ``ray://`` the first two numbers of
    it count, else all three.
    """
    found = re.findall(r"Ray: (\S+)\s+Python: (\S+)", str(error))
    if len(found) != 2:  # the cluster's and ours
        return None
    (ray_there, there), (ray_here, here) = found
    return ClusterError(
        f"`{address}` runs Python {there} with Ray {ray_there}, here is Python {here} with Ray "
        f"{ray_here}: use the same on both sides"
    )


def port_of(address: str) -> str | None:
    """Return host and port of an address; None where it is not known."""
    if address == "auto":
        try:
            return canonicalize_bootstrap_address(address)
        except (ConnectionError, OSError, ValueError):
            return None
    target = address.removeprefix(CLIENT)
    host, _, port = target.rpartition(":")
    return target if host and port.isdecimal() else None


def _require_listener(address: str, target: str) -> None:
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"nobody answers at `{address}`: {error}. Check `workers.address`, and that Ray runs "
            "there (`ray status`)"
        ) from error


def ask(
    target: str,
    *,
    is_client: bool = False,
    as_found: bool = False,
    with_token: bool = True,
    timeout_s: float = _ANSWER_S,
) -> Answer | None:
    """Ask a port of Ray whether it is there, with the token that Ray would send.

    Args:
        target: Host and port.
        is_client: Whether it is that of Ray Client.
        as_found: Whether Ray itself found the address: then it takes a token that lies about,
            even where ``RAY_AUTH_MODE`` is not set.
        with_token: Whether the token is shown, and TLS spoken, where Ray would.
        timeout_s: How long an answer is waited for.

    Returns:
        Its answer; None where this Ray was installed without what it takes to ask.
    """
    try:
        import grpc
        from ray._private.authentication import authentication_token_setup
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import (
            gcs_service_pb2,
            gcs_service_pb2_grpc,
            ray_client_pb2,
            ray_client_pb2_grpc,
        )
    except ImportError:
        return None
    if _sends_token():
        find_token(None)
    if as_found:
        authentication_token_setup.maybe_enable_token_auth_if_token_available(
            warn_if_disabled=False
        )
    with init_grpc_channel(target) if with_token else grpc.insecure_channel(target) as channel:
        try:
            if is_client:
                ping = ray_client_pb2.ClusterInfoRequest(type=ray_client_pb2.ClusterInfoType.PING)
                driver = ray_client_pb2_grpc.RayletDriverStub(channel)
                driver.ClusterInfo(ping, timeout=timeout_s)
                return Answer("OK")
            head = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            reply = head.CheckAlive(gcs_service_pb2.CheckAliveRequest(), timeout=timeout_s)
            return Answer("OK", ray_version=reply.ray_version)
        except grpc.RpcError as error:
            return Answer(error.code().name, str(error.details()))


def _require_version(address: str, answer: Answer | None) -> None:
    there, here = "" if answer is None else answer.ray_version, version("ray")
    if there and there != here:
        raise ClusterError(
            f"`{address}` runs Ray {there}, here is Ray {here}: install the cluster's version here "
            f"(`pip install 'ray[client]=={there}'`), or this one on the cluster"
        )


def _require_same_mode(address: str, target: str) -> None:
    """Refuse a cluster without tokens where this process asks for one.

    It could join, but the head could not ask back, and would cancel every actor.
    """
    answer = ask(target, with_token=False)
    if answer is not None and answer.status == "OK":
        raise ClusterError(
            f"`{address}` asks nobody for a token, but RAY_AUTH_MODE is `token` here, which both "
            "must agree on: set RAY_AUTH_MODE=disabled here, or start the cluster with "
            "RAY_AUTH_MODE=token"
        )


def _refusal(address: str) -> str:
    if _sends_token():
        return (
            f"`{address}` refuses the token from {token_place()}; it is not that of this cluster. "
            f"Put the cluster's in {PLACES}"
        )
    return (
        f"`{address}` wants a token, and none was sent: set RAY_AUTH_MODE=token, and put the "
        f"cluster's token in {PLACES}"
    )


def _sends_token() -> bool:
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
