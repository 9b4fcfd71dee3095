"""The fault campaign, in short: faults of all kinds strike real searches, and cost nothing."""

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from scripts.bench.faults import INNER, PACK

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.campaign


def processes_with(variable, value):
    """Return the processes that have an environment variable of that value."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value:
                found.append(process)
    return found


def test_faults_of_all_kinds_lose_double_and_hang_nothing(tmp_path):
    mark = "MERGEFRONT_TEST_CAMPAIGN", str(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "scripts.bench.faults", "--faults", "20", "--seed", "7", "--json"],
        env=dict([*os.environ.items(), mark]),
        cwd=ROOT, capture_output=True, text=True, timeout=1800, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert report["faults"] >= 20
    counts = ("lost", "duplicates", "wrong_resumes", "hangs", "unexpected_ends")
    assert {name: report[name] for name in counts} == dict.fromkeys(counts, 0), report["problems"]
    assert report["missing_kinds"] == []
    assert done.returncode == 0
    assert sum(report["by_kind"].values()) == report["faults"]
    assert {*PACK, *INNER} - report["left_out"].keys() == report["by_kind"].keys()
    end = time.monotonic() + 60
    while (left := processes_with(*mark)) and time.monotonic() < end:
        time.sleep(0.5)
    assert left == [], "the campaign left processes behind"
