"""Budgets of whole searches on the scripted pool, and what the record says that they cost."""

import dataclasses

import numpy as np
import pytest

from configs.errors import ConfigError
from configs.schema import JobConfig
from optimizer import driver
from optimizer.archive.archive import Archive
from optimizer.driver import run_search
from optimizer.events import Progressed
from optimizer.pareto import hypervolume
from optimizer.progress import progress_of
from optimizer.scalarize import reference_point
from optimizer.space import SearchSpace
from optimizer.spending import Spending, spending_of
from optimizer.strategies.registry import make_strategy
from optimizer.strategies.surrogate import SurrogateStrategy
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool

pytestmark = pytest.mark.slow  # whole searches

RACING = {"population_size": 6, "racing": {"confidence": 0.8}}


class Timed(ScriptedPool):
    """Says that a scored item takes 0.2 s of the model, and a companion alone 0.05 s."""

    def next_outcome(self, timeout_s=None):
        outcome = super().next_outcome(timeout_s)
        scored = sum(part.values.size for part in getattr(outcome, "task_scores", {}).values())
        beside = sum(part.values.size for part in getattr(outcome, "companions", {}).values())
        spent = 0.05 * beside if outcome.key.signal == "companions" else 0.2 * scored
        return dataclasses.replace(outcome, seconds={"materialize": 1.0, "forward": spent})


@pytest.fixture
def search(tmp_path):
    """Runs a search to its end; returns (result, archive, events)."""
    opened = []

    def run(pool_type=Timed, resume=None, **changes):
        path = resume or tmp_path / f"{len(opened)}.sqlite"
        job, manifest = scripted_search.make_job(path, **changes), scripted_search.make_manifest()
        sources = scripted_search.make_sources()
        events = []
        if resume is None:
            archive = Archive.create(
                path, job=job, job_path=None, sources=sources, manifest=manifest
            )
        else:
            archive = Archive.open(path, writable=True)
        with archive, scripted_search.with_strategies(), pool_type(job, manifest) as pool:
            space = SearchSpace(job, sources)
            result = run_search(archive, pool, space, job=job, on_event=events.append)
        opened.append(Archive.open(path))
        return result, opened[-1], events

    yield run
    for archive in opened:
        archive.close()


@pytest.mark.parametrize("settings", [{"population_size": 6}, RACING])
def test_budget_of_items_is_spent_and_never_overdrawn(search, settings):
    result, archive, _ = search(search=settings, budget={"evaluations": 1000, "items": 3000})
    assert result.reason == "budget of 3000 items spent"
    spent = spending_of(archive).items["scores"]
    assert 3000 - 4 * 72 < spent <= 3000
    told = {seen.candidate.index for seen in archive.observations()}
    asked = {o.key.candidate for o in archive.evaluations("search")}
    assert told <= asked


def test_search_goes_on_where_its_items_ended_with_a_larger_budget(search):
    _, first, _ = search(search=RACING, budget={"evaluations": 1000, "items": 2600})
    unfinished = {c.index for c in first.candidates()} - {
        seen.candidate.index for seen in first.observations()
    }
    assert unfinished
    _, archive, _ = search(
        resume=first.place, search=RACING, budget={"evaluations": 1000, "items": 3400}
    )
    assert spending_of(archive).items["scores"] > 3000
    assert unfinished <= {seen.candidate.index for seen in archive.observations()}
    keys = [outcome.key for outcome in archive.evaluations()]
    assert len(keys) == len(set(keys))


@pytest.mark.slow
def test_racing_leaves_items_for_more_candidates(search):
    budget = {"evaluations": 1000, "items": 4000}
    _, plain, _ = search(budget=budget)
    _, raced, _ = search(search=RACING, budget=budget)
    assert len(raced.observations()) > len(plain.observations())


def test_gpu_hours_count_the_time_of_workers_on_their_gpus(search):
    workers = {"count": 4, "device": "cuda", "gpus": 0.5}
    result, archive, _ = search(
        workers=workers, budget={"evaluations": 1000, "gpu_hours": 100 / 3600}
    )
    assert result.reason == f"budget of {100 / 3600} GPU hours spent"
    spending = spending_of(archive)
    assert 100 <= 0.5 * spending.worker_s < 100 + 0.5 * 4 * (1 + 0.2 * 72)


def test_gpu_hours_without_a_gpu_are_refused(tmp_path):
    content = scripted_search.make_job(tmp_path / "a").model_dump(mode="json")
    content["budget"]["gpu_hours"] = 1.0
    with pytest.raises(ValueError, match=r"budget\.gpu_hours: workers have no GPU"):
        JobConfig.model_validate(content)


def test_search_ends_when_too_little_is_expected_of_it(search, monkeypatch):
    class Forecasting:
        def __init__(self, inner):
            self.inner, self.told = inner, 0

        def ask(self, index, pending):
            return self.inner.ask(index, pending)

        def tell(self, observation):
            self.told += 1
            self.inner.tell(observation)

        def stop(self):
            return {}

        def expected_gain(self):
            return None if self.told < 20 else 0.0

    monkeypatch.setattr(
        driver, "make_strategy", lambda job, space: Forecasting(make_strategy(job, space))
    )
    budget = {"evaluations": 60, "min_gain_per_hour": 0.01}
    monkeypatch.setattr(driver, "check_strategy", lambda job: None)
    result, archive, _ = search(budget=budget)
    assert result.reason == "expected gain of 0 hypervolume per hour is below 0.01"
    assert 20 <= len(archive.candidates()) <= 26
    assert len(archive.observations()) == len(archive.candidates())


def test_default_search_ends_by_what_it_still_expects_and_stays_ended(search, monkeypatch):
    """Evaluations take six minutes each by the archive's clock."""
    monkeypatch.setattr(Archive, "elapsed_s", property(lambda a: 360.0 * len(a.observations())))
    settings = {"strategy": "surrogate_cma", **scripted_search.IN_FULL}
    budget = {"evaluations": 200, "min_gain_per_hour": 0.02}
    result, archive, events = search(search=settings, budget=budget)
    assert result.reason.startswith("expected gain of 0.0")
    assert result.reason.endswith("hypervolume per hour is below 0.02")
    assert 20 < len(archive.observations()) < 120
    course = [event.expected_gain for event in events if isinstance(event, Progressed)]
    assert course[:8] == [None] * 8
    known = [gain for gain in course if gain is not None]
    assert len(known) > 8
    # Ten evaluations an hour; what is under way and what was proposed ahead is finished.
    first = next(place for place, gain in enumerate(known) if gain < 0.002)
    assert len(known) - first <= 1 + 4 + 1
    assert known[-1] < np.mean(known[:4]) / 4
    again, archive, _ = search(resume=archive.place, search=settings, budget=budget)
    assert again.reason == result.reason
    assert len(archive.observations()) == len(course)


def test_gain_per_hour_is_that_of_samples_where_samples_are_scored(search, monkeypatch):
    """Each of the strategy adds .001, ten of them an hour, three of them an evaluation."""
    monkeypatch.setattr(Archive, "elapsed_s", property(lambda a: 360.0 * len(a.observations())))
    monkeypatch.setattr(SurrogateStrategy, "expected_gain", lambda self: 0.001)
    for least, reason in ((0.009, "budget of 12"), (0.011, "expected gain of 0.01")):
        budget = {"evaluations": 12, "min_gain_per_hour": least}
        result, _, _ = search(search={"strategy": "surrogate_cma"}, budget=budget)
        assert result.reason.startswith(reason)


def test_search_whose_strategy_expects_nothing_is_refused(search):
    with pytest.raises(ConfigError, match=r"`cma` cannot say what is still to be gained"):
        search(budget={"evaluations": 20, "min_gain_per_hour": 100.0})


@pytest.mark.slow
def test_companions_alone_count_by_their_model_time(search):
    _, archive, _ = search(**scripted_search.SEARCHES["screening"], budget={"evaluations": 40})
    spending = spending_of(archive)
    assert spending.companion_share == pytest.approx(0.25)
    assert spending.model_s["scores"] == pytest.approx(0.2 * spending.items["scores"])
    assert spending.model_s["companions"] == pytest.approx(0.05 * spending.items["companions"])
    assert spending.items["companions"] > 1000
    assert spending.total_items == pytest.approx(
        spending.items["scores"] + 0.25 * spending.items["companions"]
    )


def test_companions_count_as_items_until_both_were_timed():
    assert Spending().companion_share == 1.0
    assert Spending(items={"scores": 10, "companions": 10}).companion_share == 1.0


@pytest.mark.parametrize("sampling", [False, "auto"])
def test_progress_is_what_was_found_over_what_it_took(search, sampling):
    racing = {**RACING["racing"], "sampling": sampling}
    _, archive, events = search(search={**RACING, "racing": racing})
    points = progress_of(archive)
    assert [point.candidate for point in points] == [
        seen.candidate.index for seen in archive.observations()
    ]
    is_whole = np.array(
        [seen.candidate.is_baseline and not seen.stopped for seen in archive.observations()]
    )
    # A sample is 24 of the 72 items.
    per_evaluation = 1 if sampling is False else 3
    evaluations = np.cumsum(is_whole) + np.cumsum(~is_whole) // per_evaluation
    assert [point.evaluations for point in points] == evaluations.tolist()
    assert points[-1].evaluations == 60
    for kind in ("items", "model_s", "volume"):
        course = [getattr(point, kind) for point in points]
        assert course == sorted(course)
    names = tuple(archive.job.objectives)
    scores = archive.scores("search")
    found = np.array([[scores[i][name].value for name in names] for i in scores])
    reference = reference_point(archive.observations(), names)
    assert points[-1].volume == pytest.approx(hypervolume(found, reference))
    assert points[-1].items == spending_of(archive).total_items
    live = [event for event in events if isinstance(event, Progressed)]
    assert [event.evaluations for event in live] == [point.evaluations for point in points]
    assert live[-1].volume == pytest.approx(points[-1].volume)
    assert [event.items for event in live][-1] == points[-1].items
    assert live[-1].model_s == pytest.approx(points[-1].model_s)
