"""The studies of merges and fronts: methods by hand, choices on remembered scores, claims."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pandas import DataFrame

from configs.evaluation import SplitName, SplitSizes
from configs.recipe import MergeRecipe
from scripts.bench.merge_lab import MergeLab
from scripts.bench.zoo_job import METRICS, SKILLS
from scripts.bench.zoo_store import Remembered, ScoreStore, Signal
from scripts.papers.bench import Bench, Lab
from scripts.papers.front import (
    FRONT,
    INTERPOLATED,
    SCALED,
    SEARCHED,
    interpolation_gain,
    scaled_grid,
    simplex_grid,
    told_of,
)
from scripts.papers.merges import (
    AVERAGE,
    BEST,
    DELLA,
    FAST_GRID,
    GREEDY,
    MERGES,
    OWN,
    SLERP,
    TASK,
    TIES,
    WITH_DARE,
    Setting,
    choose,
    chosen_settings,
    greedy_soup,
    sets_of,
)
from scripts.papers.page import judge_all, page
from scripts.papers.study import Record
from tests.unit.workers.merge_cases import merge, terms
from workers.mask import keep_mask

SPLITS = SplitSizes(search=4, select=4, report=4)
BASE = torch.tensor([1.0, 1.0, 1.0, 1.0])
# Task vectors (4, 3, 0, -1) and (2, -1, 1, -2).
FIRST = torch.tensor([5.0, 4.0, 1.0, 0.0])
SECOND = torch.tensor([3.0, 0.0, 2.0, -1.0])


def merged(method: str, weight: float, drop: float = 0.0, **options: float) -> list[float]:
    chosen = terms([weight, weight], [drop, drop])
    found: list[float] = merge(
        BASE, [FIRST, SECOND], chosen, method=method, options=options or None
    ).tolist()
    return found


def test_average_and_task_arithmetic_by_hand() -> None:
    assert merged("dare_linear", 0.5) == [4.0, 2.0, 1.5, -0.5]
    assert merge(None, [FIRST, SECOND], terms([0.5, 0.5]), method="linear").tolist() == [
        4.0,
        2.0,
        1.5,
        -0.5,
    ]
    assert merged("task_arithmetic", 0.25) == [2.5, 1.5, 1.25, 0.25]


def test_ties_by_hand() -> None:
    # Half is trimmed: (4, 3, 0, 0) and (2, 0, 0, -2). No signs differ; means of what is there.
    assert merged("ties", 1.0, 0.5, normalize=1.0, scale=1.0) == [4.0, 4.0, 1.0, -1.0]
    # Nothing is trimmed: the sums (6, 2, 1, -3) elect +, +, +, -; -1 in the second has no say.
    assert merged("ties", 1.0, normalize=1.0, scale=2.0) == [7.0, 7.0, 3.0, -2.0]


# What the masks of both checkpoints keep.
KEPT_AT_HALF = [[False, False, False, True], [False, True, True, False]]
KEPT_AT_QUARTER = [[False, True, False, True], [False, True, True, True]]


@pytest.mark.parametrize(("drop", "kept"), [(0.5, KEPT_AT_HALF), (0.25, KEPT_AT_QUARTER)])
def test_masks_are_those_of_the_cases_by_hand(drop: float, kept: list[list[bool]]) -> None:
    for index, wanted in enumerate(kept):
        found = keep_mask(
            4, mask_seed=0, digest=f"digest-{index}", tensor_name="layer.weight", drop_ratio=drop
        )
        assert found.tolist() == wanted


def test_dare_by_hand() -> None:
    # At p = 1/2 what is kept is doubled: (-, -, -, -2) and (-, -2, 2, -), of each a half.
    assert merged("dare_linear", 0.5, 0.5) == [1.0, 0.0, 2.0, 0.0]
    # At p = 1/4, 4/3 times 3/4 is 1: (-, 3, -, -1) and (-, -1, 1, -2).
    assert merged("dare_linear", 0.75, 0.25) == [1.0, 3.0, 2.0, -2.0]


def test_dare_ties_by_hand() -> None:
    # The sums are (0, 2, 1, -3): -1 in the second has no say. Sums of the others: 0, 3, 1, -3.
    assert merged("dare_ties", 0.75, 0.25, normalize=0.0) == [1.0, 4.0, 2.0, -2.0]
    # Over the weights that agree: 3 / 0.75, 1 / 0.75, -3 / 1.5.
    assert merged("dare_ties", 0.75, 0.25, normalize=1.0) == pytest.approx(
        [1.0, 5.0, 2.3333333, -1.0], abs=1e-6
    )


def test_della_drops_small_magnitudes_more_often() -> None:
    # p = 1/2 -+ 0.1: of 4 elements in the order of their magnitudes, 0.6 to 0.4.
    deltas = torch.tensor([0.1, 1.0, 2.0, 4.0])
    kept = torch.zeros(4)
    masks = 400
    for seed in range(masks):
        found = merge(
            torch.zeros(4), [deltas], terms([1.0], [0.5]), method="della_linear", mask_seed=seed
        )
        kept += found != 0.0
        # Each is rescaled by its own 1/(1-p).
        for j, p in enumerate((0.6, 0.6 - 0.2 / 3, 0.4 + 0.2 / 3, 0.4)):
            assert float(found[j]) in (0.0, pytest.approx(float(deltas[j]) / (1 - p), rel=1e-5))
    shares = (kept / masks).tolist()
    assert shares[0] == pytest.approx(0.4, abs=0.08)
    assert shares[3] == pytest.approx(0.6, abs=0.08)


def test_slerp_half_way_between_right_angles_by_hand() -> None:
    chosen = terms([0.5, 0.5])
    found = merge(
        None, [torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])], chosen, method="slerp"
    )
    # sin(45) / sin(90) of each: as long as they are.
    assert found.tolist() == pytest.approx([math.sqrt(2.0), math.sqrt(2.0)])


def test_sets_are_pairs_and_all() -> None:
    assert sets_of("abc", fast=False) == [("a", "b"), ("a", "c"), ("b", "c"), ("a", "b", "c")]
    assert sets_of("abc", fast=True) == [("a", "b", "c")]


def test_grid_of_the_simplex_by_hand() -> None:
    assert simplex_grid(3, 2) == [
        (1.0, 0.0, 0.0),
        (0.5, 0.5, 0.0),
        (0.5, 0.0, 0.5),
        (0.0, 1.0, 0.0),
        (0.0, 0.5, 0.5),
        (0.0, 0.0, 1.0),
    ]
    assert scaled_grid(2, 1)[:3] == [(1.0, 0.0), (0.0, 1.0), (0.5, 0.5)]
    assert scaled_grid(2, 1)[-1] == (1.0, 1.0)


def test_both_grids_have_as_many_points() -> None:
    # (12 choose 2), and three times (7 choose 2) and the middle, which no fifths reach.
    assert len(simplex_grid(3, 10)) == len(scaled_grid(3, 5)) == 66


def test_gain_of_interpolation_by_hand() -> None:
    weights = np.array([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.25, 0.75]])
    scores = np.array([[0.8, 0.0], [0.5, 0.6], [0.4, 0.4], [0.5, 0.1]])
    # Interpolated scores are (0.6, 0.2) and (0.5, 0.3): gains (-0.1, 0.4) and (0, -0.2).
    assert interpolation_gain(weights, scores) == pytest.approx((-0.1 + 0.4 + 0.0 - 0.2) / 4)
    with pytest.raises(ValueError, match="every vertex"):
        interpolation_gain(weights[1:], scores[1:])


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ScoreStore]:
    with ScoreStore(tmp_path / "scores.sqlite") as store:
        yield store


@pytest.fixture
def lab(zoo: Path, store: ScoreStore, tmp_path: Path) -> Iterator[Lab]:
    bench = Bench(root=tmp_path, zoo=zoo, width=128, seed=0, fast=True, store=store, splits=SPLITS)
    with bench.lab(SKILLS) as lab:
        yield lab


def remember(
    store: ScoreStore,
    lab: MergeLab,
    recipe: MergeRecipe,
    score: float,
    split: SplitName = "search",
) -> None:
    """Have all items of a split scored alike."""
    signals = {
        Signal(lab.manifest.task_hashes[task], METRICS[task.removeprefix("zoo_")]): {
            item: Remembered(score, 0.0) for item in items
        }
        for task, items in lab.manifest.items(split).items()
    }
    store.remember(recipe, signals, "digest")


def average(lab: Lab, names: Sequence[str]) -> MergeRecipe:
    return lab.recipe(dict.fromkeys(names, 1.0 / len(names)), method="dare_linear")


def remember_soups(store: ScoreStore, lab: Lab, scores: Mapping[tuple[str, ...], float]) -> None:
    for names, score in scores.items():
        remember(store, lab, average(lab, names), score)


SOUPS = {
    ("instruct",): 0.3,
    ("code",): 0.5,
    ("math",): 0.4,
    ("code", "math"): 0.25,
    ("instruct", "code"): 0.6,
    ("instruct", "math"): 0.9,
    ("instruct", "code", "math"): 0.95,
}


def test_greedy_soup_keeps_what_does_not_hurt(lab: Lab, store: ScoreStore) -> None:
    remember_soups(store, lab, SOUPS)
    # code first; math lowers it, instruct does not. What is best of all is not on the way.
    assert greedy_soup(lab, SKILLS) == average(lab, ("instruct", "code"))
    assert lab.scored_items == 0, "all was remembered"


def test_settings_are_chosen_on_search_items_alone(lab: Lab, store: ScoreStore) -> None:
    remember_soups(store, lab, SOUPS)

    def plain(scale: float, drop: float = 0.0) -> MergeRecipe:
        return lab.recipe(dict.fromkeys(SKILLS, scale), method="dare_linear", drop_ratio=drop)

    for name in SKILLS:
        remember(store, lab, average(lab, [name]), 1.0 - SOUPS[name,], "report")
    for scale, score in zip(FAST_GRID.scales, (0.2, 0.7, 0.7), strict=True):
        remember(store, lab, plain(scale), score)
        remember(store, lab, plain(scale), 1.0 - score, "report")
    drop = FAST_GRID.drops[0]
    remember(store, lab, plain(1 / 3, drop), 0.1)
    remember(store, lab, plain(FAST_GRID.scales[1], drop), 0.1)
    found = {}
    for method, setting in chosen_settings(lab, SKILLS, FAST_GRID):
        found[method] = setting
        if method == TASK + WITH_DARE:
            break  # what follows was not remembered
    assert found[BEST].recipe == average(lab, ["code"])
    assert found[GREEDY].recipe == average(lab, ("instruct", "code"))
    assert found[TASK] == Setting(plain(FAST_GRID.scales[1]), FAST_GRID.scales[1]), (
        "first of equals"
    )
    assert found[TASK + WITH_DARE].scale == found[TASK].scale
    assert lab.scored_items == 0


def test_base_of_a_grid_is_the_reference(lab: Lab, store: ScoreStore) -> None:
    weights = [(1.0, 0.0, 0.0), (0.5, 0.25, 0.25)]
    for row, score in zip([(0.0, 0.0, 0.0), *weights], (0.1, 0.2, 0.3), strict=True):
        recipe = lab.recipe(dict(zip(SKILLS, row, strict=True)), method=lab.space.method)
        remember(store, lab, recipe, score)
    told = told_of(lab, weights)
    assert [seen.candidate.origin for seen in told] == ["baseline:base"] + ["strategy:grid"] * 2
    assert [seen.scores["math"].value for seen in told if seen.scores] == pytest.approx(
        [0.1, 0.2, 0.3]
    )
    assert told[2].candidate.recipe.weights == ((0.5,), (0.25,), (0.25,))


@pytest.mark.slow
def test_pair_is_merged_by_slerp_too(zoo: Path, store: ScoreStore, tmp_path: Path) -> None:
    bench = Bench(root=tmp_path, zoo=zoo, width=128, seed=0, fast=True, store=store, splits=SPLITS)
    names = ("code", "math")
    with bench.lab(names, skills=names) as lab:
        found = dict(chosen_settings(lab, names, FAST_GRID))
        scores = lab.mean_scores(found[SLERP].recipe)
    assert found[SLERP].recipe.method == "slerp"
    assert found[SLERP].recipe.weights == ((0.5,), (0.5,))
    assert set(scores) == {"zoo_code", "zoo_math"}


@pytest.mark.slow
@pytest.mark.parametrize("study", [MERGES, FRONT], ids=lambda study: study.name)
def test_study_measures_a_whole_zoo(study, zoo: Path, store: ScoreStore, tmp_path: Path) -> None:
    bench = Bench(root=tmp_path, zoo=zoo, width=128, seed=0, fast=True, store=store, splits=SPLITS)
    records = DataFrame([{"width": 128, "seed": 0, **record} for record in study.measure(bench)])
    if study is MERGES:
        methods = set(records["method"])
        assert methods == {BEST, OWN, AVERAGE, AVERAGE + WITH_DARE, GREEDY, TASK,
                           TASK + WITH_DARE, TIES, TIES + WITH_DARE, DELLA}  # fmt: skip
        assert set(records["skill"]) == {*SKILLS, "mean"}
    else:
        evaluations = records[records["number"] == "evaluations"].set_index("front")["count"]
        assert evaluations[INTERPOLATED] == evaluations[SEARCHED] == 29
        assert evaluations[SCALED] == 31
        volumes = records[records["number"] == "hypervolume"]["value"]
        assert ((volumes >= 0) & (volumes <= 1)).all()


def of_method(method: str, score: float, merged_names: str = "code + math") -> Iterator[Record]:
    fixed: Record = {
        "width": 128,
        "seed": 0,
        "merged": merged_names,
        "checkpoints": merged_names.count("+") + 1,
        "method": method,
        "scale": 1.0,
        "p": 0.5,
    }
    yield {**fixed, "skill": "code", "score": score - 0.1}
    yield {**fixed, "skill": "math", "score": score + 0.1}
    yield {**fixed, "skill": "mean", "score": score, "mean": score}


def test_claims_on_merges_are_differences_of_means() -> None:
    scores = {
        BEST: 0.5, OWN: 0.9, AVERAGE: 0.6, AVERAGE + WITH_DARE: 0.62, GREEDY: 0.495,
        TASK: 0.7, TASK + WITH_DARE: 0.65, TIES: 0.72, TIES + WITH_DARE: 0.73, DELLA: 0.74,
        SLERP: 0.61,
    }  # fmt: skip
    records = DataFrame([r for method, score in scores.items() for r in of_method(method, score)])
    found = {key: one.mean for key, one in judge_all((MERGES,), {"merges": records}).items()}
    assert found == pytest.approx(
        {
            "dare_helps_average": 0.02,
            "dare_helps_task_arithmetic": -0.05,
            "dare_helps_ties": 0.01,
            "ties_beats_average": 0.12,
            "ties_beats_task_arithmetic": 0.02,
            "della_beats_dare": 0.01,
            "della_beats_ties": 0.02,
            "della_beats_task_arithmetic": 0.04,
            "greedy_soup_keeps_best": -0.005,
        }
    )
    text = page((MERGES,), {"merges": records}, command="", machine="", figures={})
    assert (
        "code + math: 8 of 9 merges are better than the best checkpoint (0.500); best, by these "
        "items, is DELLA with 0.740, and each checkpoint on its own skill has 0.900." in text
    )
    assert "Pairs: SLERP half way has 0.610, the average 0.600." in text


def test_claims_on_fronts_are_shares_of_the_searched_one() -> None:
    values = {INTERPOLATED: 0.09, SCALED: 0.11, SEARCHED: 0.1}
    rows: list[Record] = [
        {"front": front, "number": "hypervolume", "value": value} for front, value in values.items()
    ]
    rows.append({"front": INTERPOLATED, "number": "gain", "gain": 0.03})
    rows += [{"front": front, "number": "evaluations", "count": 29} for front in values]
    records = DataFrame([{"width": 128, "seed": 0, **row} for row in rows])
    found = {key: one.mean for key, one in judge_all((FRONT,), {"soups_front": records}).items()}
    assert found == pytest.approx(
        {"specialists_are_connected": 0.03, "interpolations_near_pareto": -0.1}
    )
    text = page((FRONT,), {"soups_front": records}, command="", machine="", figures={})
    assert "The front of interpolations has 0.90 times the hypervolume" in text


def test_choice_is_the_best_by_score() -> None:
    recipes = [Setting(recipe) for recipe in ("a", "b", "c")]  # type: ignore[arg-type]  # not merged
    assert choose(recipes, {"a": 0.1, "b": 0.3, "c": 0.3}.__getitem__).recipe == "b"  # type: ignore[comparison-overlap, arg-type]
