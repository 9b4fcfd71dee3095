"""What a search is judged by, on real merges: the verdict, what mattered, the random rival."""

import json

import pytest

from optimizer.archive.archive import Archive
from optimizer.remembered import WORKER
from optimizer.results.attribution import variants_of

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


def test_search_with_a_new_checkpoint_begins_with_what_is_known(
    mergefront, job_file, tiny_pool, tmp_path
):
    pool = {name: str(tiny_pool.checkpoints[name]) for name in ("instruct", "code")}
    small = {"base": str(tiny_pool.base), "checkpoints": pool}
    first = job_file(models=small, archive=str(tmp_path / "first.sqlite"))
    mergefront.succeed("run", str(first), "--plain")
    second = job_file(archive=str(tmp_path / "second.sqlite"))
    done = mergefront.run("run", str(second), "--from", str(tmp_path / "first.sqlite"), "--plain")
    assert done.returncode == 0, done.stderr
    assert "outcomes of" in done.stderr
    assert "Warm start" in done.stdout
    with Archive.open(tmp_path / "second.sqlite") as archive:
        assert len(archive.observations()) == 18
        seeds = archive.warm_start().seeds
    with Archive.open(tmp_path / "first.sqlite") as archive:
        own = [c for c in archive.candidates() if c.recipe.method == "dare_linear"]
        assert len(seeds) == len(own) >= 14
        assert all(seed.is_exact for seed in seeds)
        known = {seed.source: archive.weights_digest(seed.source) for seed in seeds}
    # What a seed claims to be, it is: the same tensors in the larger pool.
    with Archive.open(tmp_path / "second.sqlite") as archive:
        ids = {c.recipe.recipe_id: c.index for c in archive.candidates()}
        both = [s for s in seeds if s.observation.candidate.recipe.recipe_id in ids]
        assert len(both) >= 3
        for seed in both:
            index = ids[seed.observation.candidate.recipe.recipe_id]
            assert archive.weights_digest(index) == known[seed.source]
            assert archive.scores("search")[index] == seed.observation.scores
