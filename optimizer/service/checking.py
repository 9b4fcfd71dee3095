"""Checking a job as ``mergefront check`` does, in a process of its own.

Its checks import scorers and tasks and load models: nothing that the service wants in itself.
"""

import json
import os
import secrets
import signal
import subprocess
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from configs.errors import ConfigError
from optimizer.service.errors import BusyError
from optimizer.service.models import ProblemAnswer, ValidateAnswer, ValidateRequest
from optimizer.service.processes import child_environment, command_line
from optimizer.service.runner import Runner
from optimizer.service.searches import Searches

_TIMEOUT_S = 600.0


class JobChecker:
    """Checks jobs, one at a time."""

    def __init__(self, searches: Searches, runner: Runner) -> None:
        self._searches = searches
        self._runner = runner
        self._busy = threading.Lock()

    def check(self, request: ValidateRequest) -> ValidateAnswer:
        """Say what is wrong with a job.

        Raises:
            BusyError: Another job is just being checked.
        """
        archive = self._searches.directory / f"check-{secrets.token_hex(8)}.sqlite"
        try:
            job = self._runner.read_job(request.job, request.changes, str(archive))
        except ConfigError as error:
            problems = [ProblemAnswer(path=p.path, message=p.message) for p in error.problems]
            return ValidateAnswer(valid=False, message=error.title, problems=problems)
        if request.depth == "form":
            return ValidateAnswer(valid=True, message="the job can be read", problems=[])
        if not self._busy.acquire(blocking=False):
            raise BusyError("another job is just being checked; try again when it is done")
        try:
            with tempfile.TemporaryDirectory(prefix="mergefront-check-") as directory:
                path = Path(directory) / "job.yaml"
                text = yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False)
                path.write_text(text, encoding="utf-8")
                only_headers = ["--headers-only"] if request.depth == "headers" else []
                return _run(command_line("check", path, "--json", *only_headers), Path(directory))
        finally:
            self._busy.release()


def _run(command: list[str], directory: Path) -> ValidateAnswer:
    with subprocess.Popen(
        command,
        cwd=directory,
        env=child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            text = f"the check took more than {_TIMEOUT_S:g} s; try `headers`"
            return ValidateAnswer(valid=False, message=text, problems=[])
    found = _json(out)
    if process.returncode == 0 and found is not None:
        message = "every check passed that needs no evaluation"
        return ValidateAnswer(valid=True, message=message, problems=[], report=found)
    error = (found or {}).get("error")
    if isinstance(error, dict):
        problems = [ProblemAnswer(**problem) for problem in error["problems"]]
        return ValidateAnswer(valid=False, message=error["message"], problems=problems)
    last = err.decode(errors="replace").strip().splitlines()[-5:]
    return ValidateAnswer(valid=False, message="\n".join(last) or "the check died", problems=[])


def _json(out: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(out)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
