import json
from pathlib import Path

import numpy as np
import pytest

from optimizer.candidate import Candidate
from scripts.bench.ask_times import measure_asks
from scripts.bench.landscapes import NUM_ITEMS, OBJECTIVES, SHAPES, Landscape, search_items
from scripts.bench.search import FULL_RUNS, main, parse, run_closed, table
from scripts.bench.search_closed import CHECKPOINTS, run_search, version_of
from scripts.bench.search_rows import (
    SearchRun,
    TracePoint,
    append_run,
    cost_to_reach,
    read_runs,
    search_rows,
)


def make_run(strategy: str, seed: int, volumes: list[float]) -> SearchRun:
    trace = [
        TracePoint(10 * (i + 1), 100.0 * (i + 1), volume, volume / 2)
        for i, volume in enumerate(volumes)
    ]
    return SearchRun("N4", strategy, seed, tuple(trace), ask_ms=1.0, driver_s=2.0)


def test_runs_survive_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "runs" / "search.jsonl"
    runs = [make_run("a", seed, [0.1, 0.2]) for seed in range(2)]
    for run in runs:
        append_run(path, run)
    with path.open("a") as file:
        file.write(json.dumps({"landscape": "N4"})[:-3])
    assert read_runs(path) == runs
    assert read_runs(tmp_path / "none") == []


def test_rows_say_when_a_rival_was_reached():
    rows = search_rows(
        [
            make_run("fast", 0, [0.2, 0.6, 0.8]),
            make_run("fast", 1, [0.2, 0.4, 0.8]),
            make_run("slow", 0, [0.1, 0.2, 0.4]),
            make_run("slow", 1, [0.1, 0.2, 0.3]),
        ]
    )
    fast, slow = rows
    assert (fast.hv_mean, fast.hv_sd) == (pytest.approx(0.8), pytest.approx(0.0))
    assert slow.hv_sd == pytest.approx(np.std([0.4, 0.3], ddof=1))
    # The mean curve of the fast one is 0.2, 0.5, 0.8; the slow one ends at 0.35.
    assert fast.evaluations_to_match == {"slow": pytest.approx(15)}
    assert fast.items_to_match == {"slow": pytest.approx(150)}
    assert slow.items_to_match == {"fast": None}
    assert fast.items_to_match_best_mean == {"slow": pytest.approx(150)}
    assert (fast.items_to_own, fast.evaluations_to_own) == (pytest.approx(300), pytest.approx(30))


def test_rows_say_when_a_strategy_first_had_what_it_ends_with():
    """A curve that wanders is not to be compared by its end."""
    (row,) = search_rows([make_run("slow", 0, [0.1, 0.5, 0.4, 0.3])])
    assert (row.evaluations, row.items) == (40, 400)
    assert row.evaluations_to_own == pytest.approx(15)
    assert row.items_to_own == row.items_to_own_best_mean == pytest.approx(150)
    assert "own 15 (150)" in table([row])
    assert "| 400 |" in table([row])
    assert table([row]).endswith("| 1 | 2.0 |")


def test_committed_records_can_be_read_and_gone_on_with():
    (path,) = sorted(Path("scripts/bench/results").glob("search_closed_*.jsonl"))
    runs = read_runs(path)
    keys = {run.key for run in runs}
    assert len(keys) == len(runs) > 0
    assert ("N8", "surrogate_cma", 0, 200, version_of("surrogate_cma")) in keys


def test_full_goes_on_by_itself():
    assert parse(["--full"]).runs == FULL_RUNS
    assert parse(["--full", "--runs", "elsewhere"]).runs == Path("elsewhere")
    assert parse([]).runs is None
    # Those have other evaluations pending.
    assert parse(["--full", "--pending", "8"]).runs is None


@pytest.mark.slow
def test_searches_that_sample_have_a_budget_of_their_own(tmp_path):
    words = ["--landscapes", "N4", "--strategies", "dirichlet", "sample", "--evaluations", "12"]
    words += ["--sampled-evaluations", "2", "--runs", str(tmp_path / "runs")]
    rows = {row.strategy: row for row in run_closed(parse(words))}
    assert (rows["dirichlet"].evaluations, rows["sample"].evaluations) == (12, 2)
    # The base, and sixteen others of sixteen items.
    assert rows["sample"].items == 2 * 3 * 256
    assert {row.strategy: row for row in run_closed(parse(words))} == rows
    assert len(read_runs(tmp_path / "runs")) == 2


def test_cost_to_reach_is_that_of_the_first_point_when_it_is_enough():
    trace = make_run("a", 0, [0.3, 0.1]).trace
    assert cost_to_reach(trace, 0.2, "hypervolume", "items") == 100.0
    assert cost_to_reach(trace, 0.4, "hypervolume", "items") is None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["N4", "4x6"])
def test_no_merge_of_a_convex_landscape_is_beyond_its_reference(name):
    landscape = Landscape(name)
    space = landscape.space(landscape.job("dirichlet"))
    rng = np.random.default_rng(0)
    # Many merges near good ones, each random: what any search could return.
    recipes = [space.recipe(rng.uniform(0, 1.2, space.shape).tolist()) for _ in range(400)]
    points = np.array([landscape.truth(recipe) for recipe in recipes])
    assert 0.05 < landscape.relative_hypervolume(points) < 1.0
    assert (points > 0).all()
    assert (points < 0.95).all()


@pytest.mark.parametrize("name", SHAPES)
def test_scores_scatter_binomially_around_the_truth(name):
    landscape = Landscape(name)
    space = landscape.space(landscape.job("dirichlet"))
    recipe = space.recipe(
        np.full(space.shape, 1.6 / space.shape[0]).tolist(), np.full(space.shape, 0.2).tolist()
    )
    candidate = Candidate(0, space.encode(recipe.weights, recipe.drop_ratios), recipe, "x", 0)
    rng = np.random.default_rng(0)
    seen = [landscape.observe(candidate, rng, items=64, previewed=64) for _ in range(400)]
    values = np.array([[o.scores[name].value for name in OBJECTIVES] for o in seen])
    truth = landscape.truth(recipe)
    spread = np.sqrt(truth * (1 - truth) / 64)
    assert (np.abs(values.mean(axis=0) - truth) < 5 * spread / 20).all()
    assert values.std(axis=0) == pytest.approx(spread, rel=0.15)
    # 64 items of three objectives; with companions these are read as well.
    assert search_items(seen[0]) == pytest.approx(192 * (1.15 if SHAPES[name].companions else 1))


def test_dropping_costs_and_the_base_solves_little():
    landscape = Landscape("N8")
    space = landscape.space(landscape.job("dirichlet"))
    weights = np.full(space.shape, 0.2).tolist()
    kept = landscape.truth(space.recipe(weights))
    dropped = landscape.truth(space.recipe(weights, np.full(space.shape, 0.95).tolist()))
    assert (dropped < kept).all()
    assert landscape.truth(space.recipe(np.zeros(space.shape).tolist())) == pytest.approx(
        [0.044, 0.044, 0.044], abs=0.03
    )


@pytest.mark.slow
def test_a_run_is_reproducible_and_counts_its_items():
    landscape = Landscape("N4")
    runs = [run_search(landscape, "dirichlet", 3, 25) for _ in range(2)]
    assert runs[0].trace == runs[1].trace
    assert [point.evaluations for point in runs[0].trace] == [12, 16, 20, 25]
    assert runs[0].trace[-1].items == 25 * 3 * 256


@pytest.mark.slow
def test_every_strategy_is_told_the_same_baselines_first():
    landscape = Landscape("N8")
    # The base, 8 checkpoints and the soup; three scales follow.
    firsts = {
        name: run_search(landscape, name, 0, 13).trace[0] for name in ("dirichlet", "scalar_cma")
    }
    assert firsts["dirichlet"] == firsts["scalar_cma"]
    assert firsts["dirichlet"].evaluations == CHECKPOINTS[0] == 12


@pytest.mark.slow
def test_four_samples_cost_one_evaluation():
    run, whole = (run_search(Landscape("N4"), name, 0, 16) for name in ("sample", "surrogate_cma"))
    costs = [{point.evaluations: point.items for point in each.trace} for each in (run, whole)]
    assert costs[0] == {count: count * 3 * NUM_ITEMS for count in (4, 6, 8, 10, 12, 16)}
    assert costs[1].items() <= costs[0].items()
    assert run.trace[-1].hypervolume != whole.trace[-1].hypervolume


def test_screening_scores_one_of_a_group_and_pays_for_all_companions():
    run = run_search(Landscape("N8c"), "screen", 0, 2)
    # The base, and 16 samples: of 12 baselines, and of one of 6 in 4 groups. All have companions
    # of 8 items per objective.
    scored = 2 * 3 * 256
    assert run.trace[-1].items == pytest.approx(scored + 0.15 * 24 * (13 + 4 * 6))
    with pytest.raises(ValueError, match="N8 has no companions"):
        run_search(Landscape("N8"), "screen", 0, 2)


def test_companions_are_the_same_with_and_without_scores():
    landscape = Landscape("N8c")
    space = landscape.space(landscape.job("dirichlet"))
    recipe = space.recipe(np.full(space.shape, 0.2).tolist())
    candidate = Candidate(0, space.encode(recipe.weights), recipe, "x", 0)
    looked, scored = (
        landscape.observe(candidate, np.random.default_rng(7), items=items, previewed=8)
        for items in (0, 256)
    )
    assert looked.companions == scored.companions
    assert looked.scores == {}


def test_times_of_asks_have_their_units_in_their_keys():
    found = measure_asks(Landscape("N4"), (15, 20), asks=2)
    assert list(found.ask_ms_at) == list(found.tell_ms_at) == ["15", "20"]
    assert all(0 < value < 10_000 for value in found.ask_ms_at.values())
    assert list(found.expected_gain_ms_at) == ["15", "20"]
    assert found.promote_ms_at == {}
    assert list(measure_asks(Landscape("N8c"), (15,), asks=1).promote_ms_at) == ["15"]
    assert measure_asks(Landscape("N4"), (15,), "dirichlet", 1).expected_gain_ms_at == {}


@pytest.mark.slow
def test_one_command_prints_rows_and_goes_on_with_its_runs(tmp_path, monkeypatch, capsys):
    words = "search --json --part closed --landscapes N4 N8c --evaluations 14 --runs"
    strategies = ["--strategies", "dirichlet", "sobol", "screen", "--sampled-evaluations", "2"]
    monkeypatch.setattr("sys.argv", [*words.split(), str(tmp_path / "runs"), *strategies])
    main()
    first = json.loads(capsys.readouterr().out)
    assert first["complete"]
    # There is nothing to screen by on N4.
    assert [(row["landscape"], row["strategy"]) for row in first["rows"]] == [
        ("N4", "dirichlet"),
        ("N4", "sobol"),
        ("N8c", "dirichlet"),
        ("N8c", "sobol"),
        ("N8c", "screen"),
    ]
    keys = {"hv_mean", "hv_sd", "evaluations", "items", "items_to_match", "ask_ms"}
    assert all(keys <= set(row) for row in first["rows"])
    main()
    assert json.loads(capsys.readouterr().out) == first
    # What is there is shorter than what is asked for, and does not count.
    words = f"search --json --part closed --landscapes N4 --evaluations 15 --runs {tmp_path}/runs"
    monkeypatch.setattr("sys.argv", [*words.split(), "--strategies", "dirichlet"])
    main()
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert (row["strategy"], row["evaluations"], row["seeds"]) == ("dirichlet", 15, 1)
    assert len(read_runs(tmp_path / "runs")) == 6
