"""`mergefront noise --run`: the first evaluations of a search, judged before the rest is paid."""

import json
import signal
from pathlib import Path

import pytest

from configs.errors import TERMINATED
from optimizer.archive.archive import Archive

pytestmark = pytest.mark.slow


def test_noise_scores_singles_once_and_the_search_goes_on_from_them(mergefront, job_file, tmp_path):
    job = job_file(budget={"evaluations": 6}, validation={"candidates": 1})
    record = json.loads(mergefront.succeed("noise", str(job), "--run", "--json"))
    path = Path(tmp_path / "run" / "archive.sqlite")
    with Archive.open(path) as archive:
        names = ["base", *(f"checkpoint {name}" for name in archive.job.models.checkpoints)]
        recorded = archive.outcomes("search")
        assert len(recorded) == len(names)
    assert record["baselines"] == names
    for row in record["splits"]["search"].values():
        assert row["stderr"] >= 0
        assert row["items"] > 0

    again = mergefront.run("noise", str(job), "--run", "--difference", "0.1")
    assert again.returncode == 0
    assert "Noise of the items, from 4 baselines" in again.stdout

    mergefront.succeed("resume", str(path), "--verify", "--plain")
    with Archive.open(path) as archive:
        assert archive.outcomes("search")[: len(recorded)] == recorded
        assert len(archive.outcomes("search")) == 6
        assert archive.choice() is not None


def test_noise_checks_a_new_job_once(mergefront, job_file, tmp_path):
    (tmp_path / "items.jsonl").write_text("\n".join(json.dumps({"n": n}) for n in range(60)))
    (tmp_path / "metrics.py").write_text(
        "import os\n"
        "def f(model, tokenizer, items, *, batch_size, log):\n"
        "    with open(log, 'a') as file:\n"
        "        print(os.getpid(), file=file)\n"
        "    return [item['n'] / 60 for item in items]\n"
    )
    log = tmp_path / "log"
    scorer = {
        "scorer": str(tmp_path / "metrics.py") + ":f",
        "items": str(tmp_path / "items.jsonl"),
        "options": {"log": str(log)},
    }
    job = job_file(objectives={"own": [scorer]})
    mergefront.succeed("noise", str(job), "--run")
    calls = log.read_text().split()
    # First the trial on the base, in the command's own process; then what workers score.
    assert calls.count(calls[0]) == 1
    assert len(calls) > 1


def test_noise_that_is_terminated_finishes_what_is_under_way(mergefront, job_file, tmp_path):
    job = job_file(workers={"count": 1, "cpus": 1.0, "threads": 1})
    with mergefront.start("noise", str(job), "--run") as process:
        for line in process.stderr:
            if "search 1/" in line:
                break
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=120)
    assert process.returncode == TERMINATED, said
    assert "terminated: " in said
    assert "evaluations are recorded; continue with" in said
    with Archive.open(tmp_path / "run" / "archive.sqlite") as archive:
        # Of two that were under way or ready, the one that a worker had.
        assert len(archive.candidates()) - len(archive.outcomes("search")) <= 1
