"""The service on real searches: submit, watch, kill the service, stop, resume, fork, export."""

import json
import signal
import tarfile
from pathlib import Path

import httpx2
import psutil
import pytest
import yaml

from optimizer.archive.archive import Archive
from optimizer.service.client import ServiceClient, ServiceRefusedError
from tests.e2e.service_server import serving
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

# More than a search does while the service starts again; it is stopped when it has ENOUGH.
BUDGET = 1000
ENOUGH = 12


@pytest.fixture(scope="module")
def service(tiny_job, tiny_pool, tmp_path_factory):
    tasks = tiny_job().evaluation.include_path[0]
    allowed = ("--model-root", str(tiny_pool.base.parent), "--allow-tasks", tasks)
    with serving(tmp_path_factory.mktemp("service"), *allowed) as found:
        yield found


@pytest.fixture
def client(service):
    with ServiceClient(service.url, service.token) as found:
        yield found


@pytest.fixture(scope="module")
def job_text(tiny_job) -> str:
    job = tiny_job(
        name="tiny <b>search</b>",
        budget={"evaluations": BUDGET},
        validation={"candidates": 2},
        workers={"count": 1, "cpus": 0.5, "threads": 1},
    )
    return yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)


def has_ended(pid: int) -> bool:
    """Whether a process is gone; some machines leave what nobody waits for as a zombie."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.fixture(scope="module")
def finished(service, job_text):
    """A search whose service was killed on its way, and that was stopped, resumed and ended.

    Returns:
        Its id, the number of its process before and after the kill, and what the first service saw.
    """
    with ServiceClient(service.url, service.token) as client:
        search = client.submit(job_text).id
        for name, content in client.follow(search, after=0):
            if name == "candidate" and content["index"] >= 2:
                break
        before = client.search(search)
    assert before.state == "running", client.log(search)
    service.kill()
    service.start()
    with ServiceClient(service.url, service.token) as client:
        after = client.search(search)
        assert after.state == "running", client.log(search)
        wait_until(lambda: client.search(search).evaluations.recorded >= ENOUGH, "enough")
        client.stop(search)
        wait_until(lambda: client.search(search).state == "interrupted", "the stop")
        recorded = client.search(search).evaluations.recorded
        client.resume(search, {"budget.evaluations": recorded + 1})
        wait_until(
            lambda: client.search(search).state not in {"interrupted", "running", "starting"},
            "the end",
        )
        assert client.search(search).state == "finished", client.log(search)
    return search, before, after


def test_killed_service_finds_its_searches_again_and_disturbs_none(finished, client):
    search, before, after = finished
    assert after.state == "running"
    assert after.pid == before.pid
    assert after.evaluations.recorded >= before.evaluations.recorded >= 3
    found = client.search(search)
    assert found.evaluations.recorded == found.evaluations.budget > ENOUGH
    assert found.failures == 0
    assert found.verdict is not None


def test_search_ran_once_from_beginning_to_end(finished, client):
    search = finished[0]
    path = Path(client.service().archive_dir) / client.search(search).archive
    with Archive.open(path) as archive:
        assert len(archive.observations()) == client.search(search).evaluations.budget
    assert client.log(search).count("search: 0 of") == 1


def test_events_after_the_kill_go_on_where_the_watcher_was(finished, client):
    recorded = client.search(finished[0]).evaluations.recorded
    events = client.follow(finished[0], after=recorded - 2)
    first = [next(events) for _ in range(3)]
    events.close()
    assert [name for name, _ in first] == ["status", "candidate", "candidate"]


def test_front_and_comparison_of_a_real_search(finished, client):
    search = finished[0]
    front = client.front(search)
    assert front.front
    assert front.belief.state == "current"
    chosen = client.search(search).choice
    found = client.compare(search, chosen, 0, which="all")
    assert found.split == "report"
    assert [task.task for task in found.tasks] == ["tiny_text", "tiny_choice"]
    texts = [item.text_a for item in found.tasks[0].items]
    assert all(isinstance(text, str) for text in texts)


def test_export_is_written_found_again_and_downloaded(finished, client, service, tmp_path):
    search = finished[0]
    wish = {"prefer": {next(iter(client.search(search).objectives)): 1.0}}
    begun = client.export(search, **wish)
    done = client.wait_for_export(search, begun.id, timeout_s=300)
    assert done.state == "finished", done.error
    assert client.export(search, **wish).id == begun.id
    service.kill()
    service.start()
    with ServiceClient(service.url, service.token) as again:
        assert [export.id for export in again.exports(search)] == [begun.id]
        target = again.download(search, begun.id, tmp_path / "merge.tar")
    with tarfile.open(target) as tar:
        tar.extractall(tmp_path / "model", filter="data")
    (directory,) = (tmp_path / "model").iterdir()
    recipe = json.loads((directory / "recipe.json").read_text())
    assert recipe["recipe_id"] == done.recipe_id
    assert recipe["weights_digest"] == done.weights_digest
    assert recipe["chosen_by"] == begun.rule
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory)
    assert model.config.num_hidden_layers == 2


def test_search_is_stopped_resumed_with_another_budget_and_deleted(finished, job_text, client):
    search = client.fork(finished[0], job=job_text, changes={"budget.evaluations": 200}).id
    wait_until(lambda: client.search(search).evaluations.recorded > 0, "an evaluation")
    with pytest.raises(ServiceRefusedError, match="stop it first"):
        client.delete(search)
    client.stop(search)
    found = wait_until(
        lambda: (one := client.search(search)).state == "interrupted" and one, "the stop"
    )
    recorded = found.evaluations.recorded
    assert 0 < recorded < 200
    # Two more than there are: baselines of the rest of the budget count as well.
    client.resume(search, {"budget.evaluations": recorded + 1})
    wait_until(lambda: client.search(search).state == "finished", "the end")
    found = client.search(search)
    assert found.evaluations.recorded == recorded + 1
    assert found.evaluations.budget == recorded + 1
    assert "outcomes of" in client.log(search)
    client.delete(search)
    assert search not in {one.id for one in client.searches()}


def test_check_says_what_the_command_says(client, job_text, tiny_pool):
    good = client.validate(job_text)
    assert good.valid, good.problems
    assert good.report is not None
    assert good.report["tasks"]
    missing = client.validate(
        job_text, {"models.checkpoints.code": str(tiny_pool.base.parent / "nothing")}
    )
    assert not missing.valid
    assert "nothing" in missing.message


def test_search_that_cannot_begin_fails_with_its_error(client, job_text, tiny_pool):
    search = client.submit(
        job_text, {"models.checkpoints.code": str(tiny_pool.base.parent / "nothing")}
    ).id
    found = wait_until(lambda: (one := client.search(search)).state == "failed" and one, "the end")
    assert "nothing" in (found.error or "")
    client.delete(search)


def test_browser_follows_events_with_its_cookie(finished, service, client):
    recorded = client.search(finished[0]).evaluations.recorded
    with httpx2.Client(base_url=service.url, timeout=30) as browser:
        assert browser.get("/").status_code == 401
        browser.get("/login", params={"token": service.token})
        page = browser.get(f"/searches/{finished[0]}").text
        assert "tiny &lt;b&gt;search&lt;/b&gt;" in page
        url = f"/api/v1/searches/{finished[0]}/events"
        with browser.stream("GET", url, params={"after": recorded - 1}) as answer:
            lines = answer.iter_lines()
            assert next(lines) == "retry: 2000"
            assert any(line == f"id: {recorded}" for line in lines)


def test_service_that_is_asked_to_end_does_and_leaves_searches_alone(service, client, job_text):
    search = client.submit(job_text, {"budget.evaluations": 200}).id
    pid = client.search(search).pid
    # As uvicorn ends: its work done, by the signal itself.
    assert service.end() == -signal.SIGTERM
    assert not has_ended(pid)
    service.start()
    with ServiceClient(service.url, service.token) as again:
        again.stop(search, force=True)
        wait_until(lambda: again.search(search).state not in {"starting", "running"}, "the end")
        again.delete(search)
    wait_until(lambda: has_ended(pid), "the end of its process")
