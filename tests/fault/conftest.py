"""Jobs that can be broken before a command reads them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from configs.schema import JobConfig
from tests.fault.refused_commands import mergefront


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let importing Ray fail, so that a command which gets as far as that shows it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.startswith("workers.ray_")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def job(tiny_job, tmp_path) -> JobConfig:
    return tiny_job(archive=str(tmp_path / "archive.sqlite"), budget={"evaluations": 8})


@pytest.fixture
def write_job(job, tmp_path) -> Callable[..., Path]:
    """Write the job file, after changing the content of the job."""

    def write(change: Callable[[dict], object] = lambda content: None) -> Path:
        content = job.model_dump(mode="json")
        change(content)
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def copy_of(tmp_path) -> Callable[[Path], Path]:
    """Copy a checkpoint, so that it can be broken."""
    return lambda directory: Path(shutil.copytree(directory, tmp_path / f"my-{directory.name}"))


@pytest.fixture(params=["check", "run"])
def start(request) -> Callable[[Path], Result]:
    """Check a job, or try to run it."""
    return lambda path: mergefront(request.param, path)


@pytest.fixture(scope="module")
def network(request):
    """A head, and two hosts with room for two small workers each, for the tests of a module.

    With the dashboard, which serves the Jobs API, where the module says ``NEEDS_DASHBOARD``.
    """
    from scripts.bench.hosts import HostsUnavailableError, Network

    try:
        has_dashboard = getattr(request.module, "NEEDS_DASHBOARD", False)
        made = Network("head", "one", "two", has_dashboard=has_dashboard)
    except HostsUnavailableError as reason:
        pytest.skip(f"no network namespaces here: {reason}")
    with made:
        made.turn_on()
        yield made
