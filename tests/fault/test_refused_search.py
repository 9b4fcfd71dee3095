"""A search that cannot begin leaves no record behind, so that the mended job can be run."""

import pytest
import ray

from configs.errors import ArchiveExistsError, ClusterError, WorkerError
from optimizer.archive.archive import Archive
from optimizer.cli.search_commands import run_or_resume
from tests.fault.refused_commands import begin_archive, mergefront, refused
from workers import ray_session


@pytest.fixture(autouse=True)
def _no_ray_here(monkeypatch):
    # Another test of this process may have a Ray running, which a search would use.
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


def test_cluster_that_does_not_answer_leaves_no_archive(write_job, job):
    path = write_job(lambda content: content["workers"].update(address="127.0.0.1:1"))
    message = refused(
        mergefront("run", path), ClusterError.exit_code, "nobody answers at `127.0.0.1:1`"
    )
    assert "archive" not in message, "a cluster is looked at before anything else is done"
    assert not Archive.exists(job.archive)


def test_ray_that_does_not_start_leaves_no_archive(write_job, job, monkeypatch):
    def fail(**options):
        raise RuntimeError("The current node timed out during startup")

    monkeypatch.setattr(ray_session, "_init", fail)
    result = mergefront("run", write_job())
    assert result.exit_code == WorkerError.exit_code, result.output
    assert "error: cannot start Ray on this machine: The current node" in result.stderr
    assert not Archive.exists(job.archive)


def test_archive_of_another_search_is_left_alone(write_job, job):
    path = write_job(lambda content: content["workers"].update(address="127.0.0.1:1"))
    begin_archive(job, path)
    refused(mergefront("run", path), ClusterError.exit_code)
    refused(mergefront("run", write_job()), ArchiveExistsError.exit_code, "mergefront resume")
    with Archive.open(job.archive) as archive:
        assert archive.job.digest == job.digest


def test_second_of_two_drivers_is_told_what_goes_on(write_job, job, monkeypatch):
    path = write_job()
    begin_archive(job, path)
    # Nothing was there when it looked, since the first began a moment later.
    monkeypatch.setattr(Archive, "exists", lambda place: False)
    said = f"archive {job.archive} was begun by another driver of this job a moment ago"
    with pytest.raises(ArchiveExistsError, match=said) as error:
        run_or_resume(job)
    assert "launch again when it ended" in str(error.value)
    assert "mergefront resume" not in str(error.value), "the archive is on the head"
    message = refused(mergefront("run", path, "--or-resume"), ArchiveExistsError.exit_code, said)
    assert "run this again" in message
