"""Races of whole searches on the scripted pool, through the real archive."""

import pytest

from evaluators.blocks import WHOLE
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.events import BlockFinished, Finished
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool

pytestmark = pytest.mark.slow  # whole searches

RACING = {"population_size": 6, "racing": {"confidence": 0.8, "sampling": False}}


class Recording(ScriptedPool):
    """Remembers every item that was asked for."""

    asked: list[tuple[int, str, str]]
    order: list[int]

    def submit(self, request):
        super().submit(request)
        if request.key.split != "search":
            return
        items = self._manifest.items("search") if request.items is None else request.items
        self.asked += [(request.key.candidate, t, i) for t, ids in items.items() for i in ids]
        self.order.append(request.key.candidate)


@pytest.fixture(scope="module")
def race(tmp_path_factory):
    """Runs a search with racing: (path, asked items, events, submitted, at blocks)."""
    path = tmp_path_factory.mktemp("race") / "archive.sqlite"
    job, manifest = scripted_search.make_job(path, search=RACING), scripted_search.make_manifest()
    sources = scripted_search.make_sources()
    archive = Archive.create(path, job=job, job_path=None, sources=sources, manifest=manifest)
    Recording.asked, Recording.order = [], []
    events, at_block = [], []

    def on_event(event):
        events.append(event)
        if isinstance(event, BlockFinished):
            at_block.append((event.candidate.index, Recording.order[-1]))

    with archive, Recording(job, manifest) as pool:
        run_search(archive, pool, SearchSpace(job, sources), on_event=on_event)
    return path, Recording.asked, events, Recording.order, at_block


def test_some_candidates_are_stopped_and_no_baseline_is(race):
    path, asked, *_ = race
    with Archive.open(path) as archive:
        stops, candidates = archive.stops(), archive.candidates()
        stops = {i: found for i, found in stops.items() if found.stop.reason == "racing"}
        assert len(stops) >= 3
        for index, recorded in stops.items():
            assert not candidates[index].is_baseline
            assert recorded.stop.numbers["doubts"].keys() == {*archive.job.objectives, "preferred"}
            assert archive.scores("search").keys() >= {recorded.stop.numbers["rival"]}
        blocks = {(o.key.candidate, o.key.block) for o in archive.evaluations("search")}
        assert {block for index, block in blocks if candidates[index].is_baseline} == {WHOLE}
        assert WHOLE not in {block for i, block in blocks if not candidates[i].is_baseline}
        whole = 60 * 3 * 24
        assert len(asked) < whole
        in_full = archive.scores("search").keys() & {c.index for c in candidates if c.is_baseline}
        assert len(in_full) >= 12


def test_no_item_is_scored_twice_and_survivors_are_scored_on_all(race):
    path, asked, *_ = race
    assert len(set(asked)) == len(asked)
    with Archive.open(path) as archive:
        per_candidate = {c.index: 0 for c in archive.candidates()}
        for candidate, _, _ in asked:
            per_candidate[candidate] += 1
        for seen in archive.observations():
            total = per_candidate[seen.candidate.index]
            if seen.is_complete:
                assert total == 72
            elif seen.stopped == "racing":
                assert total in (24, 36)
                assert sum(score.count for score in seen.scores.values()) == total


def test_every_candidate_has_one_end(race):
    path, _, events, *_ = race
    with Archive.open(path) as archive:
        observed = archive.observations()
        told = [seen.candidate.index for seen in observed]
        assert sorted(told) == list(range(60))
        assert archive.stops().keys().isdisjoint(archive.scores("search"))
        keys = [outcome.key for outcome in archive.evaluations("search")]
        assert len(set(keys)) == len(keys)
    search = [e for e in events if isinstance(e, Finished) and e.outcome.key.split == "search"]
    assert [e.candidate.index for e in search] == told
    assert [e.num_outcomes for e in search] == list(range(1, 61))
    assert [e.stopped for e in search] == [seen.stopped for seen in observed]


def test_survivor_goes_on_before_anything_new_begins(race):
    _, _, _, order, at_block = race
    assert len(at_block) >= 10
    for index, last_submitted in at_block:
        assert index == last_submitted
    blocks = [order.count(index) for index in {index for index, _ in at_block}]
    assert set(blocks) <= {2, 3}
    assert 3 in blocks


def test_asks_come_out_the_same_from_the_record(race):
    path, *_ = race
    with Archive.open(path) as archive:
        assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []


def test_estimates_of_stopped_candidates_are_near_what_they_would_have_scored(race):
    path, *_ = race
    with Archive.open(path) as archive:
        job, manifest = archive.job, archive.manifest
        errors = []
        for index, recorded in archive.stops().items():
            if recorded.stop.reason != "racing":
                continue
            pool = ScriptedPool(job, manifest)
            request = scripted_search.whole_request(archive.candidate(index))
            pool.submit(request)
            values = pool.next_outcome().task_scores
            for name, score in recorded.stop.scores.items():
                errors.append((score.value - values[f"zoo_{name}"].mean) / (score.stderr + 0.02))
    assert len(errors) >= 9
    assert sum(abs(error) < 2.5 for error in errors) / len(errors) > 0.9


def test_model_that_only_repeats_itself_is_stopped_after_the_first_block(race):
    path, asked, *_ = race
    with Archive.open(path) as archive:
        found = {i: r for i, r in archive.stops().items() if r.stop.reason == "broken"}
        assert found
        for index, recorded in found.items():
            assert recorded.stop.numbers == {
                "gate": "repetition", "share": 1.0, "worst source": 0.0, "limit": 0.9,
            }  # fmt: skip
            assert sum(candidate == index for candidate, _, _ in asked) == 24
            assert archive.texts_so_far(index, "search")["zoo_code"] == ("!" * 40,) * 8
        told = {seen.candidate.index: seen.scores for seen in archive.observations()}
        assert all(told[index] is None for index in found)
