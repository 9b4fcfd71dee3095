"""The commands of searches on a cluster: launch, logs, stop, list, and the status of a job."""

import os
import re
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from configs.errors import ClusterError, ConfigError, Problem
from configs.load import load_job
from optimizer.cli.read_commands import print_json, stdout_console
from optimizer.launch import submit
from workers.ray_jobs import ClusterAccess, JobClient, JobFacts

_POLL_S = 0.5
_TAIL_LINES = 5
# What the driver prints once its search is under way.
_UNDER_WAY = re.compile(r"^\[[ :\d]+\] search: ", re.MULTILINE)
_ERROR = re.compile(r"^error: ", re.MULTILINE)


def launch(
    job_path: Path,
    access: ClusterAccess,
    *,
    overrides: Mapping[str, object],
    python: str,
    environment: Mapping[str, str],
    wait_s: float,
    as_json: bool,
) -> None:
    """Submit the search of a job to a cluster, and print the id under which it runs there.

    Waits until it is under way, for ``wait_s`` at most: what goes wrong at once (another Python, no
    GPU, no checkpoint) is an error of this command then.
    """
    job = load_job(job_path, overrides)
    client = JobClient(access)
    job_id = submit(job, client, python=python, environment=environment)
    _say(f"submitted {job_id}; its archive is {job.archive} on the head node")
    facts = _watch(client, job_id, wait_s)
    if facts.status in {"FAILED", "STOPPED"}:
        _report_failure(facts, client.logs(job_id))
    _say(f"follow it with `mergefront logs {job_id} {access.options} --follow`")
    if as_json:
        print_json(_record(facts, client.address))
    else:
        sys.stdout.write(f"{job_id}\n")


def read_environment(settings: list[str] | None) -> dict[str, str]:
    """Read ``--env`` options; a name alone takes the value that it has here.

    Raises:
        ConfigError: A name has no value here.
    """
    found, problems = {}, []
    for setting in settings or []:
        name, equals, value = setting.partition("=")
        if not equals and name not in os.environ:
            problems.append(Problem("--env", f"`{name}` has no value here; give NAME=VALUE"))
            continue
        found[name] = value if equals else os.environ[name]
    if problems:
        raise ConfigError("the command line cannot be read", problems)
    return found


def logs(job_id: str, access: ClusterAccess, *, follow: bool) -> None:
    """Print what a job has printed, and with ``follow`` what it prints until it ends."""
    client = JobClient(access)
    if not follow:
        sys.stdout.write(client.logs(job_id))
        return
    client.facts(job_id)
    for chunk in client.follow(job_id):
        sys.stdout.write(chunk)
        sys.stdout.flush()


def status(job_id: str, access: ClusterAccess, *, as_json: bool) -> None:
    """Print what the cluster says of a job, and the last that the job said."""
    client = JobClient(access)
    facts = client.facts(job_id)
    lines = client.logs(job_id).splitlines()[-_TAIL_LINES:]
    if as_json:
        print_json({**_record(facts, client.address), "last_lines": lines})
        return
    console = stdout_console()
    console.print(f"{job_id}: {facts.status.lower()}", style="bold", markup=False, soft_wrap=True)
    archive = facts.metadata.get("archive", "unknown")
    console.print(f"  archive      {archive}, on the head node", markup=False, soft_wrap=True)
    for line in lines:
        console.print(f"  {line}", markup=False, soft_wrap=True)


def stop(job_id: str, access: ClusterAccess, *, as_json: bool) -> None:
    """End a job, and wait for that; its archive stays."""
    client = JobClient(access)
    facts = client.stop(job_id)
    if as_json:
        print_json(_record(facts, client.address))
        return
    _say(f"{job_id}: {facts.status.lower()}; launch the same job again to go on with its search")


def list_jobs(access: ClusterAccess, *, as_json: bool) -> None:
    """Print the searches of a cluster."""
    client = JobClient(access)
    records = [_record(facts, client.address) for facts in client.jobs()]
    if as_json:
        print_json({"jobs": records})
        return
    for record in records:
        columns = (record["job"], record["status"], record["started_at"] or "-", record["archive"])
        sys.stdout.write("  ".join(str(column) for column in columns) + "\n")
    if not records:
        _say(f"no search was launched on {client.address}")


def _watch(client: JobClient, job_id: str, wait_s: float) -> JobFacts:
    """Wait until a search is under way or has failed, but not long."""
    end = time.monotonic() + wait_s
    while True:
        facts = client.facts(job_id)
        is_known = facts.has_ended or _UNDER_WAY.search(client.logs(job_id))
        if is_known or time.monotonic() > end:
            return facts
        time.sleep(_POLL_S)


def _report_failure(facts: JobFacts, text: str) -> None:
    """End as a driver ended on the cluster: with its error, and its exit code where it has one.

    Raises:
        ClusterError: It said nothing that is known.
    """
    found = list(_ERROR.finditer(text))
    if facts.exit_code and found:
        typer.echo(text[found[-1].start() :].rstrip(), err=True)
        raise typer.Exit(facts.exit_code)
    last = "\n".join(text.splitlines()[-20:]) or facts.message
    raise ClusterError(f"job `{facts.job_id}` {facts.status.lower()} at once:\n{last}")


def _record(facts: JobFacts, address: str) -> dict[str, Any]:
    started = facts.started_at
    return {
        "job": facts.job_id,
        "status": facts.status.lower(),
        "search": facts.metadata.get("search"),
        "archive": facts.metadata.get("archive"),
        "address": address,
        "started_at": None
        if started is None
        else datetime.fromtimestamp(started, UTC).isoformat(timespec="seconds"),
        "exit_code": facts.exit_code,
    }


def _say(text: str) -> None:
    typer.echo(text, err=True)
