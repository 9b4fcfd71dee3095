"""What a port answers before a cluster is joined: stand-ins of Ray's own servers, no Ray."""

from importlib.metadata import version
from pathlib import Path

import pytest

from configs.errors import ClusterError
from tests.unit.workers.cluster_ports import serving
from workers.ray_door import knock, other_version


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


def test_cluster_without_tokens_is_refused_to_who_asks_for_one(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    with serving("") as address:
        with pytest.raises(ClusterError, match=f"`{address}` asks nobody for a token, but RAY_AU"):
            knock(address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        knock(address)
    with serving("ray://") as address:
        knock(address)  # what talks to the cluster is a process of its own there


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


def test_other_python_is_told_from_what_ray_says_of_both():
    said = (
        "Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.11.4\n"
        "This process on node 1.2.3.4 was started with:\n    Ray: 2.9.0\n    Python: 3.12.1\n"
    )
    refusal = other_version("head:6379", RuntimeError(said))
    assert refusal.message == (
        "`head:6379` runs Python 3.11.4 with Ray 2.9.0, here is Python 3.12.1 with Ray 2.9.0: "
        "use the same on both sides"
    )
    assert other_version("head:6379", RuntimeError("Ray: 2.9.0\n Python: 3.11.4")) is None
