"""The pinned packages, and the shell functions that set up an environment."""

import re
import subprocess
import tomllib
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DIRECT = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not line.startswith("#")]


def test_constraints_pin_one_public_version_per_line_in_order():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in pins())
    names = [line.partition("==")[0] for line in pins()]
    assert names == sorted(set(names))


def test_constraints_pin_everything_that_is_needed():
    pinned = {line.partition("==")[0] for line in pins()}
    todo, seen = [Requirement(text) for text in DIRECT], set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        extras = requirement.extras or {""}
        if (name, *sorted(extras)) in seen:
            continue
        seen.add((name, *sorted(extras)))
        # torch brings the CUDA libraries of its build, which this project cannot know.
        if re.match("nvidia-|cuda-|triton$", name):
            continue
        assert name in pinned, f"{name} is needed and not pinned in constraints.txt"
        todo += [
            needed
            for needed in map(Requirement, distribution(name).requires or ())
            if needed.marker is None or any(needed.marker.evaluate({"extra": e}) for e in extras)
        ]


@pytest.mark.parametrize("text", DIRECT)
def test_constraints_satisfy_the_project(text):
    requirement = Requirement(text)
    versions = dict(line.split("==") for line in pins())
    version = versions[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True)


def call(script, root, **environment):
    """Source setup.sh for a repository at ``root``, then run a script."""
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; . {ROOT}/scripts/lib/setup.sh; {script}"],
        env={"PATH": "/usr/bin:/bin", "ROOT": str(root), **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def program(directory, name, body):
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_setup_refuses_an_old_python_and_says_what_it_found(tmp_path):
    for name in ("python3", "python3.13", "python3.12", "python3.11"):
        program(tmp_path / "bin", name, '[ "$1" = -V ] && echo "Python 3.9.2"; exit 1')
    done = call("find_python", tmp_path, PATH=f"{tmp_path}/bin:/usr/bin:/bin")
    assert done.returncode == 1
    assert "Python 3.11 or later is needed, found Python 3.9.2" in done.stderr


def test_setup_says_how_to_install_a_system_package_when_it_may_not(tmp_path):
    program(tmp_path / "bin", "id", "echo 1000")
    program(tmp_path / "bin", "sudo", "exit 1")
    done = call(
        'apt_install bubblewrap "generated code is run in a sandbox"',
        tmp_path,
        PATH=f"{tmp_path}/bin:/usr/bin:/bin",
    )
    assert done.returncode == 1
    assert "generated code is run in a sandbox, but bubblewrap is missing" in done.stderr
    assert "sudo apt-get install bubblewrap" in done.stderr


def test_setup_does_nothing_when_the_stamp_is_right_and_works_when_anything_changed(tmp_path):
    (tmp_path / "scripts" / "lib").mkdir(parents=True)
    (tmp_path / "scripts" / "lib" / "setup.sh").write_text("")
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "constraints.txt").write_text("torch==2.13.0\n")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    program(tmp_path / "bin", "bwrap", "exit 0")
    log = tmp_path / "log"
    program(tmp_path / ".venv" / "bin", "python", f'echo "$@" >>{log}')

    def set_up():
        log.write_text("")
        done = call("set_up; echo $PATH", tmp_path, PATH=f"{tmp_path}/bin:/usr/bin:/bin")
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{tmp_path}/.venv/bin:")
        return [line for line in log.read_text().splitlines() if "install" in line]

    first = set_up()
    assert [line.split()[-1] for line in first] == ["torch==2.13.0", f"{tmp_path}[dev]"]
    assert set_up() == []
    (tmp_path / "constraints.txt").write_text("torch==2.13.1\n")
    assert len(set_up()) == 2
    assert set_up() == []
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    assert len(set_up()) == 2
