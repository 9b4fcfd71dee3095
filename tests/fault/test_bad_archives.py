"""Archives that a command cannot make, read or go on with: one clear message, and no Ray."""

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import Result

from optimizer.archive.archive import Archive
from tests.fault.refused_commands import begin_archive, mergefront, refused

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def archive_path(job, write_job) -> Path:
    """The archive of a search that was just begun from the job file."""
    return begin_archive(job, write_job())


def test_run_does_not_overwrite_an_archive(write_job, archive_path):
    before = archive_path.read_bytes()
    refused(
        mergefront("run", write_job()), 4, "exists already", f"mergefront resume {archive_path}"
    )
    assert archive_path.read_bytes() == before


def test_run_that_was_refused_leaves_no_archive(write_job, job):
    mergefront("run", write_job(lambda job: job["search"].update(strategy="cmaes")))
    assert not Path(job.archive).exists()


def test_archive_that_cannot_be_made_is_refused_by_the_check(start, write_job, tmp_path):
    (tmp_path / "file").touch()
    path = write_job(lambda job: job.update(archive=str(tmp_path / "file" / "a.sqlite")))
    refused(start(path), 2, "archive", "is no directory")


def test_job_edited_before_resume_is_refused_key_by_key(archive_path, write_job):
    def edit(job: dict) -> None:
        job["search"]["sigma"] = 0.4
        job["merge"]["weight"]["high"] = 2.0

    write_job(edit)
    refused(
        mergefront("resume", archive_path), 4,
        "search.sigma: 0.2 -> 0.4", "merge.weight.high: 1.5 -> 2.0", "--archived-job",
    )  # fmt: skip


def test_other_job_file_is_refused_on_resume(archive_path, write_job, tmp_path):
    other = write_job(lambda job: job.update(seed=7)).rename(tmp_path / "other.yaml")
    write_job()
    refused(mergefront("resume", archive_path, "--job", other), 4, "seed: 0 -> 7", "other.yaml")


@pytest.mark.parametrize("arguments", [[], ["--archived-job"]])
def test_job_that_only_asks_for_more_goes_on(archive_path, write_job, arguments):
    write_job(lambda job: job["budget"].update(evaluations=30))
    result = mergefront("resume", archive_path, *arguments)
    assert isinstance(result.exception, ImportError)  # it went as far as Ray
    assert ("budget.evaluations: 8 -> 30" in result.stderr) == (not arguments)


def test_archived_job_goes_on_after_the_file_was_edited(archive_path, write_job):
    write_job(lambda job: job.update(seed=7))
    result = mergefront("resume", archive_path, "--archived-job", "--evaluations", "9")
    assert isinstance(result.exception, ImportError)


def test_archived_job_goes_on_after_the_file_was_removed(archive_path, write_job):
    write_job().unlink()
    result = mergefront("resume", archive_path)
    assert isinstance(result.exception, ImportError)
    assert "is gone; going on with the archived job" in result.stderr


def test_keys_that_change_the_search_cannot_be_set_on_resume(archive_path):
    refused(
        mergefront("resume", archive_path, "--set", "seed=3", "--set", "budget.hours=1"), 2,
        "seed: cannot change on resume",
    )  # fmt: skip


def test_checkpoint_that_changed_is_refused_on_resume(archive_path, write_job, copy_of, tiny_pool):
    with Archive.open(archive_path) as archive:
        math = archive.sources.checkpoints[2].directory
    backup = copy_of(math)
    shutil.copy(tiny_pool.checkpoints["code"] / "model.safetensors", math)
    try:
        refused(mergefront("resume", archive_path), 3, "`math` has changed", str(math))
    finally:
        shutil.copy(backup / "model.safetensors", math)


def test_task_that_changed_is_refused_on_resume(archive_path, job):
    task = Path(job.evaluation.include_path[0]) / "tiny_text.yaml"
    before = task.read_text(encoding="utf-8")
    task.write_text(before.replace("max_gen_toks: 6", "max_gen_toks: 9"), encoding="utf-8")
    try:
        refused(mergefront("resume", archive_path), 4, "tiny_text: its definition differs")
    finally:
        task.write_text(before, encoding="utf-8")


READERS = (
    ["status"],
    ["front"],
    ["report"],
    ["plot", "--out", "never.png"],
    ["export", "--out", "never"],
)


@pytest.fixture(params=[["resume"], *READERS], ids=lambda arguments: arguments[0])
def use(request, tmp_path, monkeypatch) -> Iterator[Callable[[Path], Result]]:
    """Use an archive in every way that there is."""
    monkeypatch.chdir(tmp_path)
    command, *options = request.param
    yield lambda path: mergefront(command, path, *options)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_archive_of_another_version_is_refused(use, archive_path):
    with sqlite3.connect(archive_path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    refused(use(archive_path), 4, str(archive_path), "99")


def test_archive_that_is_not_there_is_named(use, tmp_path):
    refused(use(tmp_path / "none.sqlite"), 4, "none.sqlite")


def test_file_that_is_no_archive_is_refused(use, tmp_path):
    (tmp_path / "text.sqlite").write_text("not an archive", encoding="utf-8")
    refused(use(tmp_path / "text.sqlite"), 4, "text.sqlite")


def test_second_driver_on_an_archive_is_refused(archive_path):
    with Archive.open(archive_path, writable=True):
        refused(mergefront("resume", archive_path), 4, "is being written by process")


def test_archive_can_be_read_while_it_is_written(archive_path):
    with Archive.open(archive_path, writable=True):
        assert mergefront("status", archive_path).exit_code == 0
        assert "running" in mergefront("status", archive_path).stdout
