import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from optimizer.cli import app as cli
from optimizer.preflight import doctor

ROOT = Path(__file__).parents[4]


def by_name(directory: Path, **options: bool) -> dict[str, doctor.Finding]:
    return {finding.name: finding for finding in doctor.examine(directory, **options)}


def test_quick_look_finds_what_every_search_needs(tmp_path):
    found = by_name(tmp_path / "runs", quick=True)
    assert list(found) == [
        "Python", "packages", "machine", "GPUs", "compiler", "disk", "cache", "shared memory",
        "IFEval data",
    ]  # fmt: skip
    assert found["Python"].status == "ok"
    assert f"{len(os.sched_getaffinity(0))} cores" in found["machine"].found
    assert str(tmp_path) in found["disk"].found
    assert "GB/s" not in found["disk"].found
    assert all(finding.advice for finding in found.values() if finding.status != "ok")


def test_what_is_wrong_comes_with_what_to_do(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    found = by_name(tmp_path / "file" / "runs", quick=True)
    assert found["disk"].status == "fault"
    assert "is no directory" in found["disk"].found
    assert "--directory" in found["disk"].advice
    assert "apt-get install g++" in found["compiler"].advice


def test_packages_that_are_too_old_are_a_fault(monkeypatch):
    asked = ["torch>=999", "no-such-package-here", "numpy>=1", 'nothing>=1; extra == "x"']
    monkeypatch.setattr(doctor, "requires", lambda _: asked)
    found = doctor._packages()
    assert found.status == "fault"
    assert "needed >=999" in found.found
    assert "no-such-package-here is missing" in found.found
    assert "numpy" not in found.found
    assert "nothing" not in found.found


def test_check_that_breaks_is_a_fault_and_the_others_go_on(tmp_path, monkeypatch):
    def broken() -> doctor.Finding:
        raise OSError("the kernel says no")

    monkeypatch.setattr(doctor, "_machine", broken)
    found = by_name(tmp_path, quick=True)
    assert found["machine"].status == "fault"
    assert "the kernel says no" in found["machine"].found
    assert found["GPUs"].status in ("ok", "note")


def test_disk_is_measured(tmp_path):
    written, read = doctor._disk_rates(tmp_path)
    assert 0.001 < written < 100
    assert 0.001 < read < 1000
    assert list(tmp_path.iterdir()) == []


def test_command_ends_with_1_where_no_search_can_run(tmp_path):
    (tmp_path / "file").touch()
    runner = CliRunner()
    done = runner.invoke(cli.app, ["doctor", "--quick", "--directory", str(tmp_path), "--json"])
    record = json.loads(done.stdout)
    faults = [each for each in record["findings"] if each["status"] == "fault"]
    assert done.exit_code == (1 if faults else 0)
    assert record["works"] is not bool(faults)
    place = str(tmp_path / "file" / "x")
    done = runner.invoke(cli.app, ["doctor", "--quick", "--directory", place])
    assert done.exit_code == 1
    assert "FAULT disk" in done.stdout


@pytest.mark.slow
def test_whole_look_starts_what_searches_start(tmp_path):
    command = [sys.executable, "-m", "optimizer.cli", "doctor", "--directory", str(tmp_path)]
    done = subprocess.run(
        [*command, "--json"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    found = {each["name"]: each for each in json.loads(done.stdout)["findings"]}
    assert found["Ray"]["status"] == "ok", found["Ray"]
    assert found["hub"]["found"].startswith("offline mode is on")
    assert "GB/s" in found["disk"]["found"]
    assert found["sandbox"]["status"] == "ok" or "bubblewrap" in found["sandbox"]["advice"]
