"""Log records as JSON lines, with the ids of what they are about."""

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import WorkerLostError
from workers.job import failure_of
from workers.json_log import JsonFormatter, about
from workers.outcome import EvaluationKey, EvaluationRequest, Stage

ROOT = Path(__file__).parents[3]
KEY = EvaluationKey(7, "search")

# A worker's process without Ray: one evaluation warns, from a thread as well, and one fails.
WORKER = """
import logging, threading
from types import SimpleNamespace
from workers.outcome import EvaluationKey, EvaluationRequest
from workers.worker_process import WorkerProcess

logger = logging.getLogger("some.library")

class Runner:
    def run(self, request, attempt):
        logger.warning("slow here")
        thread = threading.Thread(target=logger.warning, args=("slow %s", "there"))
        thread.start()
        thread.join()
        raise RuntimeError("no more")

settings = SimpleNamespace(workers=SimpleNamespace(threads=1))
process = WorkerProcess()
process.start(SimpleNamespace(job=settings, search="s1"), lambda spec, name: Runner(), "worker-3")
logger.error("before")
process.run(EvaluationRequest(EvaluationKey(7, "select"), None), 2)
logger.error("after")
"""


@pytest.fixture
def lines():
    """Collects the lines of the records that are logged meanwhile."""
    written = []

    class Lines(logging.Handler):
        def emit(self, record):
            written.append(json.loads(self.format(record)))

    handler = Lines()
    handler.setFormatter(JsonFormatter("s1"))
    logging.getLogger().addHandler(handler)
    yield written
    logging.getLogger().removeHandler(handler)


def ids(line):
    return {
        name: line[name] for name in ("candidate", "split", "attempt", "worker") if name in line
    }


def test_record_has_the_ids_that_its_call_knows(lines):
    request = EvaluationRequest(KEY, None)
    failure_of(WorkerLostError("gone"), request, 2, worker="worker-1@host:9", stage=Stage.WORKER)
    (line,) = lines
    assert (line["search"], line["event"]) == ("s1", "log")
    assert ids(line) == {
        "candidate": 7, "split": "search", "attempt": 2, "worker": "worker-1@host:9"
    }  # fmt: skip
    assert "WorkerLostError: gone" in line["traceback"]


def test_record_of_a_pool_has_the_ids_in_its_arguments(lines):
    logger = logging.getLogger("workers.ray_pool")
    logger.warning("%s on %s is lost: %s", "worker-2@host:9", "node host", "killed")
    logger.warning("%s did not start: %s", "worker-12", "worker-1 of another job is there")
    logger.warning("dropped a second outcome of %s", KEY)
    logger.warning("worker-5 is a text of somebody else")
    assert [ids(line) for line in lines] == [
        {"worker": "worker-2@host:9"}, {"worker": "worker-12"},
        {"candidate": 7, "split": "search"}, {},
    ]  # fmt: skip


def test_records_of_a_process_are_about_what_it_does(lines):
    logger = logging.getLogger("a")
    with about(candidate=1):
        with about(split="select"):
            logger.warning("in both")
        logger.warning("in one")
    logger.warning("in none")
    assert [ids(line) for line in lines] == [
        {"candidate": 1, "split": "select"},
        {"candidate": 1},
        {},
    ]


def test_process_of_a_worker_logs_lines_with_its_ids():
    done = subprocess.run(
        [sys.executable, "-c", WORKER], cwd=ROOT, capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    worker = lines[0]["worker"]
    assert worker.startswith("worker-3@")
    assert {line["search"] for line in lines} == {"s1"}
    evaluation = {"candidate": 7, "split": "select", "attempt": 2, "worker": worker}
    assert [(line["message"], ids(line)) for line in lines] == [
        ("before", {"worker": worker}),
        ("slow here", evaluation),
        ("slow there", evaluation),
        (f"candidate 7 failed on select at worker (attempt 2, worker {worker})", evaluation),
        ("after", {"worker": worker}),
    ]
