"""kill -9 of the driver at random moments, then resume: nothing lost, nothing changed."""

import json
import subprocess
import sys

import pytest

from configs.evaluation import SPLITS
from optimizer.archive.archive import Archive
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from tests.fault import scripted_search


def search_with_kills(path, kills, seed, name):
    """Returns the lines the program printed, one for each kill."""
    done = subprocess.run(
        [
            sys.executable, "-m", "tests.fault.scripted_search",
            str(path), str(kills), str(seed), name,
        ],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", scripted_search.SEARCHES)
def test_search_killed_twenty_times_equals_the_undisturbed_one(tmp_path, name):
    undisturbed = tmp_path / "undisturbed.sqlite"
    scripted_search.run(undisturbed, **scripted_search.SEARCHES[name])
    lines: list[dict] = []
    kills, seed = 0, 0
    while kills < 20:
        killed = tmp_path / f"killed{seed}.sqlite"
        printed = search_with_kills(killed, 20 - kills, seed, name)
        assert scripted_search.record(killed) == scripted_search.record(undisturbed)
        with Archive.open(killed) as archive, scripted_search.with_strategies():
            assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []
        hits = [line for line in printed if "acknowledged" in line]
        kills += len(hits) - any("ended_before_kills" in line for line in printed)
        seed += 1
        lines += hits
    assert any(line["acknowledged"] for line in lines), "no kill hit a search that had begun"
    for line in lines:
        recorded = [tuple(key) for key in line["recorded"]]
        assert len(recorded) == len(set(recorded)), "an evaluation has two outcomes"
        assert {tuple(key) for key in line["acknowledged"]} <= set(recorded), "outcomes were lost"


def test_every_candidate_has_one_outcome_at_the_end(tmp_path):
    path = tmp_path / "archive.sqlite"
    chosen = scripted_search.run(path)
    record = scripted_search.record(path)
    assert [key for key, _ in sorted(record["outcomes"]["search"])] == list(range(60))
    for split in SPLITS:
        indices = [index for index, _ in record["outcomes"][split]]
        assert len(indices) == len(set(indices))
    assert chosen == record["choice"]


def test_finished_search_resumes_to_nothing_new(tmp_path):
    path = tmp_path / "archive.sqlite"
    scripted_search.run(path)
    before = scripted_search.record(path)
    scripted_search.run(path)
    assert scripted_search.record(path) == before
