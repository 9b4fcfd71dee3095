"""Launched searches on a small cluster with a token: killed, side by side, and refused.

``tests/fault/test_cluster_launch.py`` does more of it on hosts with addresses of their own.
"""

import json
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

from configs.errors import WorkerError
from optimizer.archive.archive import Archive
from optimizer.archive.verify import verify_archive
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from scripts.bench.fault_cluster import LocalCluster
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

# Within so long somebody is told what is wrong.
LIMIT_S = 30.0


class Launcher:
    """The command line of somebody beside the cluster, who has its token."""

    def __init__(self, mergefront, cluster):
        self._mergefront, self._cluster = mergefront, cluster
        token = mergefront.directory / "token"
        token.write_text(cluster.token)
        self._options = ["--address", cluster.dashboard, "--token-file", str(token)]
        kept = mergefront.environment
        mergefront.environment = {k: v for k, v in kept.items() if not k.startswith("RAY_")}

    def run(self, command, *arguments):
        python = ["--python", sys.executable] if command == "launch" else []
        return self._mergefront.run(command, *map(str, arguments), *python, *self._options)

    def launch(self, job, *options):
        done = self.run("launch", job, *options)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self, job_id):
        return json.loads(self.run("status", job_id, "--json").stdout)["status"]

    def follow(self, job_id):
        done = self.run("logs", job_id, "--follow")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def kill(self, text):
        """Kill -9 the processes of the cluster with a text in their command; returns how many."""
        token, killed = self._cluster.token, 0
        for process in psutil.process_iter():
            try:
                is_meant = text in " ".join(process.cmdline())
                if is_meant and process.environ().get("RAY_AUTH_TOKEN") == token:
                    process.kill()
                    killed += 1
            except psutil.Error:
                continue
        return killed


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster(num_nodes=1, has_jobs=True) as made:
        yield made


@pytest.fixture
def launcher(mergefront, cluster):
    return Launcher(mergefront, cluster)


def start_s(launcher):
    """How long the command line and a driver take to start here."""
    began = time.monotonic()
    code = "import optimizer.cli.search_commands, optimizer.cli.launch_commands, ray"
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.monotonic() - began


def num_recorded(path):
    if not path.exists():
        return 0
    with Archive.open(path) as archive:
        return len(archive.evaluations())


def check_whole(path, evaluations):
    """One outcome of everything, whose proposals come out again."""
    with Archive.open(path) as archive:
        keys = [outcome.key for outcome in archive.evaluations()]
        assert len(keys) == len(set(keys))
        told = [seen.candidate.index for seen in archive.observations()]
        assert len(told) >= evaluations
        assert sorted(told) == list(range(len(told)))
        assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []
        assert archive.choice() in archive.scores("report")
    assert verify_archive(path).problems == []


def test_search_whose_worker_and_driver_are_killed_goes_on_when_launched_again(
    launcher, job_file, tmp_path
):
    archive = tmp_path / "run" / "archive.sqlite"
    job = job_file(
        budget={"evaluations": 6},
        validation={"candidates": 1},
        search={"strategy": "dirichlet"},
    )
    # More than it will come to; a budget may change on resume.
    first = launcher.launch(job, "--evaluations", 5000)
    wait_until(lambda: num_recorded(archive) >= 2)
    assert launcher.kill("ray::WorkerActor") >= 1
    known = num_recorded(archive)
    wait_until(lambda: num_recorded(archive) > known)
    assert launcher.kill("optimizer.cli.launched") >= 1
    wait_until(lambda: launcher.status(first) == "failed", every_s=0.5)
    second = launcher.launch(job)
    assert "search ended: budget of" in launcher.follow(second)
    assert launcher.status(second) == "succeeded"
    check_whole(archive, 6)


def test_two_searches_share_a_cluster_and_a_directory_of_archives(launcher, job_file, tmp_path):
    archives = [tmp_path / "run" / f"{seed}.sqlite" for seed in (1, 2)]
    jobs = []
    for seed, archive in enumerate(archives, start=1):
        job = job_file(
            archive=str(archive),
            seed=seed,
            budget={"evaluations": 17},
            validation={"candidates": 1},
            search={"strategy": "dirichlet"},
            workers={"count": 1, "cpus": 0.5, "threads": 1},
        )
        jobs.append(job.rename(tmp_path / f"{seed}.yaml"))
    with ThreadPoolExecutor() as threads:
        launched = list(threads.map(launcher.launch, jobs))
        for said in threads.map(launcher.follow, launched):
            assert "search ended" in said
    times = []
    for archive in archives:
        check_whole(archive, 17)
        with Archive.open(archive) as found:
            times.append([outcome.finished_at for outcome in found.evaluations()])
    # Side by side, not one after the other.
    assert times[0][0] < times[1][-1]
    assert times[1][0] < times[0][-1]


def test_what_cannot_run_is_said_in_time_without_options(launcher, job_file, tmp_path):
    job = job_file()
    starts_s = 2 * start_s(launcher)
    began = time.monotonic()
    done = launcher.run("launch", job, "--set", "workers.device=cuda", "--set", "workers.gpus=1")
    took_s = time.monotonic() - began
    assert done.returncode == WorkerError.exit_code, done.stderr
    assert "do not fit here, found 0 CPUs, 0 GPUs; 1 CPUs, 0 GPUs" in done.stderr
    # Of the command and of the driver, however long a start takes on a busy machine.
    assert took_s - starts_s < LIMIT_S, f"{took_s:.0f} s, of it {starts_s:.0f} s of starts"
    assert not (tmp_path / "run").exists()
