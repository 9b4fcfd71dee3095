"""What a search that begins with another takes of companions, and of who was only screened."""

import numpy as np
import pytest

from optimizer.archive.archive import Archive
from optimizer.space import SearchSpace
from optimizer.warm_start import describe, warm_start_from
from scripts.bench.scripted import NAMES
from tests.fault import scripted_search
from tests.unit.optimizer.warm_starts import job_with, sources_of, start

pytestmark = pytest.mark.slow  # whole searches

WITH_COMPANIONS = {"objectives": scripted_search.COMPANIONS, "search": {}}


def stopped(archive: Archive, reason: str) -> int:
    return sum(seen.stopped == reason for seen in archive.observations())


def test_companions_come_along_and_so_does_who_was_only_screened(screened, tmp_path):
    found = start(screened, tmp_path, (*NAMES, "poet"), **WITH_COMPANIONS)
    before = {seen.candidate.index: seen for seen in screened.observations()}
    own = [s for s in found.seeds if not s.observation.scores]
    assert len(own) == stopped(screened, "screened") > 10
    for seed in found.seeds:
        seen = before[seed.source]
        assert seed.observation.companions == seen.companions != {}
        assert seed.observation.scores == seen.scores
        assert seed.is_exact
    lines = describe(found)
    assert f"{len(own)} of them were only screened: their companions are known" in lines
    assert stopped(screened, "racing") > 0
    assert found.left_out["it was stopped by racing, before all of its items were scored"] == (
        stopped(screened, "racing")
    )
    assert found.left_out["it was stopped by a gate, as broken"] == stopped(screened, "broken") > 0


def test_companions_of_other_items_are_not_told(screened, tmp_path):
    """Another seed looks at other items first: of who was scored, the scores are taken alone."""
    found = start(screened, tmp_path, **WITH_COMPANIONS, seed=4)
    assert found.seeds
    assert all(seed.observation.companions == {} for seed in found.seeds)
    assert all(seed.observation.scores for seed in found.seeds)
    reason = "it was only screened, by other items than this search asks companions of"
    assert found.left_out[reason] == stopped(screened, "screened")


def test_search_without_companions_says_that_it_has_no_use_for_them(screened, tmp_path):
    job = job_with(tmp_path / "new.sqlite", objectives=screened.job.objectives)
    objectives = {
        name: objective.model_copy(
            update={"tasks": [t.model_copy(update={"companion": False}) for t in objective.tasks]}
        )
        for name, objective in job.objectives.items()
    }
    job = job.model_copy(update={"objectives": objectives})
    space = SearchSpace(job, sources_of())
    found = warm_start_from(screened, job, space, scripted_search.make_manifest())
    reason = "it was only screened, and this search asks for no companions"
    assert found.left_out[reason] == stopped(screened, "screened")
    assert all(seed.observation.companions == {} for seed in found.seeds)


def test_nearly_the_same_merge_has_less_certain_companions(screened, tmp_path):
    found = start(screened, tmp_path, **WITH_COMPANIONS, merge={"mask_seed": 7})
    before = {seen.candidate.index: seen for seen in screened.observations()}
    for seed in found.seeds:
        for name, score in seed.observation.companions.items():
            old = before[seed.source].companions[name]
            assert score.stderr == pytest.approx(old.stderr * np.sqrt(2))
    assert not any(seed.is_exact for seed in found.seeds)


def test_recorded_companions_are_read_back(screened, tmp_path):
    found = start(screened, tmp_path, **WITH_COMPANIONS)
    path = tmp_path / "new.sqlite"
    job = job_with(path, **WITH_COMPANIONS)
    arguments = {"job": job, "job_path": None, "sources": sources_of()}
    with Archive.create(path, manifest=scripted_search.make_manifest(), **arguments) as archive:
        archive.record_warm_start(found)
    with Archive.open(path) as archive:
        again = archive.warm_start()
    assert len(again.seeds) == len(found.seeds)
    for one, other in zip(again.seeds, found.seeds, strict=True):
        assert one.observation.companions == other.observation.companions
        assert one.observation.scores == other.observation.scores
