"""Starting, stopping and deleting searches while others do, and after what was before."""

import json
import shutil
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from optimizer.archive.archive import Archive
from optimizer.service import search_files
from optimizer.service.app import create_app
from optimizer.service.client import ServiceClient, ServiceRefusedError
from optimizer.service.errors import ConflictError, NotFoundError
from optimizer.service.processes import DetachedProcess, read_record
from optimizer.service.searches import Searches
from tests.unit.optimizer.service.conftest import TOKEN, URL
from tests.unit.optimizer.synthetic_archive import Merge, build
from tests.waiting import wait_until
from workers.ray_jobs import ClusterAccess


@contextmanager
def serving(settings):
    with TestClient(create_app(settings, TOKEN), base_url=URL) as http:
        yield ServiceClient(URL, TOKEN, http=http)


@pytest.fixture
def processes(archives):
    """Kills what a test started."""
    yield
    for record in archives.rglob("process.json"):
        DetachedProcess(record.parent).kill()


class Dashboard:
    """Answers as the dashboard of a Ray cluster does, for the jobs that it is given.

    Attributes:
        jobs: Id -> status.
        asked_to_end: Ids, each as often as it was asked.
        num_lists: How often it was asked for all of them.
        address: Where it answers.
    """

    def __init__(self) -> None:
        self.jobs: dict[str, str] = {}
        self.asked_to_end: list[str] = []
        self.num_lists = 0
        dashboard = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body: object = {"ray_version": version("ray"), "ray_commit": ""}
                if self.path == "/api/jobs/":
                    dashboard.num_lists += 1
                    body = [dashboard.details(job) for job in dashboard.jobs]
                elif (job := self.path.removeprefix("/api/jobs/")) in dashboard.jobs:
                    body = dashboard.details(job)
                self._answer(body)

            def do_POST(self) -> None:
                dashboard.asked_to_end.append(self.path.split("/")[-2])
                self._answer({"stopped": True})

            def _answer(self, body: object) -> None:
                data = json.dumps(body).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def details(self, job: str) -> dict[str, object]:
        status = self.jobs[job]
        return {
            "type": "SUBMISSION",
            "submission_id": job,
            "status": status,
            "entrypoint": "search",
            "message": f"said of {job}",
            "metadata": {"mergefront": "1"},
        }

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def dashboard():
    found = Dashboard()
    yield found
    if found._thread.is_alive():
        found.close()


def launched(archives, job, address, search="done"):
    """Have a search be one that was launched on a cluster."""
    state = archives / search / "archive.sqlite.service"
    state.mkdir(exist_ok=True)
    (state / "cluster.json").write_text(json.dumps({"job": job, "address": address}))
    return state


def unfinished(archives, name="begun"):
    """Write a search that has scored something and chosen nothing."""
    (archives / name).mkdir()
    build(archives / name / "archive.sqlite", [Merge((0, 0, 0), (0.5,) * 3)])


@pytest.mark.parametrize("key", ["done", "flat.sqlite"])
def test_what_was_deleted_is_not_made_again_by_who_wants_to_change_it(archives, key):
    build(archives / "flat.sqlite", [Merge((0, 0, 0), (0.5,) * 3)])
    searches = Searches(archives)
    files = searches.find(key)
    with files.changing():
        pass  # from now on there is a directory beside the archive
    searches.remove(files)
    left = sorted(archives.iterdir())
    with pytest.raises(NotFoundError, match=f"no search `{key}`"), files.changing():
        pass
    assert sorted(archives.iterdir()) == left


@pytest.mark.parametrize("key", ["done", "flat.sqlite"])
def test_who_waited_while_it_was_deleted_finds_that_it_is_gone(archives, key):
    build(archives / "flat.sqlite", [Merge((0, 0, 0), (0.5,) * 3)])
    searches = Searches(archives)
    files = searches.find(key)
    waits = threading.Event()

    def change() -> None:
        waits.set()
        with files.changing():
            pytest.fail("it was changed after it was deleted")

    with ThreadPoolExecutor() as pool:
        with files.changing():
            waiting = pool.submit(change)
            waits.wait()
            time.sleep(0.2)
            searches.remove(files)
            left = sorted(archives.iterdir())
        with pytest.raises(NotFoundError):
            waiting.result()
    assert sorted(archives.iterdir()) == left
    assert key not in searches.all()


def test_who_changes_a_search_is_alone(archives, monkeypatch):
    monkeypatch.setattr(search_files, "_LOCK_S", 0.1)
    files, again = Searches(archives).find("done"), Searches(archives).find("done")
    with (
        files.changing(),
        pytest.raises(ConflictError, match="just being changed"),
        again.changing(),
    ):
        pass


def test_search_is_not_deleted_while_it_is_changed(client, archives, monkeypatch):
    monkeypatch.setattr(search_files, "_LOCK_S", 0.1)
    with (
        Searches(archives).find("done").changing(),
        pytest.raises(ServiceRefusedError, match="just being changed") as refused,
    ):
        client.delete("done")
    assert refused.value.status == 409
    assert client.search("done").state == "finished"


@pytest.mark.usefixtures("processes")
def test_second_wish_to_stop_sends_no_second_signal(client, archives):
    process = DetachedProcess(archives / "done" / "archive.sqlite.service")
    counts = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "print('up', flush=True)\n"
        "time.sleep(60)\n"
    )
    process.start([sys.executable, "-c", counts])
    wait_until(lambda: "up" in process.last_output())
    with ThreadPoolExecutor() as pool:
        states = [one.state for one in pool.map(lambda _: client.stop("done"), range(8))]
    assert set(states) == {"stopping"}
    wait_until(lambda: "asked" in process.last_output())
    time.sleep(0.3)
    assert process.last_output().count("asked") == 1
    client.stop("done", force=True)
    assert not process.is_alive


@pytest.mark.usefixtures("processes")
def test_failed_life_is_forgotten_once_somebody_else_goes_on(client, archives):
    unfinished(archives)
    process = DetachedProcess(archives / "begun" / "archive.sqlite.service")
    process.start([sys.executable, "-c", "print('error: no models'); raise SystemExit(2)"])
    wait_until(lambda: process.facts().exit_code == 2)
    found = client.search("begun")
    assert (found.state, found.error) == ("failed", "no models")
    with Archive.open(archives / "begun" / "archive.sqlite", writable=True) as archive:
        archive.begin_run()
        assert client.search("begun").state == "running"
    assert client.search("begun").state == "interrupted"


def test_cluster_says_how_its_searches_are(settings, archives, dashboard):
    statuses = {
        "PENDING": "starting",
        "RUNNING": "starting",
        "STOPPED": "interrupted",
        "FAILED": "failed",
        "SUCCEEDED": "interrupted",  # as its archive says
        "forgotten": "interrupted",
    }
    for status in statuses:
        unfinished(archives, status)
        launched(archives, f"job-{status}", dashboard.address, status)
        if status != "forgotten":
            dashboard.jobs[f"job-{status}"] = status
    with serving(settings(cluster=ClusterAccess(dashboard.address))) as client:
        found = {one.id: one for one in client.searches()}
        assert {key: found[key].state for key in statuses} == statuses
        assert found["FAILED"].error == "said of job-FAILED"
        assert dashboard.num_lists == 1
        # How it ended is known when the cluster is gone.
        dashboard.close()
        client_of_later = create_app(settings(), TOKEN)
    with TestClient(client_of_later, base_url=URL) as http:
        later = {one.id: one for one in ServiceClient(URL, TOKEN, http=http).searches()}
    ended = {"STOPPED", "FAILED", "SUCCEEDED"}
    assert {key: later[key].state for key in statuses} == {
        key: state if key in ended else "unknown" for key, state in statuses.items()
    }
    assert later["FAILED"].error == "said of job-FAILED"
    assert "without --address" in later["RUNNING"].error


def test_search_of_which_nobody_knows_is_neither_deleted_resumed_nor_stopped(
    settings, archives, dashboard
):
    launched(archives, "job-1", dashboard.address)
    dashboard.close()
    with serving(settings(cluster=ClusterAccess(dashboard.address))) as client:
        assert client.search("done").state == "unknown"
        for attempt in (client.delete, client.resume):
            with pytest.raises(ServiceRefusedError, match="nobody can say") as refused:
                attempt("done")
            assert refused.value.status == 409
        with pytest.raises(ServiceRefusedError, match="nobody answers") as refused:
            client.stop("done")
        assert refused.value.status == 502
    assert (archives / "done" / "archive.sqlite").exists()


def test_launch_on_another_cluster_is_not_taken_for_one_that_ended(settings, archives, dashboard):
    launched(archives, "job-1", "http://elsewhere.example:8265")
    with serving(settings(cluster=ClusterAccess(dashboard.address))) as client:
        found = client.search("done")
        assert found.state == "unknown"
        assert "launched on http://elsewhere.example:8265" in found.error
        with pytest.raises(ServiceRefusedError, match="the service uses") as refused:
            client.log("done")
        assert refused.value.status == 502
        with pytest.raises(ServiceRefusedError, match=r"elsewhere.*remove .*cluster\.json"):
            client.delete("done")


@pytest.mark.usefixtures("processes")
def test_search_that_goes_on_here_is_no_longer_one_of_the_cluster(settings, archives, dashboard):
    state = launched(archives, "job-1", dashboard.address)
    dashboard.jobs["job-1"] = "FAILED"
    with serving(settings(cluster=ClusterAccess(dashboard.address))) as client:
        assert client.search("done").state == "failed"
    with serving(settings(model_roots=(Path("/models"),))) as client:
        client.resume("done", {"budget.evaluations": 10})
        found = client.search("done")
        assert (found.runner, found.cluster_job) == ("local", None)
        DetachedProcess(state).kill()
        assert client.search("done").state == "finished"


@pytest.mark.usefixtures("processes")
def test_export_is_of_what_was_answered_whatever_is_recorded_later(client, archives):
    wish = {"prefer": {"math": 1.0}, "floors": {"code": 0.5}}
    begun = client.export("done", **wish)
    directory = archives / "done" / "archive.sqlite.service" / "exports" / begun.id
    command = read_record(directory / "process.json")["command"]
    assert command[command.index("--candidate") + 1] == str(begun.candidate)
    assert command[command.index("--chosen-by") + 1] == begun.rule
    assert not {"--prefer", "--at-least", "--knee", "--id"} & set(command)
    assert "math" in begun.rule


@pytest.mark.usefixtures("processes")
def test_exports_and_searches_begun_at_once_are_no_more_than_may_run(settings, archives):
    for number in range(3):
        shutil.copytree(archives / "done", archives / f"copy-{number}")
    keys = ["done", *(f"copy-{number}" for number in range(3))]
    with serving(settings(max_searches=2)) as client:

        def begin(key):
            try:
                return client.export(key).state
            except ServiceRefusedError as refused:
                return refused.kind_there

        with ThreadPoolExecutor() as pool:
            said = sorted(pool.map(begin, keys))
    assert said == ["busy", "busy", "running", "running"]


def test_search_that_finds_no_room_keeps_its_job(settings, archives):
    unfinished(archives)
    service = settings(max_searches=0, model_roots=(Path("/models"),))
    with serving(service) as client, pytest.raises(ServiceRefusedError, match="at most 0 may"):
        client.resume("begun", {"budget.evaluations": 10})
    assert not (archives / "begun" / "archive.sqlite.service" / "job.yaml").exists()


@pytest.mark.usefixtures("processes")
def test_search_that_somebody_changes_keeps_no_other_from_starting(client, archives, monkeypatch):
    monkeypatch.setattr(search_files, "_LOCK_S", 60.0)
    unfinished(archives)
    waits, real = threading.Event(), search_files._is_locked_in_time

    def is_locked(descriptor):
        waits.set()
        return real(descriptor)

    with ThreadPoolExecutor() as pool:
        with Searches(archives).find("begun").changing():
            monkeypatch.setattr(search_files, "_is_locked_in_time", is_locked)
            refused = [pool.submit(attempt, "begun") for attempt in (client.resume, client.delete)]
            assert waits.wait(60)
            assert client.export("done").state == "running"
            assert not any(one.done() for one in refused)
        for one in refused:
            one.exception()


def test_search_is_not_locked_while_its_cluster_ends_it(settings, archives, dashboard):
    launched(archives, "job-1", dashboard.address)
    dashboard.jobs["job-1"] = "RUNNING"
    cluster = ClusterAccess(dashboard.address)
    with serving(settings(cluster=cluster)) as client, ThreadPoolExecutor() as pool:
        stopping = pool.submit(client.stop, "done")
        wait_until(lambda: dashboard.asked_to_end == ["job-1"])
        with Searches(archives).find("done").changing():
            assert not stopping.done()
        dashboard.jobs["job-1"] = "STOPPED"
        assert stopping.result().state == "interrupted"


@pytest.mark.usefixtures("processes")
def test_search_is_not_deleted_while_an_export_is_written(client, archives):
    client.export("done")
    with pytest.raises(ServiceRefusedError, match="an export is being written"):
        client.delete("done")
    [export] = client.exports("done")
    answer = client._send("DELETE", f"/searches/done/exports/{export.id}")
    assert answer.status_code == 200
    client.delete("done")
    assert list(archives.iterdir()) == []
