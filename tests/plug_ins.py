"""Packages that bring merge methods and strategies, as pip installs them and as tests pretend."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from configs import plug_ins

Install = Callable[..., None]


def pretend(monkeypatch: pytest.MonkeyPatch, group: str) -> Install:
    """Return what makes entry points of a group known, by name and value."""

    def install(**values: str) -> None:
        points = {name: EntryPoint(name, value, group) for name, value in values.items()}
        monkeypatch.setattr(plug_ins, "brought", {group: points}.__getitem__)

    return install


def run_with_package(directory: Path, group: str, source: str, name: str, code: str) -> str:
    """Install a package with one entry point; returns what a program prints beside it."""
    (directory / "plug_in.py").write_text(source)
    metadata = directory / "plug_in-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plug-in\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\nmine = plug_in:{name}\n")
    path = os.pathsep.join([str(directory), str(Path(__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
