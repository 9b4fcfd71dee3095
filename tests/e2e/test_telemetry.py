"""A search on the tiny pool that tells log, trackers and Ray's own metrics of itself."""

import json
import os
import re
import signal
import time
import urllib.request
from collections import Counter

import pytest
import yaml

from optimizer.archive.archive import Archive

pytestmark = pytest.mark.slow

_SAMPLE = re.compile(r"ray_(mergefront_\w+)\{(.*)\} (\S+)")


def scraped(url):
    """Metric -> (label, value) pairs of ours -> value, from a node's endpoint."""
    found = {}
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310 - of this machine
        text = answer.read().decode()
    for name, labels, value in _SAMPLE.findall(text):
        ours = dict(re.findall(r'(search|split|outcome|signal|stage|state|le)="([^"]*)"', labels))
        found.setdefault(name, {})[frozenset(ours.items())] = float(value)
    return found


def total(found, name, **labels):
    series = found.get(name, {})
    return sum(value for key, value in series.items() if labels.items() <= dict(key).items())


def agrees(found, archive):
    """Whether a scrape came between two evaluations: Ray may export while one is counted."""
    num = int(total(found, "mergefront_evaluations_total"))
    with Archive.open(archive) as reader:
        outcomes = reader.outcomes("search")[:num]
    spent_s = sum(sum(outcome.seconds.values()) for outcome in outcomes)
    return (
        num >= 6
        and total(found, "mergefront_items_total", signal="scores") == 16 * num
        and total(found, "mergefront_request_seconds_count") == num
        and total(found, "mergefront_stage_seconds_total") == pytest.approx(spent_s)
    )


@pytest.fixture
def telemetry_job(job_file, tmp_path):
    path = job_file(budget={"evaluations": 400}, search={"racing": {"enabled": False}})
    job = yaml.safe_load(path.read_text())
    job["telemetry"] = {
        "log_file": "logs/log.jsonl",
        "tensorboard": {"directory": "charts"},
    }
    path.write_text(yaml.safe_dump(job, sort_keys=False))
    return path


def test_node_exports_a_running_search_which_then_goes_on_in_its_log_and_charts(
    mergefront, telemetry_job, tmp_path
):
    mergefront.environment["RAY_metrics_report_interval_ms"] = "1000"
    search = mergefront.start("run", str(telemetry_job))
    try:
        url = next(line.split()[1] for line in search.stderr if line.startswith("metrics http"))
        end, found = time.monotonic() + 200, {}
        archive = tmp_path / "run" / "archive.sqlite"
        while not (found and agrees(found, archive)) and time.monotonic() < end:
            time.sleep(1)
            found = scraped(url)
    finally:
        os.killpg(search.pid, signal.SIGINT)
        _, err = search.communicate(timeout=180)
    assert search.returncode == 130, err

    with Archive.open(archive) as reader:
        uid, outcomes = reader.uid, reader.outcomes("search")
        num_proposed = len(reader.candidates())
    num_scraped = int(total(found, "mergefront_evaluations_total", search=uid, split="search"))
    assert 6 <= num_scraped <= len(outcomes)
    # Scraped between two evaluations: 2 tasks of 8 items each.
    assert total(found, "mergefront_items_total", search=uid, signal="scores") == 16 * num_scraped
    assert total(found, "mergefront_request_seconds_count", search=uid) == num_scraped
    seconds = Counter()
    for outcome in outcomes[:num_scraped]:
        seconds.update(outcome.seconds)
    assert seconds["forward"] > 0
    for stage, spent_s in seconds.items():
        assert total(
            found, "mergefront_stage_seconds_total", search=uid, stage=stage
        ) == pytest.approx(spent_s)
    assert total(found, "mergefront_failures_total") == 0
    assert 0 <= total(found, "mergefront_worker_idle_ratio", search=uid) < 1
    assert total(found, "mergefront_worker_seconds_total", search=uid, state="busy") > 0
    assert total(found, "mergefront_budget_evaluations", search=uid) == 400
    assert "mergefront_hypervolume" in found

    # What was in flight or asked ahead is evaluated as well, whatever the budget says.
    budget = max(18, num_proposed + 1)
    mergefront.succeed("resume", str(archive), "--evaluations", str(budget))
    lines = [json.loads(line) for line in (tmp_path / "logs/log.jsonl").read_text().splitlines()]
    assert {line["search"] for line in lines} == {uid}
    finished = [
        line["candidate"]
        for line in lines
        if line["event"] == "finished" and line["split"] == "search"
    ]
    # The one during which Ctrl-C came may lack its line.
    assert len(finished) == len(set(finished)) >= budget - 1
    workers = {line["worker"] for line in lines if line["event"] == "evaluated"}
    assert all(re.fullmatch(r"worker-\d@\S+:\d+", worker) for worker in workers)
    assert {line["by"] for line in lines if line["event"] == "run_ended"} == {
        "KeyboardInterrupt", None,
    }  # fmt: skip

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "charts" / f"search-{uid}")).Reload()
    steps = [event.step for event in events.Scalars("search/hypervolume")]
    assert len(steps) >= budget - 1
    assert max(steps) == budget
    (report,) = events.Tensors("report/text_summary")
    assert b"    Front by posterior mean" in report.tensor_proto.string_val[0]


def test_absent_tracker_is_named_by_check_with_what_installs_it(
    mergefront, telemetry_job, tmp_path
):
    # Shadows the package: an interpreter without it would have no torch either.
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\nfrom importlib.abc import MetaPathFinder\n"
        "class Without(MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorboard':\n"
        "            sys.meta_path[:] = [f for f in sys.meta_path if f is not self]\n"
        "            from importlib.machinery import ModuleSpec\n"
        "            return ModuleSpec(name, None)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    path = mergefront.environment["PYTHONPATH"]
    mergefront.environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{path}"
    done = mergefront.run("check", str(telemetry_job))
    assert done.returncode == 2
    assert "telemetry.tensorboard: needs the package `tensorboard`" in done.stderr
    assert "pip install 'mergefront[tensorboard]'" in done.stderr
    assert "Traceback" not in done.stderr
