"""The head of a cluster goes while a driver runs elsewhere: one message, and how to go on."""

import shlex

import pytest

from configs.errors import ClusterError
from optimizer.archive.archive import Archive
from scripts.bench.fault_cluster import LocalCluster

pytestmark = pytest.mark.slow

# Ray would end a process after a minute, and a client tries for half a minute.
FAST = {"RAY_gcs_rpc_server_reconnect_timeout_s": "20", "RAY_CLIENT_RECONNECT_GRACE_PERIOD": "5"}


# With `auto` the search asks the head for its nodes, and hangs in that.
@pytest.mark.parametrize(
    ("kind", "count"), [("address", 1), ("address", "auto"), ("client_address", 1)]
)
def test_lost_head_is_one_message_with_the_command_that_goes_on(
    mergefront, job_file, tmp_path, kind, count
):
    with LocalCluster(num_nodes=1) as cluster:
        address = getattr(cluster, kind)
        job = job_file(
            budget={"evaluations": 5000},
            search={"strategy": "dirichlet"},
            workers={"count": count, "cpus": 0.5, "threads": 1, "address": address},
        )
        mergefront.environment.update(cluster.environment() | FAST)
        with mergefront.start("run", str(job), "--plain") as process:
            for line in process.stderr:
                if "search 3/" in line:
                    break
            cluster.kill_head()
            _, said = process.communicate(timeout=120)
    assert process.returncode == ClusterError.exit_code, said
    message = said[said.index("error: ") :]
    archive = tmp_path / "run" / "archive.sqlite"
    with Archive.open(archive) as found:
        recorded = len(found.observations())
    lost = "the head of the cluster" if kind == "address" else "the cluster"
    assert message.startswith(f"error: {lost} at `{address}` is lost")
    assert message.endswith(
        f". {recorded} of 5000 evaluations are recorded; continue with\n"
        f"  mergefront resume {shlex.quote(str(archive))}\n"
    )
    assert "Traceback" not in said
