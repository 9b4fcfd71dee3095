"""The rivals' schedules, by hand and on landscapes; the study on the tiny pool."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pandas import DataFrame

from configs.evaluation import SplitSizes
from configs.schema import JobConfig
from optimizer.space import SearchSpace
from optimizer.strategies.scalar_cma import ScalarCmaStrategy
from scripts.bench.zoo_store import ScoreStore
from scripts.papers import rivals
from scripts.papers.bench import Bench
from scripts.papers.page import judge_all
from scripts.papers.rivals import RIVALS, measure
from scripts.papers.rivals_schedules import (
    Found,
    Tried,
    front_of,
    genome_recipe,
    l1_rescaling,
    mergekit_evolve,
    mergekit_job,
    mergenetic,
    sample_items,
)
from workers.sources import ResolvedSource, Sources

NAMES = ("instruct", "code", "math")


@pytest.fixture
def bench(tmp_path: Path):
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        yield Bench(tmp_path, tmp_path, 128, 0, True, store)


@pytest.fixture
def job(bench: Bench) -> JobConfig:
    return mergekit_job(bench, NAMES, normalize=True)


@pytest.fixture
def space(job: JobConfig) -> SearchSpace:
    def resolved(name: str) -> ResolvedSource:
        return ResolvedSource(name, Path(name), digest=name * 4)

    return SearchSpace(job, Sources(resolved("base"), tuple(map(resolved, NAMES))))


def landscape(recipe) -> np.ndarray:
    """Each skill wants its own checkpoint at 0.7, and nothing dropped."""
    weights, drops = np.array(recipe.weights)[:, 0], np.array(recipe.drop_ratios)[:, 0]
    return 1.0 - (weights - 0.7) ** 2 - 0.1 * drops


def test_mergenetics_genome_holds_weights_then_densities(space):
    recipe = genome_recipe(space, np.array([0.2, 0.4, 0.6, 1.0, 0.5, 0.0]))
    assert recipe.method == "dare_ties"
    assert dict(recipe.options)["normalize"] == 0.0
    assert np.array(recipe.weights)[:, 0] == pytest.approx([0.2, 0.4, 0.6])
    # A density of 0 would leave nothing.
    assert np.array(recipe.drop_ratios)[:, 0] == pytest.approx([0.0, 0.5, 0.99])


def test_mergekit_rescales_to_the_l1_norm():
    delta, kept = np.array([1.0, -2.0, 3.0, -4.0]), np.array([1, 0, 1, 0])
    # 10 / 4 of what is kept, where DARE has 1 / (1 - 0.5).
    assert l1_rescaling(delta, kept, 0.5) == pytest.approx(1.25)
    assert l1_rescaling(delta, np.ones(4), 0.0) == 1.0


def test_mergekits_genotype_by_hand(job, space, monkeypatch: pytest.MonkeyPatch):
    draws = np.array([-4.0, 1.0, 0.5, -1.5, 1.2, -6.0])
    drawn = SimpleNamespace(standard_normal=lambda size: draws[:size])
    monkeypatch.setattr("optimizer.strategies.scalar_cma.ask_generator", lambda *_: drawn)
    recipe = ScalarCmaStrategy(job, space).ask(0, []).recipe
    assert recipe.method == "dare_ties"
    assert dict(recipe.options)["normalize"] == 1.0
    # 1/3 plus a sixth of the draw: -1/3, 1/2, 5/12, of which the absolute value counts.
    assert np.array(recipe.weights)[:, 0] == pytest.approx([0.33333, 0.5, 0.41667], abs=1e-5)
    # Densities, 1 plus a sixth of the draw: 3/4, 1.2, which is 1, and 0, which is 0.01.
    assert np.array(recipe.drop_ratios)[:, 0] == pytest.approx([0.25, 0.0, 0.99], abs=1e-5)


def test_mergekit_evolve_starts_at_equal_weights_and_hands_over_the_best_it_saw(job, space):
    found = mergekit_evolve(job, space, landscape, evaluations=60)
    assert len(found.tried) == 60
    means = [one.scores.mean() for one in found.tried]
    assert found.chosen.scores.mean() == max(means)
    assert np.mean(means[-9:]) > np.mean(means[:9]) + 0.02
    # A population of 4 + 3 ln 6 = 9 before anything is learned: |N(1/3, 1/6)|.
    first = np.array([one.recipe.weights for one in found.tried[:9]])
    assert first.mean() == pytest.approx(1 / 3, abs=0.12)
    assert all(dict(one.recipe.options)["normalize"] == 1.0 for one in found.tried)
    again = mergekit_evolve(job, space, landscape, evaluations=12)
    assert [one.recipe for one in again.tried] == [one.recipe for one in found.tried[:12]]


def test_mergenetics_nsga2_hands_over_what_none_dominates(space):
    found = mergenetic(space, landscape, algorithm="NSGA-II", generations=6, seed=3)
    assert len(found.tried) == 60
    weights = np.array([one.recipe.weights for one in found.tried])
    assert 0.0 <= weights.min() < 0.1
    assert 0.9 < weights.max() <= 1.0
    # Its elite survives: nothing that was tried is better than all of what it hands over.
    best = max(one.scores.mean() for one in found.tried)
    assert found.chosen.scores.mean() == pytest.approx(best, abs=0.05)
    points = np.array([one.scores for one in found.handed])
    assert not any((a >= b).all() and (a > b).any() for a in points for b in points)
    again = mergenetic(space, landscape, algorithm="NSGA-II", generations=6, seed=3)
    assert [one.recipe for one in again.tried] == [one.recipe for one in found.tried]
    other = mergenetic(space, landscape, algorithm="NSGA-II", generations=1, seed=4)
    assert other.tried[0].recipe != found.tried[0].recipe


def test_mergenetics_ga_starts_with_tenths_and_keeps_its_best(space):
    found = mergenetic(space, landscape, algorithm="GA", generations=5, seed=0)
    first = np.array([one.recipe.weights for one in found.tried[:10]]) * 10
    assert first == pytest.approx(first.round())
    assert len(found.handed) == 1
    assert found.chosen.scores.mean() == max(one.scores.mean() for one in found.tried)


def test_items_are_drawn_once_for_a_search():
    items = {"a": tuple(map(str, range(50))), "b": tuple(map(str, range(50, 90)))}
    drawn = sample_items(items, 20, seed=1)
    assert all(len(set(ids)) == 20 and set(ids) <= set(items[task]) for task, ids in drawn.items())
    assert drawn == sample_items(items, 20, seed=1)
    assert drawn != sample_items(items, 20, seed=2)


def test_front_by_own_scores(space):
    recipes = [genome_recipe(space, np.full(6, value)) for value in (0.1, 0.2, 0.3, 0.4)]
    points = np.array([[0.9, 0.2], [0.2, 0.8], [0.1, 0.1], [0.5, 0.5]])
    tried = [Tried(recipe, point) for recipe, point in zip(recipes, points, strict=True)]
    # By what each adds above the corner: 0.25, then 0.08 and 0.06.
    front = front_of(Found(tried, tried[:1]), np.zeros(2))
    assert [one.recipe for one in front] == [recipes[3], recipes[0], recipes[1]]
    assert len(front_of(Found(tried, tried[:1]), np.zeros(2), 1)) == 1


def test_claims_compare_what_they_say():
    tools = {
        rivals.OURS: (0.80, 0.02), rivals.OURS_SEARCH: (0.79, 0.03),
        rivals.EVOLVE: (0.77, 0.05), rivals.EVOLVE_SUM: (0.75, 0.0),
        rivals.NSGA2: (0.74, 0.0), rivals.NSGA2_FEW: (0.73, 0.0), rivals.NSGA2_EQUAL: (0.70, 0.0),
        rivals.GA: (0.6, 0.0), rivals.BASELINE: (0.76, 0.0),
    }  # fmt: skip
    rows = [
        {"width": 128, "seed": 0, "tool": tool, "number": number, "value": value}
        for tool, (report, luck) in tools.items()
        for number, value in (("report", report), ("luck", luck), ("hypervolume", report / 10))
    ]
    judged = judge_all([RIVALS], {"rivals": DataFrame(rows)})
    assert {key: round(one.mean, 6) for key, one in judged.items()} == {
        "search_beats_mergekit_evolve": 0.03,
        "search_beats_mergekit_evolve_on_its_items": 0.02,
        "search_beats_mergenetic": 0.09,
        "front_beats_one_number": 0.003,
        "evolved_beats_fixed": 0.01,
        "own_best_is_lucky": 0.05,
        "few_items_suffice": -0.01,
        "normalize_helps": 0.02,
    }


@pytest.mark.slow  # searches, though of tiny models
def test_every_tool_is_measured(zoo: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(rivals, "FAST_EVALUATIONS", 20)
    splits = SplitSizes(search=20, select=2, report=4)
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        records = measure(Bench(tmp_path, zoo, 128, 0, True, store, splits))
    table = DataFrame(records)
    counts = table.pivot_table(index="tool", columns="cost", values="count")
    assert counts["evaluations"].to_dict() == {
        rivals.OURS: 20, rivals.EVOLVE: 20, rivals.NSGA2_FEW: 20,
    }  # fmt: skip
    assert counts["items"][rivals.EVOLVE] == counts["items"][rivals.NSGA2_FEW] == 20 * 60
    assert table["value"].dropna().between(-1.0, 1.0).all()
    assert 0.0 < table["gap"].max() < 0.2
    judged = judge_all(
        [RIVALS],
        {"rivals": DataFrame([{"width": 128, "seed": 0, **one} for one in records])},
        fast=True,
    )
    assert "search_beats_mergekit_evolve" in judged
    assert "normalize_helps" not in judged
