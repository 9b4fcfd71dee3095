"""The driver of a launched search, as a job of a Ray cluster runs it on the head node.

``python -m optimizer.cli.launched job.json --python X.Y --ray V`` in the directory that
``optimizer.launch.stage`` filled. It begins the search, or goes on with it where its archive is
there already, and ends with the exit codes of the command line.
"""

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import typer

from configs.errors import ClusterError, MergefrontError


def main() -> None:
    """Run the search of a staged job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job", type=Path, help="the staged job")
    parser.add_argument("--python", required=True, help="version of Python where it was launched")
    parser.add_argument("--ray", required=True, help="version of Ray where it was launched")
    arguments = parser.parse_args()
    try:
        check_versions(arguments.python, arguments.ray)
        _run(arguments.job)
    except MergefrontError as error:
        _fail(error)
    except typer.Exit as ending:
        sys.exit(ending.exit_code)


def check_versions(python: str, ray: str) -> None:
    """Refuse to run what another Python or Ray has launched.

    Raises:
        ClusterError: A version differs; of Python the first two numbers count.
    """
    here = ".".join(platform.python_version_tuple()[:2])
    if python != here:
        raise ClusterError(
            f"the cluster has Python {here} ({sys.executable}), the job was launched from Python "
            f"{python}; launch it from Python {here}, or name another one on the cluster with "
            "--python"
        )
    if ray != (installed := version("ray")):
        raise ClusterError(
            f"{sys.executable} on the cluster has Ray {installed}, the job was launched from Ray "
            f"{ray}; install one of them on both sides"
        )


def _run(path: Path) -> None:
    from configs.schema import JobConfig
    from optimizer.cli.search_commands import run_or_resume

    # Not `load_job`: the paths are relative to where this job was unpacked, on every node.
    job = JobConfig.model_validate(json.loads(path.read_text(encoding="utf-8")))
    run_or_resume(job)


def _fail(error: MergefrontError) -> NoReturn:
    print(f"error: {error.message}", file=sys.stderr)  # the log of the job
    sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
