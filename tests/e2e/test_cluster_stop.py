"""A job that is stopped has the time to end that it was submitted with, on a head of any kind."""

import shlex
import sys
import time

import pytest

from scripts.bench.fault_cluster import LocalCluster
from workers.ray_jobs import ClusterAccess, JobClient

pytestmark = pytest.mark.slow

# Longer than the three seconds that Ray gives by itself.
SLOW_TO_END = """
import signal, sys, time
def end(*_):
    time.sleep(6)
    print("ended by itself", flush=True)
    sys.exit()
signal.signal(signal.SIGTERM, end)
print("under way", flush=True)
time.sleep(600)
"""


def test_stopped_job_may_take_as_long_as_it_said(tmp_path):
    code, token, sent = tmp_path / "job.py", tmp_path / "token", tmp_path / "sent"
    code.write_text(SLOW_TO_END)
    sent.mkdir()
    with LocalCluster(num_nodes=0, head_cpus=1, has_jobs=True) as cluster:
        token.write_text(cluster.token)
        client = JobClient(ClusterAccess(cluster.dashboard, token_file=token))
        command = f"exec {shlex.join([sys.executable, str(code)])}"
        client.submit("slow", command, sent, metadata={}, environment={}, end_s=30)
        end = time.monotonic() + 120
        while "under way" not in client.logs("slow"):
            assert time.monotonic() < end, client.facts("slow")
            time.sleep(0.5)
        assert client.stop("slow").status == "STOPPED"
        assert "ended by itself" in client.logs("slow")
