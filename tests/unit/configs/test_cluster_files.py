"""The files for clusters: as valid as can be told without the servers that they are for."""

import json
import os
import re
import shlex
import shutil
import subprocess
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from configs.worker_settings import WorkerSettings
from optimizer.cli import app as cli

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "configs" / "cluster"
# Those of a Dockerfile that images of ours may need.
INSTRUCTIONS = {"FROM", "ARG", "RUN", "COPY", "ENV", "WORKDIR", "USER", "ENTRYPOINT", "CMD"}


def load(name):
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def assert_command_is_understood(command):
    """Let our command line read a command, which then finds no such job file."""
    program, *arguments = shlex.split(command)
    assert program == "mergefront"
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 2, result.output
    assert "cannot be read" in result.output or "no such file" in result.output, result.output
    assert "Usage:" not in result.output


def test_ray_cluster_satisfies_the_schema_of_ray():
    schema = json.loads(files("ray").joinpath("autoscaler/ray-schema.json").read_text())
    cluster = load("ray-cluster.yaml")
    jsonschema.validate(cluster, schema)
    types = cluster["available_node_types"]
    assert cluster["head_node_type"] in types
    assert sum(kind["max_workers"] for kind in types.values()) <= cluster["max_workers"]
    commands = cluster["head_start_ray_commands"] + cluster["worker_start_ray_commands"]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)


def test_nodes_of_aws_get_the_image_and_what_outlives_them():
    cluster = load("ray-cluster.yaml")
    told = (CLUSTER / "ray-cluster.yaml").read_text().partition("\ncluster_name")[0]
    docker = cluster["docker"]
    assert docker["pull_before_run"], "a new machine has no image"
    assert f"docker push {docker['image']}" in told
    assert "MORE=boto3" in told
    # Ray runs the common commands on the head, where workers have their own.
    head = cluster["initialization_commands"]
    worker = cluster["available_node_types"]["gpu"]["initialization_commands"]
    for commands, mounts in ((head, ["/archive", "/models"]), (worker, ["/models"])):
        for command in commands:
            subprocess.run(["bash", "-n", "-c", command], check=True)
        for mount in mounts:
            assert any(f"mountpoint -q {mount} || sudo mount" in command for command in commands)
    assert any("attach-volume" in command for command in head)
    assert not any("/archive" in command for command in worker)
    assert "-v /archive:/archive" in docker["head_run_options"]
    assert not any("/archive" in option for option in docker["run_options"])
    placeholders = set(re.findall(r"(?:vol|fs)-[A-Z]+", " ".join([*head, *worker])))
    assert placeholders == {"vol-ARCHIVE", "fs-MODELS"}
    assert all(name in told for name in placeholders)
    zone = cluster["provider"]["availability_zone"]
    assert zone.startswith(cluster["provider"]["region"])
    assert zone in told


def test_options_of_ray_start_are_those_of_this_ray():
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in parameter.opts}
    text = (CLUSTER / "slurm.sh").read_text() + (CLUSTER / "ray-cluster.yaml").read_text()
    for command in re.findall(r"ray start((?: +\S+|\s*\\?\n +--\S+)*)", text):
        used = set(re.findall(r"--[a-z-]+", command))
        assert used
        assert used <= known
    parameters = load("kuberay-rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert {f"--{name}" for name in parameters["rayStartParams"]} <= known


def test_ray_job_of_kubernetes_has_what_the_operator_asks_for():
    job = load("kuberay-rayjob.yaml")
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec.keys() <= {
        "entrypoint", "backoffLimit", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished",
        "rayClusterSpec", "runtimeEnvYAML", "submissionMode", "suspend", "activeDeadlineSeconds",
    }  # fmt: skip
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    # Ray would kill a search that is stopped after 3 s.
    assert float(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > WorkerSettings().grace_s
    cluster = spec["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray"), "the version that we are tested with"
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod["volumes"]}
        for container in pod["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
            assert {entry["name"] for entry in container["env"]} >= {
                "RAY_AUTH_MODE",
                "RAY_AUTH_TOKEN",
            }
            assert container["resources"]["limits"] == container["resources"]["requests"]
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert all(isinstance(v, str) for v in cluster["headGroupSpec"]["rayStartParams"].values())
    assert_command_is_understood(spec["entrypoint"])


def test_slurm_script_is_clean():
    script = CLUSTER / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_slurm_script_does_not_wait_for_ray_without_end(tmp_path):
    for name, does in {
        "scontrol": "echo node1",
        "hostname": "echo 10.0.0.1",
        "srun": 'while [ "${1#-}" != "$1" ]; do [ "$1" = -w ] && shift; shift; done; "$@"',
        "ray": "echo not today >&2; exit 1",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", CLUSTER / "slurm.sh", "job.yaml"], capture_output=True, text=True, check=False,
        timeout=60, env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_START_S": "1", "SLURM_JOB_ID": "7",
            "SLURM_JOB_NODELIST": "node1", "SLURM_CPUS_PER_TASK": "2",
        },
    )  # fmt: skip
    assert done.returncode == 1
    assert "no Ray on node1 after 1 s" in done.stderr
    assert "not today" in done.stderr


def test_slurm_script_runs_a_command_that_exists():
    text = (CLUSTER / "slurm.sh").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"mergefront run .*?(?= &$)", text, flags=re.MULTILINE)
    command = command.replace('"$job"', "job.yaml").replace("$address:$port", "10.0.0.1:6379")
    assert_command_is_understood(command)


def test_image_is_made_of_what_is_here():
    text = (CLUSTER / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert {line.split()[0] for line in lines} <= INSTRUCTIONS
    assert lines[0].startswith("FROM python:3.")
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    pyproject = (ROOT / "pyproject.toml").read_text()
    packages = re.search(r"include = \[(.*)\]", pyproject).group(1)
    assert set(re.findall(r'"(\w+)\*"', packages)) <= set(copied)
    assert "cluster = [" in pyproject
