"""What a search is judged by, on real merges: the verdict, what mattered, the random rival."""

import json

import pytest

from optimizer.archive import Archive
from optimizer.attribution import variants_of
from optimizer.remembered import WORKER

pytestmark = pytest.mark.slow


def test_search_is_judged_by_baselines_by_its_parts_and_by_random_search(
    mergefront, job_file, tmp_path
):
    job, path = job_file(), tmp_path / "run" / "archive.sqlite"
    mergefront.succeed("run", str(job), "--plain")
    plain = json.loads(mergefront.succeed("report", str(path), "--json"))
    assert plain["rival"] is None

    mergefront.succeed("resume", str(path), "--set", "validation.leave_one_out=true", "--plain")
    out = mergefront.succeed("rival", str(path), "--plain")
    assert "Random search (18 evaluations)" in out
    report = json.loads(mergefront.succeed("report", str(path), "--json"))
    assert report["verdict"]["strongest"] in report["baselines"]
    assert report["verdict"]["winners_curse"]["stderr"] >= 0
    assert report["rival"]["evaluations"] == report["evaluations"] == 18

    with Archive.open(path) as searched, Archive.open(path.with_name("archive.random.sqlite")) as r:
        labels = [v.label for v in variants_of(searched.candidate(searched.choice()).recipe)]
        assert [effect["variant"] for effect in report["attribution"]["effects"]] == labels
        copied = [o for o in r.outcomes("search") if o.worker == WORKER]
        assert len(copied) >= 15
