"""The command line as a person uses it, on the tiny pool."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.e2e.browser import chromium


class CommandLine:
    """Runs ``mergefront`` in processes of their own, in one working directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        # Children of a test must not inherit what the test runner put into its own process.
        self.environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command as the leader of its own process group, as a shell does."""
        return subprocess.Popen(
            [sys.executable, "-m", "optimizer.cli", *arguments],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, timeout_s: float = 180) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever its exit code."""
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"{' '.join(arguments)} took more than {timeout_s} s:\n{out}\n{err}")
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)

    def succeed(self, *arguments: str, timeout_s: float = 180) -> str:
        """Run a command that must succeed; returns its standard output."""
        done = self.run(*arguments, timeout_s=timeout_s)
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}\n{done.stderr}"
        return done.stdout


@pytest.fixture
def mergefront(tmp_path):
    return CommandLine(tmp_path)


@pytest.fixture
def job_file(tiny_job, tmp_path):
    """Writes a job on the tiny pool as YAML; keyword arguments replace sections."""

    def write(**sections):
        settings = {
            "archive": str(tmp_path / "run" / "archive.sqlite"),
            "budget": {"evaluations": 18},
            "validation": {"candidates": 2},
            "workers": {"count": 2, "cpus": 0.5, "threads": 1},
        }
        job = tiny_job(**(settings | sections))
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
        return path

    return write


@pytest.fixture(scope="module")
def browser():
    """The system's Chromium; skips where there is none."""
    with chromium() as found:
        yield found
