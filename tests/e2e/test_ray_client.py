"""A search whose driver is no part of the cluster that evaluates for it: ``ray://``."""

import platform
import subprocess
import sys
import time

import pytest

from configs.errors import ClusterError, WorkerError
from optimizer.archive.archive import Archive
from scripts.bench.fault_cluster import LocalCluster

pytestmark = pytest.mark.slow

# Within so long somebody is told what is wrong.
LIMIT_S = 30.0
# With one worker the finishing order is that of the proposals.
WORKER = {"count": 1, "cpus": 0.5, "threads": 1}


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(num_nodes=1) as made:
        yield made


@pytest.fixture
def of_cluster(mergefront, cluster):
    """The command line of somebody who has the cluster's token."""
    mine = cluster.environment()
    mergefront.environment.update({name: mine[name] for name in mine if name.startswith("RAY_")})
    return mergefront


def record(archive):
    with Archive.open(archive) as reader:
        return (
            [(c.origin, c.seen, c.recipe.recipe_id) for c in reader.candidates()],
            [(o.key, repr(o.scores), o.weights_digest) for o in reader.evaluations()],
            reader.choice(),
        )


def test_search_over_ray_client_equals_that_on_this_machine(
    of_cluster, cluster, job_file, tmp_path
):
    def run(name, **workers):
        archive = tmp_path / f"{name}.sqlite"
        job = job_file(
            archive=str(archive), budget={"evaluations": 10}, workers={**WORKER, **workers}
        )
        of_cluster.succeed("run", str(job), "--plain", timeout_s=600)
        return record(archive)

    there = run("there", address=cluster.client_address)
    assert there == run("here")
    assert len(there[0]) == 10


# Ray asks this function what it is part of.
OLDER = (
    "import ray, ray._private.utils as utils; "
    "utils.compute_version_info = lambda: (ray.__version__, '3.9.1'); "
    "from optimizer.cli.app import main; main()"
)


@pytest.mark.parametrize("kind", ["address", "client_address"])
def test_another_python_is_refused_in_time_with_both_versions(
    of_cluster, cluster, job_file, tmp_path, kind
):
    address = getattr(cluster, kind)
    job = str(job_file(workers={**WORKER, "address": address}))
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", OLDER, "run", job, "--plain"],
        cwd=tmp_path, env=of_cluster.environment, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    took_s = time.monotonic() - began
    assert done.returncode == ClusterError.exit_code, done.stderr
    here = platform.python_version()
    assert f"error: `{address}` runs Python {here} with Ray" in done.stderr
    assert "here is Python 3.9.1 with Ray" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert took_s < LIMIT_S
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["address", "client_address"])
def test_what_cannot_run_is_refused_with_one_message_and_no_archive(
    of_cluster, cluster, job_file, tmp_path, kind
):
    address = getattr(cluster, kind)
    job = str(job_file(workers={**WORKER, "address": address}))

    def refusal(*options, **variables):
        of_cluster.environment.update(variables)
        done = of_cluster.run("run", job, "--plain", *options)
        assert done.stdout == ""
        assert not (tmp_path / "run").exists()
        return done.returncode, done.stderr

    code, said = refusal("--set", "workers.gpus=1")
    assert code == WorkerError.exit_code
    assert said.startswith("error: workers: 1 x (0.5 CPUs, 1 GPUs) do not fit here, found 0 CPUs")
    code, said = refusal(RAY_AUTH_TOKEN=cluster.token[::-1])
    assert code == ClusterError.exit_code
    assert said.startswith(f"error: `{address}` refuses the token from RAY_AUTH_TOKEN; ")
    assert len(said.splitlines()) == 1
    code, said = refusal(RAY_AUTH_MODE="disabled")
    assert code == ClusterError.exit_code
    assert said.startswith(f"error: `{address}` wants a token, and none was sent: set RAY_AUTH_M")
    assert len(said.splitlines()) == 1
