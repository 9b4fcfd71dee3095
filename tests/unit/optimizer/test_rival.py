"""Random search at the same budget: what it costs, what it shares, what the report says of it."""

import json

import pytest

from configs.errors import SearchError
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.remembered import WORKER, RememberingPool
from optimizer.report.report import report_of, report_record
from optimizer.resume import verify_replay
from optimizer.rival import rival_job, rival_of, spent
from optimizer.space import SearchSpace
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool
from tests.unit.optimizer.report.test_report import text_of

pytestmark = pytest.mark.slow  # whole searches


def rival_path(path):
    return path.with_name("run.random.sqlite")


class CountingPool(ScriptedPool):
    """Counts what it is asked to score."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.asked = []

    def submit(self, request):
        self.asked.append((request.recipe.recipe_id, request.key.split))
        super().submit(request)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "run.sqlite"
    scripted_search.run(path, budget={"evaluations": 40})
    return path


def run_rival(path):
    """Run the rival of an archive, or go on with it; returns what had to be scored."""
    with Archive.open(path) as searched:
        job, manifest = rival_job(searched), searched.manifest
        place = rival_path(path)
        if place.exists():
            archive = Archive.open(place, writable=True)
        else:
            archive = Archive.create(
                place, job=job, job_path=None, sources=searched.sources, manifest=manifest
            )
        pool = CountingPool(job, manifest)
        with archive, RememberingPool(pool, searched) as remembering:
            run_search(archive, remembering, SearchSpace(job, archive.sources), job=job)
        return pool.asked


def test_rival_spends_the_same_and_scores_nothing_that_is_known(path):
    asked = run_rival(path)
    with Archive.open(path) as searched, Archive.open(rival_path(path)) as rival:
        assert len(rival.observations()) == spent(searched) == 40
        origins = {c.origin.partition(":")[0] for c in rival.candidates()}
        assert origins == {"baseline", "strategy"}
        known = {
            (searched.candidate(o.key.candidate).recipe.recipe_id, split)
            for split in ("search", "select", "report")
            for o in searched.outcomes(split)
            if o.scores is not None
        }
        assert not known & set(asked)
        shared = [o for o in rival.outcomes("search") if o.worker == WORKER]
        assert len(shared) >= 12
        for outcome in shared:
            mine = rival.candidate(outcome.key.candidate)
            index = next(
                c.index
                for c in searched.candidates()
                if c.recipe.recipe_id == mine.recipe.recipe_id
            )
            assert outcome.scores == searched.scores("search")[index]
            assert outcome.weights_digest == searched.weights_digest(index)
        assert verify_replay(rival, SearchSpace(rival.job, rival.sources)) == []


def test_report_compares_with_the_choice_of_random_search_item_by_item(path):
    run_rival(path)
    with Archive.open(path) as archive, Archive.open(rival_path(path)) as other:
        found = rival_of(archive)
        report = report_of(archive)
        ours = archive.task_scores(archive.choice(), "report")
        theirs = other.task_scores(other.choice(), "report")
        expected = sum((ours[t].mean - theirs[t].mean) / 3 for t in ours)
    assert found.gap.mean.mean == pytest.approx(expected)
    assert (found.evaluations, found.budget) == (40, 40)
    assert found.sentence in text_of(report)
    record = json.loads(json.dumps(report_record(report), allow_nan=False))["rival"]
    assert record["difference"]["mean"] == pytest.approx(expected)
    assert record["won"] == found.won


def test_rival_catches_up_when_the_search_went_on(path):
    run_rival(path)
    with Archive.open(path, writable=True) as archive:
        budget = archive.job.budget.model_copy(update={"evaluations": 50})
        job = archive.job.model_copy(update={"budget": budget})
        with ScriptedPool(job, archive.manifest) as pool:
            run_search(archive, pool, SearchSpace(job, archive.sources), job=job)
    with Archive.open(path) as archive:
        found = rival_of(archive)
        assert (found.evaluations, found.budget) == (40, 50)
        assert "40 of 50 evaluations" in found.sentence
        assert "less to spend" in text_of(report_of(archive))
    asked = run_rival(path)
    assert 5 <= sum(split == "search" for _, split in asked) <= 10
    with Archive.open(path) as archive:
        assert rival_of(archive).evaluations == 50


def test_archive_of_another_search_beside_it_is_no_rival(path):
    run_rival(path)
    path.unlink()
    scripted_search.run(path, budget={"evaluations": 20}, seed=8)
    with Archive.open(path) as archive:
        assert rival_of(archive) is None
        assert "Random search" not in text_of(report_of(archive))


def test_random_search_has_no_rival(tmp_path):
    path = tmp_path / "random.sqlite"
    scripted_search.run(path, budget={"evaluations": 16}, search={"strategy": "dirichlet"})
    with Archive.open(path) as archive:
        assert rival_of(archive) is None
        with pytest.raises(SearchError, match="random search itself"):
            rival_job(archive)


def test_rival_of_an_unfinished_search_is_refused(tmp_path):
    path = tmp_path / "new.sqlite"
    archive = Archive.create(
        path,
        job=scripted_search.make_job(path),
        job_path=None,
        sources=scripted_search.make_sources(),
        manifest=scripted_search.make_manifest(),
    )
    with archive, pytest.raises(SearchError, match=r"has not ended.*mergefront resume"):
        rival_job(archive)


def test_pool_that_remembers_gives_the_blocks_it_knows(path):
    from evaluators.blocks import block_name
    from workers.outcome import EvaluationKey, EvaluationRequest

    with Archive.open(path) as searched:
        items = {task: ids[3:1:-1] for task, ids in searched.manifest.items("search").items()}
        pool = CountingPool(searched.job, searched.manifest)
        with RememberingPool(pool, searched) as remembering:
            key = EvaluationKey(7, "search", block_name(items))
            recipe = searched.candidate(0).recipe
            remembering.submit(EvaluationRequest(key, recipe, items))
            assert (remembering.num_pending, remembering.num_free) == (1, 3)
            outcome = remembering.next_outcome()
            assert pool.asked == []
            whole = searched.task_scores(0, "search")
            for task, ids in items.items():
                assert outcome.task_scores[task].item_ids == tuple(ids)
                assert outcome.task_scores[task].values.tolist() == [
                    whole[task].values[3], whole[task].values[2],
                ]  # fmt: skip
