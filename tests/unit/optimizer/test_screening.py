"""Searches that look at companions first, on the scripted pool through the real archive."""

from collections import Counter

import pytest

from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.resume import verify_replay
from optimizer.screening import Groups
from optimizer.space import SearchSpace
from tests.contract.archive_examples import example_candidate
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool


@pytest.fixture
def search(tmp_path, monkeypatch):
    """Runs a search; returns its archive and every request of the search split."""
    opened = []

    def run(**changes):
        requests = []
        path = tmp_path / f"{len(opened)}.sqlite"
        submit = ScriptedPool.submit

        def watched(self, request):
            if request.key.split == "search":
                requests.append(request)
            submit(self, request)

        with monkeypatch.context() as patched:
            patched.setattr(ScriptedPool, "submit", watched)
            scripted_search.run(path, **changes)
        opened.append(Archive.open(path))
        return opened[-1], requests

    yield run
    for archive in opened:
        archive.close()


def asked(requests, archive):
    """Count how often each (candidate, signal, task, item) was asked for."""
    whole = archive.manifest.items("search")
    count = Counter()
    for request in requests:
        items = whole if request.items is None else request.items
        beside = items if request.companions is None else request.companions
        index = request.key.candidate
        for signal, part in (("scores", items), ("companions", beside)):
            if request.key.signal in {signal, "scores"}:
                count.update((index, signal, t, i) for t, ids in part.items() for i in ids)
    return count


@pytest.mark.slow
def test_one_of_each_group_is_scored_and_nothing_is_asked_for_twice(search):
    archive, requests = search(**scripted_search.SEARCHES["screening"])
    observed = {seen.candidate.index: seen for seen in archive.observations()}
    candidates = archive.candidates()
    assert observed.keys() == set(range(len(candidates)))
    proposed = [c.index for c in candidates if not c.is_baseline]
    baselines = len(candidates) - len(proposed)
    assert len(proposed) == 3 * (60 - baselines)
    reasons = Counter()
    for start in range(0, len(proposed), 3):
        group = [observed[index] for index in proposed[start : start + 3]]
        reasons.update(seen.stopped for seen in group)
        screened = [seen for seen in group if seen.stopped == "screened"]
        others = [seen for seen in group if seen.stopped in ("", "racing") and seen.scores]
        failed = [seen for seen in group if seen.scores is None]
        assert len(others) <= 1
        assert len(screened) + len(others) + len(failed) == 3
        for seen in screened:
            assert seen.scores == {}
            assert seen.companions["math"].count == 8
            (best,) = others or [None]
            if best is not None:
                assert total(seen) <= total(best)
    assert reasons["screened"] > 40
    assert reasons["broken"] > 3
    assert max(asked(requests, archive).values()) == 1
    with scripted_search.with_strategies():
        assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []


@pytest.mark.slow
def test_companions_are_those_of_the_same_items_for_everyone(search):
    archive, _ = search(**scripted_search.SEARCHES["screening"])
    looked_at = [
        {task: part.item_ids for task, part in archive.companions(candidate, "search").items()}
        for candidate in range(len(archive.candidates()))
    ]
    known = [items for items in looked_at if items]
    assert len(known) > 100
    assert all(items == known[0] for items in known)
    complete = [seen for seen in archive.observations() if seen.scores and not seen.stopped]
    assert {seen.companions["math"].count for seen in complete} == {8}


def total(seen):
    return sum(score.value for score in seen.companions.values())


def test_strategy_that_cannot_choose_does_not_screen(search):
    archive, requests = search(
        objectives=scripted_search.COMPANIONS,
        search={
            "strategy": "dirichlet", "screening": {"enabled": True}, "gates": {"likelihood": None},
            **scripted_search.IN_FULL,
        },
    )  # fmt: skip
    assert {request.key.signal for request in requests} == {"scores"}
    assert len(archive.candidates()) == 60


@pytest.mark.slow
def test_broken_model_is_told_as_failed_before_it_is_scored(search):
    archive, requests = search(
        objectives=scripted_search.COMPANIONS,
        search={"strategy": "dirichlet", **scripted_search.IN_FULL},
    )
    stops = archive.stops()
    assert stops
    by_candidate = {seen.candidate.index: seen for seen in archive.observations()}
    for index, recorded in stops.items():
        assert recorded.stop.reason == by_candidate[index].stopped == "broken"
        assert by_candidate[index].scores is None
        assert archive.scored_items(index, "search") == {}
    first = next(r for r in requests if r.key.signal == "companions")
    assert sum(map(len, first.items.values())) == 33  # 32 of all tasks, rounded up per task
    assert max(asked(requests, archive).values()) == 1
    for seen in archive.observations():
        if seen.is_complete:
            assert {score.count for score in seen.companions.values()} == {24}


def test_gate_that_the_job_leaves_out_asks_for_nothing(search):
    archive, requests = search(
        objectives=scripted_search.COMPANIONS,
        search={
            "strategy": "dirichlet", "gates": {"likelihood": None}, **scripted_search.IN_FULL,
        },
    )  # fmt: skip
    assert {request.key.signal for request in requests} == {"scores"}
    assert archive.stops() == {}


def test_job_without_companions_cannot_be_screened(tmp_path):
    job = scripted_search.make_job(tmp_path / "a.sqlite").model_dump(mode="json")
    job["search"]["screening"]["enabled"] = True
    with pytest.raises(ValueError, match=r"search\.screening: no task has `companion: true`"):
        JobConfig.model_validate(job)


def test_screening_is_on_where_tasks_have_companions_unless_the_job_says_otherwise(tmp_path):
    def screens(**search):
        job = scripted_search.make_job(
            tmp_path / "a.sqlite", objectives=scripted_search.COMPANIONS, search=search
        )
        return job.screens

    assert screens()
    assert screens(screening={"enabled": "auto"})
    assert not screens(screening={"enabled": False})
    assert not scripted_search.make_job(tmp_path / "a.sqlite", search={}).screens


def test_groups_are_so_many_proposals_of_the_strategy_in_a_row():
    groups = Groups(2)
    for index, baseline in enumerate((True, False, True, False, False)):
        candidate = example_candidate(index, origin="baseline:x" if baseline else "strategy:cma")
        groups.add(candidate)
    assert [groups.of(index) for index in range(5)] == [[], [1, 3], [], [1, 3], []]
    groups.add(example_candidate(5, origin="strategy:cma"))
    assert groups.of(4) == [4, 5]
