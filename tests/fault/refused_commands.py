"""The command line on real tiny jobs, and what every refusal of it has in common."""

from pathlib import Path

from typer.testing import CliRunner, Result

from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.cli.app import app
from optimizer.preflight.preflight import prepare


def mergefront(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, exit_code: int, *texts: str) -> str:
    """Check that a command ended with one clear message; returns it."""
    message = result.stderr
    assert result.exit_code == exit_code, f"{result.output}\n{result.exception!r}"
    assert result.stdout == ""
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for text in texts:
        assert text in message
    return message


def begin_archive(job: JobConfig, job_path: Path) -> Path:
    """Make the archive of a search that was just begun from a job file; returns its path."""
    prepared = prepare(job)
    Archive.create(
        Path(job.archive),
        job=job,
        job_path=job_path,
        sources=prepared.sources,
        manifest=prepared.manifest,
    ).close()
    return Path(job.archive)
