"""The benchmark on real merges: run whole on the tiny pool, resumed, and summed up."""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from configs.evaluation import SplitSizes
from evaluators.blocks import block_name
from optimizer.strategies.registry import STRATEGIES
from scripts.bench.search_emulated import EmulatedLab
from scripts.bench.search_zoo import best_volume, report, runs_of, show
from scripts.bench.zoo_pool import PausedError, RememberingPool, ZooLab
from scripts.bench.zoo_runs import Checkpoint, Trace, run_search_of
from scripts.bench.zoo_store import ScoreStore
from scripts.bench.zoo_tables import tables
from workers.outcome import EvaluationKey, EvaluationRequest

SPLITS = SplitSizes(search=4, select=4, report=4)
BUDGET = 20


@pytest.fixture
def lab(zoo: Path, tmp_path: Path) -> Iterator[ZooLab]:
    with (
        ScoreStore(tmp_path / "scores.sqlite") as store,
        ZooLab(zoo, "zoo3", store, splits=SPLITS) as lab,
    ):
        yield lab


def search(lab: ZooLab) -> Trace:
    return run_search_of(lab, "dirichlet", 0, budget=BUDGET, likelihood_cost=0.5)


@pytest.mark.slow
def test_a_search_goes_on_after_a_pause_and_scores_nothing_twice(zoo: Path, tmp_path: Path) -> None:
    scored, pauses, found = 0, 0, None
    while found is None:
        with (
            ScoreStore(tmp_path / "scores.sqlite") as store,
            ZooLab(zoo, "zoo3", store, splits=SPLITS, deadline=time.monotonic() + 3) as lab,
        ):
            try:
                found = search(lab)
            except PausedError:
                pauses += 1
            scored += lab.scored_items
    assert pauses, "it was to be paused at least once"
    with sqlite3.connect(tmp_path / "scores.sqlite") as file:
        assert file.execute("SELECT count(*) FROM scores").fetchone() == (scored,)
    costs = [(part.cost, part.evaluations, part.generated) for part in found.checkpoints]
    assert costs == [(15, 15, 15 * 12), (20, 20, 20 * 12)]
    with (
        ScoreStore(tmp_path / "scores.sqlite") as store,
        ZooLab(zoo, "zoo3", store, splits=SPLITS, deadline=time.monotonic()) as lab,
    ):
        again = search(lab)
    assert (again.checkpoints, again.chosen) == (found.checkpoints, found.chosen)
    assert Trace.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert STRATEGIES["dirichlet"].__name__ == "DirichletStrategy", "the factory is put back"


@pytest.mark.slow
def test_likelihoods_are_the_evaluators_own_and_counted_apart(lab: ZooLab) -> None:
    items = {"zoo_math": lab.manifest.items("search")["zoo_math"]}
    recipe = lab.space.recipe([[1.0], [0.0], [0.5]])
    found = lab.scores(recipe, items, "likelihood")
    assert (found["zoo_math"].values < 0).all(), "bits per byte, higher is better"
    assert (lab.paid["likelihood"].items, lab.paid["generate"].items) == (4, 0)
    assert lab.paid["likelihood"].seconds > 0
    before = lab.scored_items
    again = lab.scores(recipe, items, "likelihood")
    assert lab.scored_items == before
    assert np.array_equal(again["zoo_math"].values, found["zoo_math"].values)


@pytest.mark.slow
def test_pool_answers_screening_with_companions_only(lab: ZooLab) -> None:
    recipe = lab.space.recipe([[0.5], [0.5], [0.5]])
    items = {task: ids[:2] for task, ids in lab.manifest.items("search").items()}
    name = block_name(items)
    with RememberingPool(lab, companion=True) as pool:
        key = EvaluationKey(3, "search", name, "companions")
        pool.submit(EvaluationRequest(key, recipe, items))
        screened = pool.next_outcome()
        assert (lab.paid["generate"].items, lab.paid["likelihood"].items) == (0, 6)
        assert screened.key == key
        assert screened.task_scores == {}
        assert {task: part.item_ids for task, part in screened.companions.items()} == items
        pool.submit(EvaluationRequest(EvaluationKey(3, "search"), recipe, companions=items))
        scored = pool.next_outcome()
        assert (lab.paid["generate"].items, lab.paid["likelihood"].items) == (12, 12)
        assert lab.scored_items == 12 + 6, "the references were read once"
        assert scored.task_scores["zoo_math"].values.shape == (4,)
        assert scored.companions.keys() == screened.companions.keys()


def trace(rival: str, *points: list[float], seed: int = 0) -> Trace:
    parts = [
        Checkpoint(cost, int(cost), int(cost) * 10, 0, cost, ["r"], [point])
        for cost, point in zip((10.0, 20.0), points, strict=True)
    ]
    return Trace("zoo3", rival, seed, parts, [0.5, 0.5, 0.5], points[-1], 1.0, 2.0)


def test_rows_relate_volumes_to_all_points_and_costs_to_rivals(
    capsys: pytest.CaptureFixture[str],
) -> None:
    traces = [
        trace("cma", [1.0, 0.75, 0.75], [1.0, 1.0, 0.75]),
        trace("dirichlet", [0.6, 0.6, 0.6], [1.0, 0.75, 0.75]),
    ]
    assert best_volume(traces) == pytest.approx(0.5 * 0.5 * 0.25)
    assert [point.hypervolume for point in runs_of(traces)[0].trace] == pytest.approx([0.5, 1.0])
    cma, dirichlet = report(traces)
    assert cma["items_to_match"] == {"dirichlet": 100.0}
    assert dirichlet["items_to_match"] == {"cma": None}
    assert cma["chosen_mean"] == pytest.approx(2.75 / 3)
    assert cma["seed"] == [0]
    assert cma["best_mean_of_seed"] == pytest.approx([cma["best_mean"]])
    assert cma["items_to_own"] == 200.0
    runs = runs_of([trace("screen", [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]), *traces])
    (line,) = [line for line in tables(runs, 10) if line.startswith("| screen | dirichlet")]
    # 10 full evaluations where the rival ends, and first was, at 20.
    assert line.split("|")[3:6] == [" 10.0 ", " 2.0 ", " 2.0 "]
    show([cma])
    heads, cells, *needed = capsys.readouterr().out.splitlines()
    assert heads.split() == [
        "landscape", "strategy", "seeds", "evaluations", "items", "hv_mean", "hv_sd",
        "best_mean", "chosen_mean", "model_s", "ask_ms", "driver_s",
    ]  # fmt: skip
    assert cells.split()[3] == "20"
    assert cells.split()[-1] == "2.000"
    assert "itself 200.0" in needed[0]


@pytest.mark.slow
def test_emulator_is_searched_without_scoring_merges(lab: ZooLab, zoo: Path) -> None:
    search(lab)
    with EmulatedLab(zoo, "zoo3", lab._store, splits=SPLITS, epochs=3) as emulated:
        assert set(emulated.agreement) == {"instruct", "code", "math"}
        items = {split: emulated.manifest.items(split) for split in ("search", "report")}
        merge = emulated.space.recipe([[0.5]] * 3)
        for split, of in items.items():
            values = np.concatenate([part.values for part in emulated.scores(merge, of).values()])
            assert values.size == 12
            is_sure = np.isin(values, [0.0, 1.0])
            assert is_sure.all() if split == "search" else not is_sure.any()
        first = search(emulated)
        scored = emulated.scored_items
        again = search(emulated)
        assert [part.points for part in first.checkpoints] == [p.points for p in again.checkpoints]
        assert emulated.scored_items == scored
        base = emulated.space.recipe([[0.0]] * 3)
        assert emulated.scores(base, items["report"]).keys() == items["report"].keys()
        assert lab.scores(base, items["search"])["zoo_math"].values.tolist() == (
            emulated.scores(base, items["search"])["zoo_math"].values.tolist()
        )
