"""Searches on a cluster that has no nodes until somebody waits for room, and loses those idle."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.archive.archive import Archive
from tests.fault import cluster_search
from tests.fault.growing_cluster import GrowingCluster

pytestmark = pytest.mark.campaign

MOST = 2


@pytest.fixture(scope="module", params=[1, 2], ids=["v1", "v2"])
def growing(request):
    """A cluster of at most two nodes with room for one worker each, and none to begin with."""
    with GrowingCluster(MOST, request.param) as cluster:
        yield cluster


def run_search(cluster, archive, **workers):
    """Run a search on a cluster, in a process that has no Ray yet."""
    settings = json.dumps({"address": cluster.address, "cpus": 1.0, **workers})
    command = [sys.executable, "-m", "tests.fault.cluster_search", str(archive), settings]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)


def test_search_grows_a_cluster_from_nothing_again_and_again(growing, tmp_path):
    for count in (MOST, "auto"):
        growing.wait_for_nodes(0)
        path = tmp_path / f"{count}.sqlite"
        done = run_search(growing, path, count=count)
        assert "ended: budget" in done.stdout, done.stdout + done.stderr
        with Archive.open(path) as archive:
            assert len(archive.outcomes("search")) == cluster_search.EVALUATIONS
        begun = [json.loads(line) for line in Path(f"{path}.begun").read_text().splitlines()]
        assert len({entry["pid"] for entry in begun}) == MOST
        assert {entry["attempt"] for entry in begun} == {1}
    growing.wait_for_nodes(0)


def test_worker_that_no_node_can_hold_is_refused_at_once(growing, tmp_path):
    done = run_search(growing, tmp_path / "archive.sqlite", count=1, cpus=2.0)
    assert "an autoscaler for 2 x `small` (1 CPUs, 0 GPUs)" in done.stderr
