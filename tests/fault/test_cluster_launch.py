"""`mergefront launch` and what follows it, on a cluster of hosts with token authentication."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import yaml

from configs.errors import ClusterError, JobChangedError
from optimizer.archive.archive import Archive
from optimizer.archive.verify import verify_archive
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from scripts.bench.hosts import ROOT, TOKEN

pytestmark = pytest.mark.campaign
NEEDS_DASHBOARD = True
# Within so long somebody is told what is wrong.
LIMIT_S = 30.0


class Mergefront:
    """The command line of a person beside the cluster."""

    def __init__(self, network, directory):
        self.network, self.directory = network, directory
        self.token = directory / "token"
        self.token.write_text(TOKEN)
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self._environment = {**kept, "PYTHONPATH": str(ROOT), "HOME": str(directory)}

    def __call__(self, *arguments, token=True, is_patient=True):
        # A busy machine takes its time to see what is wrong.
        arguments += ("--wait", "240") if arguments[0] == "launch" and is_patient else ()
        options = [] if "--address" in arguments else ["--address", self.network.dashboard]
        options += ["--token-file", str(self.token)] if token else []
        return subprocess.run(
            [sys.executable, "-m", "optimizer.cli", *map(str, arguments), *options],
            cwd=self.directory, env=self._environment, capture_output=True, text=True,
            timeout=300, check=False,
        )  # fmt: skip

    def refused(self, *arguments, token=True):
        """Run a command that must say in time what is wrong, however long a start takes here."""
        began = time.monotonic()
        # With what `launch` waits for by itself.
        done = self(*arguments, token=token, is_patient=False)
        took_s = time.monotonic() - began
        # Of the command, and of the driver on the head.
        starts_s = 2 * self._start_s()
        assert took_s - starts_s < LIMIT_S, f"{took_s:.0f} s, of it {starts_s:.0f} s of starts"
        return done

    def _start_s(self):
        began = time.monotonic()
        code = "import optimizer.cli.search_commands, optimizer.cli.launch_commands, ray"
        subprocess.run(
            [sys.executable, "-c", code], cwd=self.directory, env=self._environment, check=True
        )
        return time.monotonic() - began

    def launch(self, job, *options):
        done = self("launch", job, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def states(self):
        return {
            job["job"]: job["status"] for job in json.loads(self("list", "--json").stdout)["jobs"]
        }


@pytest.fixture
def mergefront(network, tmp_path):
    network.turn_on()
    command = Mergefront(network, tmp_path)
    yield command
    assert "running" not in command.states().values(), "something was left running"


@pytest.fixture
def job_file(tiny_job, tmp_path):
    def write(**sections):
        settings = {
            "archive": str(tmp_path / "runs" / "archive.sqlite"),
            "budget": {"evaluations": 18},
            "validation": {"candidates": 1},
            "search": {"strategy": "dirichlet"},
            "workers": {"count": 2, "cpus": 0.5, "threads": 1},
        }
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(tiny_job(**(settings | sections)).model_dump(mode="json")))
        return path

    return write


def test_launched_search_is_followed_stopped_and_launched_again(mergefront, job_file, tmp_path):
    job, archive = job_file(), tmp_path / "runs" / "archive.sqlite"
    # More than it will come to; a budget may change on resume.
    first = mergefront.launch(job, "--evaluations", 5000)
    wait_for_outcomes(archive, 3)
    # Of the other tests on this cluster nothing may run.
    states = mergefront.states()
    assert [job for job, state in states.items() if state == "running"] == [first]
    refused = mergefront("launch", job)
    assert refused.returncode == 4, refused.stderr
    assert "is being written by process" in refused.stderr
    stopped = mergefront("stop", first)
    assert stopped.returncode == 0, stopped.stderr
    assert f"{first}: stopped" in stopped.stderr
    second = mergefront.launch(job)
    followed = mergefront("logs", second, "--follow")
    assert followed.returncode == 0, followed.stderr
    assert "of 18 evaluations recorded" in followed.stdout
    assert "] search: 0 of" not in followed.stdout
    assert "search ended: budget of 18 evaluations spent" in followed.stdout
    assert f"{second}: succeeded" in mergefront("status", second).stdout
    with Archive.open(archive) as found:
        keys = [outcome.key.candidate for outcome in found.outcomes("search")]
        assert len(keys) == len(set(keys))
        assert set(keys) >= set(range(18))
        assert found.choice() in found.scores("report")
    changed = job_file(seed=7)
    refused = mergefront("launch", changed)
    assert refused.returncode == JobChangedError.exit_code, refused.stderr
    assert f"archive {archive} holds another search" in refused.stderr
    assert "seed: 0 -> 7" in refused.stderr
    unknown = mergefront("logs", "mergefront-none-0")
    assert unknown.returncode == ClusterError.exit_code
    assert "knows no job `mergefront-none-0`" in unknown.stderr


def test_launched_search_whose_worker_and_driver_are_killed_goes_on_when_launched_again(
    mergefront, job_file, tmp_path
):
    job, archive, hosts = job_file(), tmp_path / "runs" / "archive.sqlite", mergefront.network.hosts
    first = mergefront.launch(job, "--evaluations", 5000)
    wait_for_outcomes(archive, 2)
    assert sum(host.kill("ray::WorkerActor") for host in hosts.values()) >= 1
    with Archive.open(archive) as found:
        number = len(found.outcomes("search"))
    wait_for_outcomes(archive, number + 2)
    assert hosts["head"].kill("optimizer.cli") >= 1
    wait_until(lambda: mergefront.states()[first] == "failed")
    second = mergefront.launch(job)
    followed = mergefront("logs", second, "--follow")
    assert "search ended: budget of 18 evaluations spent" in followed.stdout, followed.stderr
    assert f"{second}: succeeded" in mergefront("status", second).stdout
    with Archive.open(archive) as found:
        keys = [outcome.key for outcome in found.evaluations()]
        assert len(keys) == len(set(keys))
        assert {key.candidate for key in keys} >= set(range(18))
        assert verify_replay(found, SearchSpace(found.job, found.sources)) == []
        assert found.choice() in found.scores("report")
    assert verify_archive(archive).problems == []


def wait_until(happened):
    end = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < end, "not within 120 s"
        time.sleep(1.0)


def wait_for_outcomes(path, number):
    end = time.monotonic() + 240
    while time.monotonic() < end:
        if path.exists():
            with Archive.open(path) as archive:
                if len(archive.outcomes("search")) >= number:
                    return
        time.sleep(0.5)
    pytest.fail(f"{path} has no {number} outcomes")


def test_what_cannot_run_is_refused_at_once_and_leaves_nothing(
    mergefront, job_file, tiny_pool, tmp_path
):
    job = job_file()
    assert_refused(
        mergefront.refused("launch", job, token=False), "wants a token, and there is none"
    )
    mergefront.token.write_text("wrong")
    assert_refused(mergefront.refused("launch", job), "refuses the token")
    mergefront.token.write_text(TOKEN)
    no_gpu = mergefront.refused(
        "launch", job, "--set", "workers.device=cuda", "--set", "workers.gpus=1"
    )
    assert_refused(no_gpu, "do not fit here, found 0 CPUs, 0 GPUs; 1 CPUs, 0 GPUs; 1 CPUs, 0 GPUs")
    hidden = mergefront.network.hidden / "math"
    shutil.copytree(tiny_pool.checkpoints["math"], hidden, dirs_exist_ok=True)
    models = {**tiny_pool.models, "checkpoints": {"math": str(hidden)}}
    lacking = mergefront.refused("launch", job_file(models=models))
    assert_refused(lacking, "1 of 2 nodes lack checkpoints", "node two (10.", f"`math` ({hidden})")
    other = mergefront.refused("launch", job, "--python", write_old_python(tmp_path))
    assert_refused(other, "the cluster has Python 3.9")
    unreachable = mergefront.refused("launch", job, "--address", "http://127.0.0.1:1")
    assert_refused(unreachable, "nobody answers at http://127.0.0.1:1")
    assert not (tmp_path / "runs").exists()


def write_old_python(directory):
    """A Python that says it is older, and is not."""
    path = directory / "python3.9"
    code = "import platform, runpy, sys; platform.python_version_tuple = lambda: ('3', '9', '1')"
    run = "sys.argv = sys.argv[2:]; runpy.run_module(sys.argv[0], run_name='__main__')"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}; {run}" "$@"\n')
    path.chmod(0o755)
    return path


def assert_refused(done, *texts):
    assert done.returncode == ClusterError.exit_code, done.stderr
    for text in texts:
        assert text in done.stderr
