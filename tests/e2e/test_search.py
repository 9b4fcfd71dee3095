"""A search from job file to checkpoint through the command line, killed and resumed on its way."""

import json
import os
import signal
import time

import pytest

from optimizer.archive.archive import Archive
from tests.fault.processes import wait_until_gone

pytestmark = pytest.mark.slow


def recorded(mergefront, archive):
    return json.loads(mergefront.succeed("status", str(archive), "--json"))["evaluations"][
        "recorded"
    ]


def start_and_wait(mergefront, arguments, archive, evaluations):
    """Start a search, and return it when so many evaluations are recorded."""
    process = mergefront.start(*arguments)
    end = time.monotonic() + 400
    while time.monotonic() < end and process.poll() is None:
        if archive.exists() and _count(archive) >= evaluations:
            return process
        time.sleep(0.05)
    process.kill()
    out, err = process.communicate()
    pytest.fail(f"no {evaluations} evaluations in 400 s:\n{out}\n{err}")


def proposed(archive):
    from optimizer.archive.archive import Archive

    with Archive.open(archive) as reader:
        return len(reader.candidates())


def _count(archive):
    from configs.errors import ArchiveError
    from optimizer.archive.archive import Archive

    try:
        with Archive.open(archive) as reader:
            return len(reader.outcomes("search"))
    except ArchiveError:
        return 0  # opened between its creation and its first transaction


def test_search_survives_kills_and_ends_as_a_checkpoint(mergefront, job_file, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # More than is ever made of it: no search ends before it is killed.
    job = job_file(budget={"evaluations": 400})
    archive = tmp_path / "run" / "archive.sqlite"
    mergefront.succeed("check", str(job))

    search = start_and_wait(mergefront, ["run", str(job)], archive, 2)
    search.kill()
    search.communicate()
    before = recorded(mergefront, archive)
    assert before >= 2
    search = start_and_wait(mergefront, ["resume", str(archive)], archive, before + 2)
    search.kill()
    search.communicate()

    # What was in flight is evaluated as well.
    budget = max(18, proposed(archive) + 1)
    mergefront.succeed("resume", str(archive), "--evaluations", str(budget))
    status = json.loads(mergefront.succeed("status", str(archive), "--json"))
    assert status["evaluations"]["recorded"] == budget
    assert status["state"].startswith("finished")
    front = json.loads(mergefront.succeed("front", str(archive), "--json"))
    assert front["front"]

    exported = json.loads(
        mergefront.succeed("export", str(archive), "--out", str(tmp_path / "model"), "--json")
    )
    from optimizer.archive.archive import Archive

    with Archive.open(archive) as reader:
        assert reader.weights_digest(exported["candidate"]) == exported["weights_digest"]
        keys = [outcome.key for outcome in reader.outcomes("search")]
    assert len(keys) == len(set(keys)) == budget
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokens = model.generate(
        **tokenizer("red green then", return_tensors="pt"), max_new_tokens=4, do_sample=False
    )
    assert tokens.shape[1] > 4

    mergefront.succeed("plot", str(archive), "--out", str(tmp_path / "front"))
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "front.html").stat().st_size > 10_000


def test_search_says_how_to_go_on_when_interrupted_from_the_keyboard(
    mergefront, job_file, tmp_path
):
    import psutil

    job, archive = job_file(budget={"evaluations": 400}), tmp_path / "run" / "archive.sqlite"
    search = start_and_wait(mergefront, ["run", str(job)], archive, 1)
    below = [process.pid for process in psutil.Process(search.pid).children(recursive=True)]
    os.killpg(search.pid, signal.SIGINT)
    _, err = search.communicate(timeout=180)
    assert search.returncode == 130, err
    assert f"mergefront resume {archive}" in err
    assert "Traceback" not in err
    assert not wait_until_gone(below, within_s=120)
    assert recorded(mergefront, archive) >= 1
    with Archive.open(archive) as reader:
        assert reader.losses() == [], "what was under way is charged nothing"


def test_search_whose_workers_are_terminated_with_it_charges_nobody(mergefront, job_file, tmp_path):
    """As a service manager ends all processes of a service at once."""
    import psutil

    job, archive = job_file(budget={"evaluations": 400}), tmp_path / "run" / "archive.sqlite"
    search = start_and_wait(mergefront, ["run", str(job)], archive, 1)
    below = psutil.Process(search.pid).children(recursive=True)
    search.terminate()
    for process in below:
        if "WorkerActor" in " ".join(process.cmdline()):
            process.terminate()
    _, err = search.communicate(timeout=180)
    assert search.returncode, err
    with Archive.open(archive) as reader:
        assert reader.losses() == []


def test_search_loses_nothing_when_a_worker_is_killed(mergefront, job_file, tmp_path):
    import psutil

    job = job_file(budget={"evaluations": 40})
    archive = tmp_path / "run" / "archive.sqlite"
    search = start_and_wait(mergefront, ["run", str(job)], archive, 1)
    # The other may be starting yet.
    worker = next(
        process
        for process in psutil.Process(search.pid).children(recursive=True)
        if "WorkerActor" in " ".join(process.cmdline())
    )
    worker.kill()
    out, err = search.communicate(timeout=600)
    assert search.returncode == 0, err
    assert "raylet" not in out
    status = json.loads(mergefront.succeed("status", str(archive), "--json"))
    assert status["evaluations"]["recorded"] == 40
    assert status["failures"] == {}
