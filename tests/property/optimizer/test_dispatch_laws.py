"""What holds of every search, whatever its settings: the scripted pool through real archives."""

import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optimizer.archive.archive import Archive
from optimizer.dispatch_plan import dispatch_plan
from optimizer.driver import run_search
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from optimizer.spending import spending_of
from optimizer.stopped import num_evaluated
from optimizer.strategies.registry import can_choose, can_sample
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool

pytestmark = pytest.mark.slow

SEARCHES = st.fixed_dictionaries(
    {
        "strategy": st.sampled_from(["dirichlet", "companion_dirichlet", "sampling_dirichlet"]),
        "ask_ahead": st.integers(0, 3),
        "racing": st.fixed_dictionaries(
            {
                "enabled": st.booleans(),
                "first_share": st.sampled_from([0.2, 0.34, 0.6]),
                "confidence": st.sampled_from([0.6, 0.9]),
                "sampling": st.sampled_from([False, "auto"]),
                "sample_items": st.sampled_from([None, 1, 9]),
            }
        ),
        "screening": st.fixed_dictionaries(
            {"enabled": st.booleans(), "candidates": st.integers(2, 3)}
        ),
    }
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    search=SEARCHES, workers=st.integers(1, 6), items=st.none() | st.integers(1200, 2500),
    evaluations=st.integers(18, 30),
)  # fmt: skip
def test_candidates_end_once_and_budgets_are_kept(search, workers, items, evaluations):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "archive.sqlite"
        job = scripted_search.make_job(
            path,
            search=search,
            objectives=scripted_search.COMPANIONS,
            budget={"evaluations": evaluations, "items": items},
        )
        manifest, sources = scripted_search.make_manifest(), scripted_search.make_sources()
        archive = Archive.create(path, job=job, job_path=None, sources=sources, manifest=manifest)
        space = SearchSpace(job, sources)
        pool = ScriptedPool(job, manifest, capacity=workers)
        with archive, scripted_search.with_strategies(), pool:
            run_search(archive, pool, space)
            assert verify_replay(archive, space) == []
            check_ends(archive)
            check_budget(archive, evaluations, items)


def check_ends(archive):
    keys = [outcome.key for outcome in archive.evaluations()]
    assert len(set(keys)) == len(keys), "one outcome per candidate, block and signal"
    told = [seen.candidate.index for seen in archive.observations()]
    assert len(set(told)) == len(told), "a candidate is told once"
    complete = {outcome.key.candidate for outcome in archive.outcomes("search")}
    stopped = {index: found.stop.reason for index, found in archive.stops().items()}
    assert not complete & stopped.keys(), "none is both stopped and complete"
    sampled = {index for index, reason in stopped.items() if reason == "sampled"}
    assert sampled == archive.scores("search").keys() & stopped.keys(), "samples are scores"
    assert not sampled or "racing" not in stopped.values(), "who samples does not race"
    scored = Counter()
    for outcome in archive.evaluations("search"):
        if outcome.key.signal == "scores" and outcome.scores is not None:
            block = archive.block("search", outcome.key.block)
            scored.update((outcome.key.candidate, t, i) for t, ids in block.items() for i in ids)
    assert not scored or max(scored.values()) == 1, "no item is scored twice"
    if archive.job.budget.items is None:
        assert sorted(told) == [candidate.index for candidate in archive.candidates()]


def check_budget(archive, evaluations, items):
    if items is not None:
        assert spending_of(archive).total_items <= items
    counted = [seen for seen in archive.observations() if seen.stopped != "screened"]
    name = archive.job.search.strategy
    plan = dispatch_plan(
        archive.job,
        archive.manifest.items("search"),
        can_choose=can_choose(name),
        can_sample=can_sample(name),
    )
    proposed = archive.candidates()
    space = SearchSpace(archive.job, archive.sources)
    baselines = [one for one in proposed if one.is_baseline]
    whole = [
        one
        for one in baselines
        if not (plan.samples_baselines and one.index and space.is_of_method(one.recipe))
    ]
    groups = (len(proposed) - len(baselines)) / plan.group_size
    sampled = len(baselines) - len(whole) + groups
    assert len(whole) + sampled / plan.per_score <= evaluations
    assert num_evaluated(archive) <= evaluations
    assert len(counted) >= min(3, len(proposed))
