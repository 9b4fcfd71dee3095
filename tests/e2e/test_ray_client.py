"""A search whose driver is no part of the cluster that evaluates for it: ``ray://``."""

import pytest

from optimizer.archive.archive import Archive
from scripts.bench.fault_cluster import LocalCluster

pytestmark = pytest.mark.slow

# With one worker the finishing order is that of the proposals.
WORKER = {"count": 1, "cpus": 0.5, "threads": 1}


def record(archive):
    with Archive.open(archive) as reader:
        return (
            [(c.origin, c.seen, c.recipe.recipe_id) for c in reader.candidates()],
            [(o.key, repr(o.scores), o.weights_digest) for o in reader.evaluations()],
            reader.choice(),
        )


def test_search_over_ray_client_equals_that_on_this_machine(mergefront, job_file, tmp_path):
    def run(name, **workers):
        archive = tmp_path / f"{name}.sqlite"
        job = job_file(
            archive=str(archive), budget={"evaluations": 10}, workers={**WORKER, **workers}
        )
        mergefront.succeed("run", str(job), "--plain", timeout_s=600)
        return record(archive)

    here = run("here")
    with LocalCluster(num_nodes=1) as cluster:
        mine = cluster.environment()
        names = {name for name in mine if name.startswith("RAY_")}
        mergefront.environment.update({name: mine[name] for name in names})
        there = run("there", address=cluster.client_address)
    assert there == here
    assert len(here[0]) == 10
