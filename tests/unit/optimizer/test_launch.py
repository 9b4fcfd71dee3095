"""What a cluster is sent, and what it answers when it cannot run a search; no Ray is started."""

import json
import shlex
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.errors import ClusterError, ConfigError
from configs.load import load_job
from configs.schema import JobConfig
from optimizer.cli import app as cli
from optimizer.cli import launch_commands, launched
from optimizer.launch import JOB_FILE, entrypoint, new_job_id, stage
from tests.unit.workers.cluster_ports import serving
from workers.cluster_token import find_token
from workers.ray_jobs import ClusterAccess, JobClient, JobFacts

JOB = """
models: {{base: /cluster/base, checkpoints: {{one: org/one, two: /cluster/two}}}}
objectives:
  skill: [{{task: own}}]
  pairs: [{{scorer: metrics.py:similarity, items: pairs.jsonl}}]
evaluation: {{include_path: [tasks], data_dir: {data_dir}}}
workers: {{count: 3, address: "ray://elsewhere:10001"}}
archive: runs/archive.sqlite
"""


@pytest.fixture
def job(tmp_path, monkeypatch):
    """Writes a job with files of its own, and loads it there."""
    monkeypatch.chdir(tmp_path)
    for name in ("tasks", "data", "tasks/__pycache__"):
        Path(name).mkdir()
    Path("tasks/own.yaml").write_text("task: own\n")
    Path("tasks/__pycache__/x.pyc").write_text("")
    Path("metrics.py").write_text("def similarity(): ...\n")
    Path("data/pairs.jsonl").write_text("{}\n")
    Path("pairs.jsonl").write_text("{}\n")

    def load(data_dir="data"):
        Path("job.yaml").write_text(JOB.format(data_dir=data_dir))
        return load_job(Path("job.yaml"))

    return load


def staged(job, directory):
    directory.mkdir()
    sent = stage(job, directory)
    written = JobConfig.model_validate(json.loads((directory / JOB_FILE).read_text()))
    assert written == sent
    return sent


def test_files_of_a_job_are_sent_and_named_relative_to_the_directory(job, tmp_path):
    sent = staged(job(), tmp_path / "sent")
    assert sent.evaluation.include_path == ["files/tasks-0"]
    assert sent.evaluation.data_dir == "files/data"
    (scorer,) = sent.objectives["pairs"].scorers
    assert scorer.scorer == "files/scorers/similarity/metrics.py:similarity"
    assert scorer.items == "pairs.jsonl", "it is in the data directory"
    for path in ("tasks-0/own.yaml", "data/pairs.jsonl", "scorers/similarity/metrics.py"):
        assert (tmp_path / "sent/files" / path).is_file()
    assert not list((tmp_path / "sent").rglob("__pycache__"))


def test_learned_merges_are_sent_without_the_weights_beside_them(job, tmp_path):
    for path in ("dam/recipe.json", "dam/merge/coefficients.safetensors", "dam/model.safetensors"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("{}")
    Path("mine.json").write_text("{}")
    here = job().model_copy(
        update={
            "baselines": {
                "DAM": str(tmp_path / "dam"),
                "mine": str(tmp_path / "mine.json"),
                "there": "/cluster/dam",
            }
        }
    )
    sent = staged(here, tmp_path / "sent")
    assert sent.baselines == {
        "DAM": "files/baselines/DAM/recipe.json",
        "mine": "files/baselines/mine/mine.json",
        "there": "/cluster/dam",
    }
    home = tmp_path / "sent/files/baselines"
    assert sorted(path.relative_to(home).as_posix() for path in home.rglob("*.*")) == [
        "DAM/coefficients.safetensors", "DAM/recipe.json", "mine/mine.json",
    ]  # fmt: skip


def test_items_without_a_data_directory_are_sent_too(job, tmp_path):
    sent = staged(job("null"), tmp_path / "sent")
    (scorer,) = sent.objectives["pairs"].scorers
    assert scorer.items == "files/items/similarity/pairs.jsonl"
    assert (tmp_path / "sent" / scorer.items).is_file()


def test_what_is_not_here_is_a_path_of_the_cluster(job, tmp_path):
    sent = staged(job("/cluster/data"), tmp_path / "sent")
    assert sent.evaluation.data_dir == "/cluster/data"
    assert sent.objectives["pairs"].scorers[0].items == "pairs.jsonl", "in that directory"


def test_a_launched_job_joins_the_cluster_and_searches_the_same(job, tmp_path):
    here = job()
    sent = staged(here, tmp_path / "sent")
    assert sent.workers.address == "auto"
    assert sent.workers.count == 3
    assert (sent.models, sent.archive) == (here.models, here.archive)
    again = staged(here, tmp_path / "again")
    assert again.digest == sent.digest, "a second launch is a resume"


@pytest.mark.slow
def test_code_that_is_sent_runs_without_an_installation(job, tmp_path):
    staged(job(), tmp_path / "sent")
    code = "import optimizer.cli.launched, workers.ray_pool; print(optimizer.cli.launched.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "sent", env={"PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "sent")


def test_files_that_are_too_large_are_refused(job, tmp_path, monkeypatch):
    monkeypatch.setattr("optimizer.launch._MAX_BYTES", 3)
    with pytest.raises(ConfigError, match=r"evaluation.data_dir: .*at most 0 MB are sent"):
        stage(job(), tmp_path)


def test_entrypoint_and_id_name_what_they_are():
    command = entrypoint("/opt/my python")
    assert command.startswith(
        "exec '/opt/my python' -m optimizer.cli.launched job.json --python 3."
    )
    assert new_job_id("8B models!").startswith("mergefront-8B-models-")
    assert new_job_id("x") != new_job_id("x")


def test_driver_refuses_another_python_and_another_ray(capsys, monkeypatch):
    with pytest.raises(ClusterError, match=r"the cluster has Python 3\.\d+ .* from Python 2\.7"):
        launched.check_versions("2.7", version("ray"))
    monkeypatch.setattr(sys, "argv", ["launched", "job.json", "--python", "2.7", "--ray", "1"])
    with pytest.raises(SystemExit) as ending:
        launched.main()
    assert ending.value.code == ClusterError.exit_code
    assert capsys.readouterr().err.startswith("error: the cluster has Python")
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    with pytest.raises(ClusterError, match=r"has Ray .*, the job was launched from Ray 1\.0"):
        launched.check_versions(here, "1.0")


@contextmanager
def dashboard(code=200, body=b"", wanted=None):
    """Something that answers HTTP, for a while; wants a token where one is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            given = self.headers.get("Authorization")
            refusal = 401 if given is None else 403
            wrong = wanted is not None and given != f"Bearer {wanted}"
            self.send_response(refusal if wrong else code)
            self.end_headers()
            self.wfile.write(b"" if wrong else body)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def no_token(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_unreachable_address_is_named_at_once():
    with pytest.raises(ClusterError, match=r"nobody answers at http://127.0.0.1:1: .*refused"):
        JobClient(ClusterAccess("http://127.0.0.1:1"))


@pytest.mark.parametrize("address", ["ray://head:10001", "head:8265", "auto", "http://"])
def test_other_kinds_of_addresses_are_told_apart(address):
    with pytest.raises(ClusterError, match="must be that of the dashboard, such as http://HEAD"):
        JobClient(ClusterAccess(address))


def test_service_that_is_no_dashboard_is_told_apart():
    with dashboard(404) as address, pytest.raises(ClusterError, match="no dashboard of Ray"):
        JobClient(ClusterAccess(address))
    with (
        dashboard(body=b"<html>") as address,
        pytest.raises(ClusterError, match="no version in its answer"),
    ):
        JobClient(ClusterAccess(address))


def test_port_of_grpc_is_told_apart_without_its_bytes():
    with serving("") as address, pytest.raises(ClusterError, match="does not speak HTTP") as error:
        JobClient(ClusterAccess(f"http://{address}"))
    assert str(error.value).isprintable()


def test_command_that_follows_has_the_options_that_launched(job, monkeypatch):
    class Client:
        def __init__(self, access):
            self.address = access.address

        def submit(self, job_id, entrypoint, directory, **_):
            self.job_id = job_id

        def facts(self, job_id):
            assert job_id == self.job_id
            return JobFacts(job_id, "RUNNING", "", {}, None, None)

        def logs(self, job_id):
            return "[   0:00] search: 3 evaluations to do\n"

    job()
    monkeypatch.setattr(launch_commands, "JobClient", Client)
    options = ["--address", "https://head:8265", "--token-file", "my token", "--tls-ca", "ca.pem"]
    result = CliRunner().invoke(cli.app, ["launch", "job.yaml", *options, "--tls-insecure"])
    assert result.exit_code == 0, result.output
    follow = (
        f"mergefront logs {result.stdout.strip()} {shlex.join(options)} --tls-insecure --follow"
    )
    assert f"follow it with `{follow}`" in result.stderr
    assert ClusterAccess("http://head:8265").options == "--address http://head:8265"


def test_other_version_of_ray_is_refused():
    body = json.dumps({"ray_version": "2.9.3"}).encode()
    message = r"runs Ray 2\.9\.3, here is Ray .*: install the cluster's version here"
    with dashboard(body=body) as address, pytest.raises(ClusterError, match=message):
        JobClient(ClusterAccess(address))


def test_missing_and_wrong_tokens_are_told_apart(monkeypatch, tmp_path):
    file = tmp_path / "token"
    file.write_text("wrong\n")
    with dashboard(wanted="right") as address:
        with pytest.raises(ClusterError, match="wants a token, and there is none: set RAY_AUTH"):
            JobClient(ClusterAccess(address))
        with pytest.raises(ClusterError, match=r"refuses the token \(HTTP 403\)"):
            JobClient(ClusterAccess(address, token_file=file))
        monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
        with pytest.raises(ClusterError, match="no dashboard"):
            JobClient(ClusterAccess(address))


def test_token_is_looked_for_where_ray_does(monkeypatch, tmp_path):
    assert find_token(None) is None
    home = tmp_path / ".ray" / "auth_token"
    home.parent.mkdir()
    home.write_text(" of home\n")
    assert find_token(None) == "of home"
    other = tmp_path / "other"
    other.write_text("of path")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert find_token(None) == "of path"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of variable")
    assert find_token(None) == "of variable"
    assert find_token(other) == "of path"
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token(None) is None


def test_token_that_is_wanted_but_missing_is_an_error(monkeypatch, tmp_path):
    with pytest.raises(ClusterError, match=r"the token cannot be read: .*No such file"):
        find_token(tmp_path / "none")
    empty = tmp_path / "empty"
    empty.write_text("\n")
    with pytest.raises(ClusterError, match="holds no token"):
        find_token(empty)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ClusterError, match="RAY_AUTH_MODE is `token`, but there is no token"):
        find_token(None)


def test_commands_end_with_the_exit_code_of_a_cluster():
    for command in (["list"], ["stop", "x"], ["logs", "x"], ["status", "mergefront-x-1"]):
        result = CliRunner().invoke(cli.app, [*command, "--address", "http://127.0.0.1:1"])
        assert result.exit_code == ClusterError.exit_code
        assert result.output.startswith("error: nobody answers at http://127.0.0.1:1")
