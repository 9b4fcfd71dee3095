"""What is counted of a search is what its archive holds."""

from collections import Counter
from dataclasses import replace

import pytest

from optimizer.archive.archive import Archive
from optimizer.events import Progressed, SearchStarted, WorkersSeen
from optimizer.telemetry.search_meters import METERS, SearchMeters
from tests.fault import scripted_search
from tests.fault.scripted_pool import ScriptedPool
from tests.unit.optimizer.telemetry.watched_search import KeptMeters, run_watched
from workers.outcome import Failed


class TimedPool(ScriptedPool):
    def next_outcome(self, timeout_s=None):
        outcome = super().next_outcome(timeout_s)
        if isinstance(outcome, Failed):
            return outcome
        return replace(outcome, seconds={"materialize": 0.5, "forward": 2.5})


class StrictMeters(KeptMeters):
    """Refuses what Ray would refuse."""

    def record(self, name, value, tags=None):
        (meter,) = (meter for meter in METERS if meter.name == name)
        assert set(tags or {}) == set(meter.tags)
        assert all(type(text) is str for text in (tags or {}).values())
        assert value >= 0
        super().record(name, value, tags)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["racing", "screening"])
def test_meters_count_what_the_archive_holds(tmp_path, name):
    path, meters = tmp_path / "archive.sqlite", StrictMeters()
    run_watched(path, {}, meters=meters, **scripted_search.SEARCHES[name])
    with Archive.open(path) as archive:
        ends = Counter(
            ("search", seen.stopped or ("failed" if seen.scores is None else "scored"))
            for seen in archive.observations()
        )
        for split in ("select", "report"):
            for outcome in archive.outcomes(split):
                ends[split, "failed" if outcome.scores is None else "scored"] += 1
        items, failures = Counter(), Counter()
        for outcome in archive.evaluations():
            key = outcome.key
            if outcome.scores is None:
                failures[key.split, "evaluate", "EvaluationError"] += 1
            else:
                of = archive.block(key.split, key.block)
                items[key.split, key.signal] += sum(map(len, of.values()))
    assert meters.of("mergefront_evaluations_total") == ends
    counted = {k: v for k, v in meters.of("mergefront_items_total").items() if v}
    assert counted == items
    assert meters.of("mergefront_failures_total") == failures
    assert meters.of("mergefront_budget_evaluations") == {(): 24}


def test_meters_follow_the_hypervolume_and_the_seconds_of_stages(tmp_path):
    path, meters = tmp_path / "archive.sqlite", StrictMeters()
    volumes = []

    def view(event):
        if hasattr(event, "volume"):
            volumes.append(event.volume)

    run_watched(path, {}, meters=meters, view=view, pool_type=TimedPool)
    assert meters.of("mergefront_hypervolume") == {(): volumes[-1]}
    assert volumes[-1] > 0
    with Archive.open(path) as archive:
        count = sum(o.scores is not None for o in archive.evaluations("search"))
    seconds = meters.of("mergefront_stage_seconds_total")
    assert seconds["search", "forward"] == pytest.approx(2.5 * count)
    assert seconds["search", "materialize"] == pytest.approx(0.5 * count)


def test_idle_ratio_is_the_idle_time_of_workers_that_could_work():
    now, meters = [100.0], StrictMeters()
    watcher = SearchMeters(lambda: meters, clock=lambda: now[0])
    for elapsed_s, states in (
        (50, {"a": "starting", "b": "busy"}),
        (10, {"a": "idle", "b": "busy"}),
        (2, {"a": "busy", "b": "busy"}),
        (6, {"b": "busy"}),
    ):
        now[0] += elapsed_s
        watcher.on_event(WorkersSeen(states))
    # b: 10 + 2 + 6 s busy, a: 2 s idle, 6 s busy. Before the first look nothing is known.
    assert meters.of("mergefront_worker_seconds_total") == {
        ("starting",): 10, ("busy",): 24, ("idle",): 2,
    }  # fmt: skip
    assert meters.of("mergefront_worker_idle_ratio")[()] == pytest.approx(2 / 26)
    assert meters.of("mergefront_workers") == {("starting",): 0, ("busy",): 1, ("idle",): 0}


def test_gauges_are_set_again_at_every_look_since_ray_forgets_them():
    meters = StrictMeters()
    watcher = SearchMeters(lambda: meters)
    watcher.on_event(SearchStarted(3, 96))
    watcher.on_event(Progressed(4, 100.0, 1.0, 0.25))
    for _ in range(2):
        meters.values.clear()
        watcher.on_event(WorkersSeen({"a": "busy"}))
        assert meters.of("mergefront_hypervolume") == {(): 0.25}
        assert meters.of("mergefront_budget_evaluations") == {(): 96}
        assert meters.of("mergefront_workers") == {("busy",): 1}


def test_names_follow_openmetrics():
    for meter in METERS:
        assert meter.name.startswith("mergefront_")
        assert meter.name.endswith("_total") == (meter.kind == "counter")
        assert meter.help.endswith(".")
