import shutil

import pytest

from configs.errors import SearchError, TooManyFailuresError
from optimizer import driver
from optimizer.archive.archive import Archive
from optimizer.baselines import baseline_labels
from optimizer.driver import run_search
from optimizer.events import Finished, PhaseChanged, Proposed
from optimizer.results.verdict import verdict
from optimizer.resume import verify_replay
from optimizer.space import SearchSpace
from optimizer.strategies.registry import make_strategy
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool
from workers.outcome import Failed, Stage

pytestmark = pytest.mark.slow  # whole searches


@pytest.fixture
def path(tmp_path):
    return tmp_path / "archive.sqlite"


@pytest.fixture
def run_with(path):
    """Runs a search on a pool made by ``pool_type(job, manifest)``."""

    def run(pool_type=ScriptedPool, on_event=lambda event: None, **changes):
        job, manifest = scripted_search.make_job(path, **changes), scripted_search.make_manifest()
        sources = scripted_search.make_sources()
        archive = Archive.create(path, job=job, job_path=None, sources=sources, manifest=manifest)
        space = SearchSpace(job, sources)
        with archive, pool_type(job, manifest) as pool:
            return run_search(archive, pool, space, on_event=on_event), space

    return run


class FailingPool(ScriptedPool):
    def next_outcome(self, timeout_s=None):
        outcome = super().next_outcome(timeout_s)
        return Failed(
            key=outcome.key, attempt=1, worker="w", stage=Stage.MATERIALIZE,
            error_class="CorruptCheckpointError", message="shard 2 is truncated",
        )  # fmt: skip


def test_search_records_a_proposal_before_it_is_submitted_and_an_outcome_before_it_is_told(
    run_with, path
):
    class Watching(ScriptedPool):
        def submit(self, request):
            with Archive.open(path) as reader:
                proposed = reader.candidate(request.key.candidate)
            assert proposed.recipe == request.recipe
            super().submit(request)

    def on_event(event):
        if isinstance(event, Finished):
            with Archive.open(path) as reader:
                assert reader.outcome(event.candidate.index, event.outcome.key.split) is not None

    run_with(Watching, on_event)


def test_search_keeps_every_worker_busy_without_a_barrier(run_with):
    in_flight = []

    class Watching(ScriptedPool):
        def next_outcome(self, timeout_s=None):
            in_flight.append(self.num_pending)
            return super().next_outcome(timeout_s)

    run_with(Watching, validation={"candidates": 1})
    assert in_flight[:50] == [4] * 50


class Logging:
    """A strategy that writes down what is done with it, beside what the pool is given."""

    def __init__(self, inner, log):
        self.inner, self.log = inner, log

    def ask(self, index, pending):
        self.log.append(("ask", index))
        return self.inner.ask(index, pending)

    def tell(self, observation):
        self.log.append(("tell", observation.candidate.index))
        self.inner.tell(observation)

    def stop(self):
        return self.inner.stop()


@pytest.fixture
def logged(run_with, path, monkeypatch):
    """Runs a search; returns (what, candidate, free workers) in the order in which it happened."""

    def run(**changes):
        log, free = [], []

        class Watching(ScriptedPool):
            def submit(self, request):
                super().submit(request)
                if request.key.split == "search":
                    log.append(("submit", request.key.candidate))

            def next_outcome(self, timeout_s=None):
                free.append(self.num_free)
                outcome = super().next_outcome(timeout_s)
                if outcome.key.split == "search":
                    log.append(("outcome", outcome.key.candidate))
                return outcome

        monkeypatch.setattr(
            driver, "make_strategy", lambda job, space: Logging(make_strategy(job, space), log)
        )
        run_with(Watching, **changes)
        return log, free

    return run


def test_free_worker_gets_its_next_candidate_before_the_outcome_is_told(logged, path):
    log, free = logged()
    outcomes = [place for place, (what, _) in enumerate(log) if what == "outcome"]
    for place in outcomes[:-5]:
        after = [what for what, _ in log[place + 1 :]]
        assert after[:2] == ["submit", "tell"]
    assert free[:56] == [0] * 56
    with Archive.open(path) as archive:
        observed = archive.observations()
        for place, (what, index) in enumerate(log):
            told = [other for kind, other in log[:place] if kind == "tell"]
            if what == "ask":
                assert archive.candidate(index).seen == len(told)
                assert told == [seen.candidate.index for seen in observed[: len(told)]]


@pytest.fixture
def ready_at_waits():
    """A pool, what listens to its search, and how many proposals were ready whenever it waited."""
    proposed, ready = [], []

    class Watching(ScriptedPool):
        num_submitted = 0

        def submit(self, request):
            self.num_submitted += 1
            super().submit(request)

        def next_outcome(self, timeout_s=None):
            ready.append(len(proposed) - self.num_submitted)
            return super().next_outcome(timeout_s)

    def on_event(event):
        if isinstance(event, Proposed):
            proposed.append(event.candidate.index)

    return Watching, on_event, ready


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_as_many_proposals_are_ready_as_the_job_wants(run_with, path, ready_at_waits, ahead):
    watching, on_event, ready = ready_at_waits
    search = {"strategy": "cma", "ask_ahead": ahead, **scripted_search.IN_FULL}
    _, space = run_with(watching, on_event, search=search)
    assert ready[: 60 - 4 - ahead] == [ahead] * (60 - 4 - ahead)
    with Archive.open(path) as archive:
        assert verify_replay(archive, space) == []


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (4, 1), (5, 2), (12, 3)])
def test_proposals_ahead_grow_with_the_workers(path, ready_at_waits, workers, ahead):
    watching, on_event, ready = ready_at_waits
    job, manifest = scripted_search.make_job(path), scripted_search.make_manifest()
    sources = scripted_search.make_sources()
    arguments = {"job": job, "job_path": None, "sources": sources, "manifest": manifest}
    with Archive.create(path, **arguments) as archive:
        space = SearchSpace(job, sources)
        with watching(job, manifest, capacity=workers) as pool:
            run_search(archive, pool, space, on_event=on_event)
    steady = 60 - workers - ahead
    assert ready[:steady] == [ahead] * steady


def test_proposals_that_were_ready_are_submitted_first_on_resume(run_with, path):
    class Interrupted(ScriptedPool):
        taken = 0

        def next_outcome(self, timeout_s=None):
            Interrupted.taken += 1
            if Interrupted.taken > 30:
                raise KeyboardInterrupt
            return super().next_outcome(timeout_s)

    with pytest.raises(KeyboardInterrupt):
        run_with(Interrupted)
    with Archive.open(path, writable=True) as archive:
        assert len(archive.candidates()) == 30 + 4 + 1
        waiting = archive.candidates()[-1].index
        submitted = []

        class Watching(ScriptedPool):
            def submit(self, request):
                submitted.append(request.key.candidate)
                super().submit(request)

        space = SearchSpace(archive.job, archive.sources)
        with Watching(archive.job, archive.manifest) as pool:
            run_search(archive, pool, space)
        assert submitted[4] == waiting
        assert submitted[:5] == sorted(submitted[:5])
        assert verify_replay(archive, space) == []


def test_job_may_be_resumed_with_another_number_of_proposals_ahead(path):
    jobs = [scripted_search.make_job(path, search={"ask_ahead": ahead}) for ahead in (0, 5)]
    assert jobs[0].digest == jobs[1].digest


def test_search_scores_what_it_learns_from_first_and_all_baselines_within_the_budget(
    run_with, path
):
    events = []
    result, space = run_with(on_event=events.append)
    proposed = [event.candidate for event in events if isinstance(event, Proposed)]
    assert len(proposed) == 60
    assert [candidate.is_baseline for candidate in proposed[:9]] == [True] * 8 + [False]
    assert sum(candidate.is_baseline for candidate in proposed) >= 14
    assert result.reason == "budget of 60 evaluations spent"
    assert [e.phase for e in events if isinstance(e, PhaseChanged)] == [
        "search", "select", "report", "done",
    ]  # fmt: skip
    with Archive.open(path) as archive:
        labels = baseline_labels(archive, space)
        assert {"base", "checkpoint math", "uniform soup", "task arithmetic 0.9"} <= set(labels)
        report = set(archive.scores("report"))
        assert result.chosen in report
        assert set(labels.values()) <= report


def test_verdict_compares_the_choice_with_every_baseline_on_report_items(run_with, path):
    result, space = run_with()
    with Archive.open(path) as archive:
        found = verdict(archive, space)
        assert found is not None
        assert found.chosen == result.chosen
        assert found.means[found.strongest] == max(
            mean for label, mean in found.means.items() if label != "chosen"
        )
        gap = found.comparisons[found.strongest].mean
        assert gap.mean == pytest.approx(found.means["chosen"] - found.means[found.strongest])
        assert found.won == all(
            gap.mean.mean > 0 and gap.p_value <= 0.05 for gap in found.comparisons.values()
        )
        assert found.strongest in found.sentence


def test_verify_finds_every_ask_equal_and_notices_another_seed(run_with, path, monkeypatch):
    # The start of a surrogate does not depend on the seed; every sample of CMA does.
    _, space = run_with(search={"strategy": "cma", "population_size": 6})
    with Archive.open(path) as archive:
        assert verify_replay(archive, space) == []
        other = archive.job.model_copy(update={"seed": 4})
        monkeypatch.setattr(type(archive), "job", property(lambda self: other))
        mismatches = verify_replay(archive, space)
        asked = [c.index for c in archive.candidates() if not c.is_baseline]
    assert [mismatch.candidate for mismatch in mismatches] == asked
    assert min(mismatch.largest_difference for mismatch in mismatches) > 1e-6


def test_budget_smaller_than_the_baselines_ends_properly(run_with, path):
    result, space = run_with(budget={"evaluations": 5})
    with Archive.open(path) as archive:
        assert len(archive.candidates()) == 5
        found = verdict(archive, space)
        assert found is not None
        assert not found.won
        assert "did not win" in found.sentence
    assert result.num_outcomes == 5


def test_search_resumed_with_a_larger_budget_goes_on(run_with, path):
    run_with(budget={"evaluations": 30})
    with Archive.open(path, writable=True) as archive:
        job = archive.job.model_copy(
            update={"budget": archive.job.budget.model_copy(update={"evaluations": 40})}
        )
        space = SearchSpace(job, archive.sources)
        with ScriptedPool(job, archive.manifest) as pool:
            result = run_search(archive, pool, space, job=job)
        assert result.num_outcomes == 40
        assert verify_replay(archive, space) == []


def test_search_resumed_on_another_device_lays_out_the_same_blocks(run_with, tmp_path, path):
    search = {"strategy": "cma", **scripted_search.OFTEN}
    run_with(search=search, budget={"evaluations": 24})
    recorded = []
    for device in ("cpu", "cuda"):
        copied = tmp_path / f"{device}.sqlite"
        shutil.copy(path, copied)
        with Archive.open(copied, writable=True) as archive:
            job = scripted_search.make_job(
                path, search=search, budget={"evaluations": 34}, workers={"device": device}
            )
            space = SearchSpace(job, archive.sources)
            with ScriptedPool(job, archive.manifest) as pool:
                run_search(archive, pool, space, job=job)
            assert verify_replay(archive, space) == []
        recorded.append(scripted_search.recorded_keys(copied))
    assert recorded[0] == recorded[1]


def test_search_stops_when_too_many_candidates_fail(run_with, path):
    with pytest.raises(TooManyFailuresError, match=r"8 of 8 candidates failed.*shard 2") as raised:
        run_with(FailingPool)
    assert "mergefront resume" in str(raised.value)
    with Archive.open(path) as archive:
        assert len(archive.outcomes("search")) == 8


def test_search_where_nothing_was_scored_says_so(run_with):
    with pytest.raises(SearchError, match="no candidate could be scored on the select split"):
        run_with(FailingPool, budget={"evaluations": 4})
