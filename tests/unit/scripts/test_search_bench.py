import json

import numpy as np
import pytest

from optimizer.candidate import Candidate
from scripts.bench.landscapes import OBJECTIVES, SHAPES, Landscape, search_items
from scripts.bench.search import run_search
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


def test_cost_to_reach_is_that_of_the_first_point_when_it_is_enough():
    trace = make_run("a", 0, [0.3, 0.1]).trace
    assert cost_to_reach(trace, 0.2, "hypervolume", "items") == 100.0
    assert cost_to_reach(trace, 0.4, "hypervolume", "items") is None


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
    seen = [landscape.observe(candidate, rng, items=64) for _ in range(400)]
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


def test_a_run_is_reproducible_and_counts_its_items():
    landscape = Landscape("N4")
    runs = [run_search(landscape, "dirichlet", 3, 25) for _ in range(2)]
    assert runs[0].trace == runs[1].trace
    assert [point.evaluations for point in runs[0].trace] == [12, 25]
    assert runs[0].trace[-1].items == 25 * 3 * 256
