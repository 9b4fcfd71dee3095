"""The documentation is built, and what its pages show is run in their order, on small models."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import mergefront
from configs.load import job_of
from configs.schema import JobConfig
from optimizer.cli.app import app
from tests.doc_pages import DOCS, PAGES, README, ROOT, Box, boxes_of
from tests.e2e.service_server import printed_link

pytestmark = pytest.mark.slow

RUN = [page for page in [*PAGES, README] if any(box.is_run for box in boxes_of(page))]
# Of these pages CI makes sure; the others take minutes more (the tutorial's way is that of the
# quickstart, which CI runs).
GATED = ("README", "service")
# What is in front of the PATH: the commands of this source tree, and a pip that installs beside it.
PROGRAMS = {
    "python": 'exec {python} "$@"',
    "mergefront": '[ "$1" != serve ] || set -- "$@" --port 0\nexec {python} -m optimizer.cli "$@"',
    "pip": '[ "$1" = install ] && shift\n'
    "exec {python} -m pip install --no-deps --no-build-isolation --no-index --quiet "
    '--target {site} "$@"',
}


class Reader:
    """Does what a page says, in a directory of its own."""

    def __init__(self, directory: Path, outside: Path) -> None:
        self.directory = directory
        programs, site = outside / "bin", outside / "site"
        programs.mkdir(parents=True)
        for name, text in PROGRAMS.items():
            script = text.format(python=sys.executable, site=site)
            (programs / name).write_text(f"#!/bin/sh\n{script}\n")
            (programs / name).chmod(0o755)
        self.environment = {
            **os.environ,
            "PATH": f"{programs}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT}:{site}",
            "XDG_STATE_HOME": str(outside / "state"),
        }
        self._beside: list[subprocess.Popen[bytes]] = []

    def follow(self, box: Box) -> None:
        """Write a file, run a command, or leave out what cannot be run."""
        if box.file is not None:
            path = self.directory / box.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(box.text)
        elif box.is_run and box.runs_beside:
            self._start(box)
        elif box.is_run:
            done = subprocess.run(
                self._command(box), cwd=self.directory, env=self.environment,
                capture_output=True, text=True, check=False, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, f"{box}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    def close(self) -> None:
        """End what still runs beside."""
        for process in self._beside:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(timeout=30)

    def _start(self, box: Box) -> None:
        """Start a service, and wait for the link that it prints."""
        said = self.directory / "said.log"
        with said.open("w") as log:
            process = subprocess.Popen(
                self._command(box), cwd=self.directory, env=self.environment, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._beside.append(process)
        url, token = printed_link(process, said)
        self.environment |= {"SERVICE_URL": url, "SERVICE_TOKEN": token}

    @staticmethod
    def _command(box: Box) -> list[str]:
        if box.language == "python":
            return [sys.executable, "-c", box.text]
        return ["bash", "-euo", "pipefail", "-c", box.text]


@pytest.fixture(scope="module")
def searched(tiny_pool, tiny_job, tmp_path_factory) -> Path:
    """A directory as ``docs/guides/index.md`` describes it, with a search that has ended."""
    directory = tmp_path_factory.mktemp("guides")
    for name in ("base", "math", "code"):
        place = tiny_pool.base if name == "base" else tiny_pool.checkpoints[name]
        shutil.copytree(place, directory / "models" / name)
    shutil.copytree(tiny_job().evaluation.include_path[0], directory / "tasks")
    content = {
        "name": "job",
        "models": {
            "base": "models/base",
            "checkpoints": {"math": "models/math", "code": "models/code"},
        },
        "objectives": {"math": "tiny_text", "code": "tiny_choice"},
        "evaluation": {
            "include_path": ["tasks"],
            "data_dir": "tasks",
            "splits": {"search": 8, "select": 4, "report": 4},
        },
        "budget": {"evaluations": 16},
        "validation": {"candidates": 1},
        "archive": "runs/job/archive.sqlite",
    }
    (directory / "job.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    mergefront.run(job_of(content, directory=directory), in_process=True)
    return directory


@pytest.fixture(scope="module")
def repository(tiny_pool, tmp_path_factory) -> Path:
    """What the tutorial needs of a clone: a small budget, and a zoo that is finished."""
    from scripts.zoo import build
    from scripts.zoo.item import SKILLS
    from scripts.zoo.recipe import Recipe
    from scripts.zoo.work import Trained

    def copy(checkpoints, out, *_, on_step, record) -> None:
        """Stand in for the training: tiny models as the checkpoints of the zoo."""
        for checkpoint in checkpoints:
            place = {"base": tiny_pool.base, **tiny_pool.checkpoints}[checkpoint.name]
            shutil.copytree(place, out / checkpoint.name)
            record(checkpoint, Trained(checkpoint.name, dict.fromkeys(SKILLS, 0.5), 0.1, 1.0))

    directory = tmp_path_factory.mktemp("repository")
    for name in ("scripts", "evaluators"):
        (directory / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "_train_all", copy)
        build.build_zoo(directory / "runs" / "zoo", Recipe(), seed=0)
    job = yaml.safe_load((ROOT / "configs" / "quickstart.yaml").read_text())
    job["evaluation"]["splits"] = {"search": 8, "select": 4, "report": 8}
    job["budget"] = {"evaluations": 18}
    job["validation"] = {"candidates": 1}
    (directory / "configs").mkdir()
    (directory / "configs" / "quickstart.yaml").write_text(yaml.safe_dump(job))
    return directory


@pytest.fixture
def read(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Reader]:
    """A reader of the page that the test is called with."""
    page: Path = request.node.callspec.params["page"]
    if page.name == "tutorial.md" and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is missing, in which the tasks of the zoo run code")
    prepared = request.getfixturevalue("repository" if page.parent == DOCS else "searched")
    directory = tmp_path / "work"
    shutil.copytree(prepared, directory, symlinks=True)
    reader = Reader(directory, tmp_path)
    yield reader
    reader.close()


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[] if page.stem in GATED else [pytest.mark.campaign])
        for page in RUN
    ],
)
def test_what_a_page_shows_works_as_it_stands(page: Path, read: Reader) -> None:
    # Files first: the README shows its own where it explains them.
    for box in sorted(boxes_of(page), key=lambda box: box.file is None and page == README):
        read.follow(box)


def test_documentation_is_built_without_a_warning_and_has_all_that_there_is(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-b", "html", DOCS, tmp_path],
        capture_output=True, text=True, check=False, timeout=900,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    reference = {
        name: re.sub(r"<[^>]+>", "", (tmp_path / "reference" / f"{name}.html").read_text())
        for name in ("job", "commands", "http", "python")
    }
    assert [key for key in JobConfig.model_fields if key not in reference["job"]] == []
    names = [name for name in get_command(app).commands if f"mergefront {name}" not in
             reference["commands"]]  # fmt: skip
    assert names == []
    assert "GET /api/v1/searches/{search}/front" in reference["http"]
    assert [name for name in mergefront.__all__ if name not in reference["python"]] == []
    # Pages are read without a network: nothing is loaded from elsewhere.
    sources = re.findall(r'(?:src|href)="(https?://[^"]+\.(?:js|css|woff2?))"',
                         (tmp_path / "index.html").read_text())  # fmt: skip
    assert sources == []
