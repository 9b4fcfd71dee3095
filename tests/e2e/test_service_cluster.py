"""The service on a Ray with its Jobs API: submit, kill the service, stop, resume, and a failure."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from optimizer.archive.archive import Archive
from optimizer.service.client import ServiceClient, ServiceRefusedError
from optimizer.service.models import SearchStatus
from scripts.bench.fault_cluster import LocalCluster
from tests.e2e.service_server import ServeCommand, serving
from tests.waiting import wait_until
from workers.ray_jobs import ClusterAccess, JobClient, JobFacts

pytestmark = pytest.mark.slow

# More than is ever made of it: it is stopped, and resumed with less.
BUDGET = 1000
ENOUGH = 3


@dataclass(frozen=True)
class Told:
    """What was said of one search, from its launch to its end.

    Attributes:
        search: Its id.
        failed: Another one, which could not begin; with what it had printed.
        before: How the search was before the service was killed.
        after: How it was once there was a service again.
        refused: The answer when it was to be deleted while it ran.
        first_log: What it had printed when it was stopped.
        stopped: How it was then.
        log: What it printed after it was resumed.
        jobs: What the cluster says of all launches, by their ids.
    """

    search: str
    failed: tuple[SearchStatus, str]
    before: SearchStatus
    after: SearchStatus
    refused: str
    first_log: str
    stopped: SearchStatus
    log: str
    jobs: dict[str, JobFacts]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("on-a-cluster").resolve()


@pytest.fixture(scope="module")
def service(tiny_job, tiny_pool, home) -> Iterator[ServeCommand]:
    """A service, and the cluster that its searches run on, whose token is in a file."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("RAY_")]:
            patch.delenv(name)
        with LocalCluster(0, head_cpus=1, has_jobs=True) as cluster:
            (home / "token").write_text(cluster.token)
            options = (
                *("--address", cluster.dashboard, "--token-file", str(home / "token")),
                *("--cluster-python", sys.executable),
                *("--model-root", str(tiny_pool.base.parent)),
                *("--allow-tasks", tiny_job().evaluation.include_path[0]),
            )
            with serving(home, *options) as found:
                yield found


@pytest.fixture(scope="module")
def told(service, tiny_job, tiny_pool, home) -> Told:
    job = tiny_job(
        name="on a cluster",
        budget={"evaluations": BUDGET},
        validation={"candidates": 1},
        search={"strategy": "dirichlet"},
        workers={"count": 1, "cpus": 0.5, "threads": 1},
    )
    text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
    missing = {"name": "lost", "models.checkpoints.code": str(tiny_pool.base.parent / "nothing")}
    with ServiceClient(service.url, service.token) as client:
        lost = client.submit(text, missing).id
        search = client.submit(text).id
        wait_until(lambda: has_scored(client.search(search)), "an evaluation")
        wait_until(lambda: client.search(lost).state == "failed", "the failure")
        failed = client.search(lost), client.log(lost)
        with pytest.raises(ServiceRefusedError) as refused:
            client.delete(search)
        before = client.search(search)
    service.kill()
    service.start()
    with ServiceClient(service.url, service.token) as client:
        after = client.search(search)
        client.stop(search)
        first_log, stopped = client.log(search), client.search(search)
        # A few more than there are: baselines of the rest of the budget count as well.
        client.resume(search, {"budget.evaluations": stopped.evaluations.recorded + 2})
        wait_until(lambda: client.search(search).state not in {"starting", "running"}, "the end")
        log = client.log(search)
        client.delete(lost)
        access = ClusterAccess(client.service().cluster or "", token_file=home / "token")
    jobs = {facts.job_id: facts for facts in JobClient(access).jobs()}
    service.kill()
    service.start()
    return Told(
        search, failed, before, after, str(refused.value), first_log, stopped, log, jobs
    )  # fmt: skip


@pytest.fixture
def client(told, service) -> Iterator[ServiceClient]:
    """Asks the third life of the service."""
    with ServiceClient(service.url, service.token) as found:
        yield found


def has_scored(status: SearchStatus) -> bool:
    assert status.state in {"starting", "running"}, status.error
    return status.evaluations.recorded >= ENOUGH


def test_search_runs_as_a_job_of_the_cluster(told):
    assert (told.before.state, told.before.runner, told.before.pid) == ("running", "cluster", None)
    assert told.before.cluster_job in told.jobs
    assert "stop it first" in told.refused


def test_killed_service_finds_the_job_again_and_disturbs_it_not(told):
    assert (told.after.state, told.after.cluster_job) == ("running", told.before.cluster_job)
    assert told.after.evaluations.recorded >= told.before.evaluations.recorded


def test_stopped_search_has_ended_on_the_cluster_and_can_go_on(told):
    assert told.stopped.state == "interrupted"
    assert told.stopped.advice == "it can be resumed"
    assert told.jobs[told.before.cluster_job].status == "STOPPED"
    assert "search: 0 of" in told.first_log


def test_resumed_search_goes_on_in_a_second_job_and_finishes(told, client):
    found = client.search(told.search)
    assert (found.state, found.failures) == ("finished", 0)
    recorded = told.stopped.evaluations.recorded
    assert found.evaluations.recorded == found.evaluations.budget == recorded + 2
    assert found.cluster_job not in {None, told.before.cluster_job}
    assert told.jobs[found.cluster_job].status == "SUCCEEDED"
    assert "search: 0 of" not in told.log
    assert f"search ended: budget of {recorded + 2} evaluations spent" in told.log
    # What the cluster keeps is still asked for after a restart.
    assert client.log(told.search) == told.log


def test_results_of_a_search_on_a_cluster_are_those_of_its_archive(told, client):
    status = client.search(told.search)
    rows = list(client.every_candidate(told.search))
    front = client.front(told.search, raw=True).front
    with Archive.open(Path(client.service().archive_dir) / status.archive) as archive:
        recorded = archive.scores("search")
        assert archive.choice() == status.choice
        ids = [candidate.recipe.recipe_id for candidate in archive.candidates()]
    assert [row.recipe_id for row in rows] == ids
    assert {row.index for row in rows if row.scores} == set(recorded)
    assert status.choice in {row.index for row in rows}
    assert front
    assert status.verdict is not None


def test_search_that_cannot_begin_there_fails_with_its_error(told, client):
    status, log = told.failed
    assert status.runner == "cluster"
    assert "nothing" in status.error
    assert "error: " in log
    assert told.jobs[status.cluster_job].status == "FAILED"
    assert status.id not in {one.id for one in client.searches()}
