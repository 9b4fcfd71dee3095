"""Searches that score candidates on samples of the items."""

from collections import Counter

import numpy as np
import pytest
from matplotlib.figure import Figure

from configs.errors import ConfigError
from evaluators.scores import ObjectiveScore
from optimizer.archive.archive import Archive
from optimizer.candidate import SAMPLED, Candidate, Observation
from optimizer.dispatch_plan import may_be_sampled, planned
from optimizer.driver import num_singles, run_search, run_singles
from optimizer.report.plot import Picture, draw_volume
from optimizer.report.plot_html import _volume
from optimizer.report.report import report_of
from optimizer.results.belief import believed_candidates
from optimizer.results.front_view import front_of
from optimizer.results.winners_curse import _ahead, winners_curse
from optimizer.resume import verify_replay
from optimizer.scalarize import reference_point
from optimizer.service.candidates import _Facts
from optimizer.space import SearchSpace
from optimizer.status import recorded_of
from optimizer.stopped import describe_savings, is_whole, num_evaluated, savings_of
from optimizer.warm_start import _companion_items
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool
from tests.unit.optimizer.warm_starts import start
from workers.outcome import Failed, Stage

ITEMS = scripted_search.make_manifest().items("search")
FULL, SAMPLE = 3 * 24, 3 * 8


@pytest.mark.slow
@pytest.mark.parametrize("samples_baselines", [True, False])
def test_search_that_screens_and_samples_counts_both(tmp_path, samples_baselines):
    screening = {"enabled": True, "sampling": samples_baselines}
    scripted_search.run(
        path := tmp_path / "archive.sqlite",
        search={"racing": {"sampling": True}, "screening": screening},
        objectives=scripted_search.COMPANIONS,
        budget={"evaluations": 24},
    )
    with Archive.open(path) as archive:
        told = archive.observations()
        baselines = [seen for seen in told if seen.candidate.is_baseline]
        whole = [seen.candidate.index for seen in baselines if seen.is_complete]
        others = [seen for seen in told if not seen.candidate.is_baseline]
        space = SearchSpace(archive.job, archive.sources)
        may_be = [
            seen.candidate.index
            for seen in baselines
            if samples_baselines
            and may_be_sampled(seen.candidate.index, seen.candidate.recipe, space)
        ]
        assert {*whole, *may_be} == {seen.candidate.index for seen in baselines}
        assert {seen.stopped for seen in others} >= {SAMPLED, "screened"}
        # Of a group at most one is scored; a sample has a third of the items.
        groups = len(others) // 6
        assert sum(seen.stopped == SAMPLED for seen in others) <= groups
        assert num_evaluated(archive) == len(whole) + (len(may_be) + groups) // 3 == 24
        known = {seen.candidate.index for seen in baselines if seen.companions}
        assert known == {seen.candidate.index for seen in baselines}


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("sampling") / "archive.sqlite"
    scripted_search.run(path, search={}, budget={"evaluations": 40})
    with Archive.open(path) as archive:
        yield archive


@pytest.mark.slow
def test_candidates_are_scored_on_a_sample_but_the_first_and_other_methods(archive):
    space = SearchSpace(archive.job, archive.sources)
    candidates = {candidate.index: candidate for candidate in archive.candidates()}
    sampled = [i for i, found in archive.stops().items() if found.stop.reason == "sampled"]
    for index in sampled:
        items = archive.scored_items(index, "search")
        assert sum(part.values.size for part in items.values()) == SAMPLE
        assert archive.stops()[index].stop.numbers == {"items": SAMPLE, "of": FULL}
    assert len(sampled) > 40
    for index, scores in archive.scores("search").items():
        is_judged = index > 0 and space.is_of_method(candidates[index].recipe)
        assert (index in sampled) == (is_judged or not candidates[index].is_baseline)
        assert {score.count for score in scores.values()} == {8 if index in sampled else 24}
    baselines = {index for index, one in candidates.items() if one.is_baseline}
    assert len(baselines & set(sampled)) > len(baselines - set(sampled)) > 1


class FailingPool(ScriptedPool):
    """Fails what is asked of some candidates, whole or not."""

    def next_outcome(self, timeout_s=None):
        outcome = super().next_outcome(timeout_s)
        if outcome.key.candidate not in {1, 2} or outcome.key.split != "search":
            return outcome
        return Failed(
            key=outcome.key,
            attempt=1,
            worker="bench",
            stage=Stage.EVALUATE,
            error_class="RuntimeError",
            message="no",
        )


@pytest.mark.slow
def test_baseline_that_fails_on_its_sample_is_a_part_of_an_evaluation(tmp_path):
    path = tmp_path / "archive.sqlite"
    job = scripted_search.make_job(path, search={}, budget={"evaluations": 24})
    manifest, sources = scripted_search.make_manifest(), scripted_search.make_sources()
    archive = Archive.create(path, job=job, job_path=None, sources=sources, manifest=manifest)
    space = SearchSpace(job, sources)
    with archive, FailingPool(job, manifest) as pool:
        run_search(archive, pool, space)
        told = archive.observations()
        baselines = [one for one in archive.candidates() if one.is_baseline]
        whole = sum(one.index == 0 or not space.is_of_method(one.recipe) for one in baselines)
        assert whole == sum(is_whole(archive, one) for one in baselines) > 1
        assert [seen.scores for seen in told if seen.candidate.index in {1, 2}] == [None, None]
        assert whole + (len(told) - whole) // 3 == num_evaluated(archive) == 24


@pytest.mark.slow
def test_singles_alone_are_scored_on_everything(tmp_path):
    path = tmp_path / "archive.sqlite"
    job, manifest = scripted_search.make_job(path, search={}), scripted_search.make_manifest()
    sources, singles = scripted_search.make_sources(), num_singles(job)
    space = SearchSpace(job, sources)
    archive = Archive.create(path, job=job, job_path=None, sources=sources, manifest=manifest)
    with archive, ScriptedPool(job, manifest) as pool:
        run_singles(archive, pool, space, job=job)
        assert num_evaluated(archive) == len(archive.observations()) == singles
        # In the search that goes on from there each of them counts as one evaluation.
        budget = job.budget.model_copy(update={"evaluations": 20})
        run_search(archive, pool, space, job=job.model_copy(update={"budget": budget}))
        told = archive.observations()
        assert all(seen.is_complete for seen in told[:singles])
        assert any(seen.stopped == SAMPLED and seen.candidate.is_baseline for seen in told)
        assert num_evaluated(archive) == 20


def test_warm_starts_ask_for_the_companions_that_samples_have(tmp_path):
    off = {"screening": {"enabled": False}}
    job = scripted_search.make_job(
        tmp_path / "a.sqlite", search=off, objectives=scripted_search.COMPANIONS
    )
    plan = planned(job, ITEMS)
    assert plan.samples
    assert _companion_items(job, scripted_search.make_manifest()) == plan.preview


def test_reference_is_the_lowest_sample_where_no_baseline_was_scored(tmp_path):
    job = scripted_search.make_job(tmp_path / "a.sqlite")
    space = SearchSpace(job, scripted_search.make_sources())
    point = np.full(space.size, 0.5)
    recipe = space.decode(point)
    seen = [
        Observation(
            Candidate(index, point, recipe, "strategy:surrogate_cma", 0),
            {"code": ObjectiveScore(value, 0.1, 8)},
            stopped=SAMPLED,
        )
        for index, value in enumerate((-3.0, -2.0))
    ]
    assert reference_point(seen, ["code"]).tolist() == [-3.25]


@pytest.mark.slow
def test_pictures_count_evaluations_as_the_budget_does(archive):
    picture = Picture.of(archive)
    assert picture.evaluations[-1] == num_evaluated(archive) == 40
    assert picture.evaluations.size == len(archive.observations()) > 60
    axes = Figure().add_subplot()
    draw_volume(axes, picture)
    assert axes.lines[0].get_xdata()[-1] == 40
    assert _volume(picture).data[0].x[-1] == 40


@pytest.mark.slow
def test_samples_are_of_all_items(archive):
    uses = Counter()
    for index, found in archive.stops().items():
        if found.stop.reason == "sampled":
            for part in archive.scored_items(index, "search").values():
                uses.update(part.item_ids)
    assert len(uses) == FULL
    assert max(uses.values()) - min(uses.values()) <= len(archive.stops()) / 6


@pytest.mark.slow
def test_evaluations_are_what_amounts_to_whole_ones(archive):
    assert num_evaluated(archive) == recorded_of(archive).evaluations == 40
    told = archive.observations()
    whole = sum(seen.is_complete for seen in told)
    # Failures and broken models count as parts, too.
    assert whole + (len(told) - whole) // 3 == 40
    found = savings_of(archive)
    sampled = found.stopped["sampled"]
    assert sampled > 40
    assert found.scored["sampled"] == sampled * SAMPLE
    assert found.saved == found.stopped["broken"] * (FULL - SAMPLE)
    text = "\n".join(describe_savings(found))
    assert f"{sampled} were scored on samples, {sampled * SAMPLE} items in all" in text
    assert report_of(archive).progress.points[-1].evaluations == 40


@pytest.mark.slow
def test_samples_tell_how_many_are_an_evaluation_without_the_strategy(archive, monkeypatch):
    def not_installed(job, items):
        raise ConfigError.single("search.strategy", "there is none of that name")

    expected = num_evaluated(archive)
    monkeypatch.setattr("optimizer.dispatch_plan.planned", not_installed)
    # As long as there are samples of baselines only.
    monkeypatch.setattr("optimizer.stopped._is_told_by", lambda seen: False)
    assert num_evaluated(archive) == expected


@pytest.mark.slow
def test_asks_come_out_the_same_from_the_record(archive):
    assert verify_replay(archive, SearchSpace(archive.job, archive.sources)) == []


@pytest.mark.slow
def test_sampled_candidates_stand_on_the_front_and_are_validated(archive):
    sampled = {i for i, found in archive.stops().items() if found.stop.reason == "sampled"}
    rows = believed_candidates(archive)
    assert {row.candidate.index for row in front_of(rows)} & sampled
    assert len(archive.scores("select").keys() & sampled) >= 3
    assert archive.choice() in archive.scores("report")
    assert recorded_of(archive).stopped.keys() == {"broken"}


@pytest.mark.slow
def test_service_shows_samples_as_scored(archive):
    facts = _Facts(archive, believed_candidates(archive))
    sampled = {i for i, found in archive.stops().items() if found.stop.reason == "sampled"}
    rows = [facts.row(archive.candidate(index)) for index in sampled]
    assert {(row.state, row.stopped) for row in rows} == {("completed", None)}
    assert all(row.worker and row.seconds is not None for row in rows)
    assert {score.count for row in rows for score in row.scores.values()} == {8}


@pytest.mark.slow
def test_winners_curse_compares_a_sample_with_the_same_items_of_baselines(archive):
    sampled = max(i for i, found in archive.stops().items() if found.stop.reason == "sampled")
    search, ours = archive.scored_items(0, "search"), archive.scored_items(sampled, "search")
    average = {task: search[task].restricted_to(set(part.item_ids)) for task, part in ours.items()}
    ahead = sum(ours[task].mean - average[task].mean for task in ours) / 3
    found, own = _ahead(archive, sampled, [0], "search")
    assert own == pytest.approx(sum(part.mean for part in ours.values()) / 3)
    assert found.mean == pytest.approx(ahead)
    assert found.stderr > 0
    # Baselines that were scored on other items say nothing of these.
    every = [one.index for one in archive.candidates() if one.is_baseline]
    whole = [index for index in every if index not in archive.stops()]
    chosen = archive.choice()
    assert winners_curse(archive, chosen, every) == winners_curse(archive, chosen, whole)
    assert len(whole) < len(every)


@pytest.mark.slow
def test_samples_are_known_to_a_search_that_goes_on_from_them(archive, tmp_path):
    begun = start(archive, tmp_path, search={})
    sampled = {i for i, found in archive.stops().items() if found.stop.reason == "sampled"}
    seeds = {seed.source: seed for seed in begun.seeds}
    assert sampled <= seeds.keys()
    for index in sampled:
        scores = seeds[index].observation.scores
        assert not seeds[index].is_exact
        parts = archive.scored_items(index, "search")
        for name, score in scores.items():
            assert score.value == pytest.approx(parts[f"zoo_{name}"].mean)
            # Of a third of the items: their variance and that of as many items as the split has.
            assert score.count == 6
