"""The driver with workers on paper: what is measured, and where it saturates."""

from types import SimpleNamespace

import numpy as np
import pytest

from optimizer.space import SearchSpace
from scripts.bench import scaling_paper
from scripts.bench.scaling_paper import EVALUATION_S, PaperPool, on_paper, saturation
from scripts.bench.scaling_search import SIGMA, make_job, make_spec
from workers.outcome import EvaluationKey, EvaluationRequest


@pytest.mark.slow
def test_rows_are_those_of_a_search_that_goes_on(monkeypatch):
    monkeypatch.setattr(scaling_paper, "_TOLD", 40)
    rows = on_paper([4, 48], most=24)
    assert [(row["workers"], row["strategy"]) for row in rows] == [
        (4, "dirichlet"), (4, "surrogate_cma"), (48, "dirichlet"), (48, "surrogate_cma"),
    ]  # fmt: skip
    for row in rows:
        assert row["outcomes"] == 24
        cost_s = row["driver_ms_per_outcome"] / 1000
        assert row["driver_share"] == pytest.approx(row["workers"] * cost_s / EVALUATION_S)
        assert 0.99 < row["utilisation"] <= 1.0
    cost = {row["strategy"]: row["driver_ms_per_outcome"] for row in rows}
    assert 0 < cost["dirichlet"] < cost["surrogate_cma"]


def test_clock_goes_on_with_the_driver_and_jumps_where_it_waits(monkeypatch, tmp_path):
    job = make_job(tmp_path / "archive.sqlite", "dirichlet", 2, 10)
    spec, driver = make_spec(job), SimpleNamespace(spent_s=0.0)
    monkeypatch.setattr(scaling_paper.time, "thread_time", lambda: driver.spent_s)
    monkeypatch.setattr(scaling_paper, "uniform", lambda what, recipe_id: 0.5)
    space = SearchSpace(job, spec.sources)
    recipe = space.decode(np.full(space.size, 0.5))
    pool = PaperPool(spec, 2, most=3)
    for number in range(2):
        driver.spent_s += 50.0
        pool.submit(EvaluationRequest(EvaluationKey(number, "search"), recipe))
    assert pool.num_free == 0
    pool.next_outcome()
    # Until everybody has an evaluation the clock stands; these are half over then.
    first_s = EVALUATION_S * np.exp(SIGMA**2 / 2) / 2
    assert pool.elapsed_s == pytest.approx(first_s)
    driver.spent_s += 5.0
    pool.submit(EvaluationRequest(EvaluationKey(2, "search"), recipe))
    assert (pool.driver_s, pool.idle_s) == (5.0, 5.0)
    # Was over while the driver was busy.
    pool.next_outcome()
    assert pool.elapsed_s == pytest.approx(first_s + 5.0)
    pool.next_outcome()
    assert pool.elapsed_s == pytest.approx(first_s + 5.0 + EVALUATION_S * np.exp(-(SIGMA**2) / 2))
    with pytest.raises(scaling_paper._EnoughError):
        pool.next_outcome()


def row(workers, share, strategy="dirichlet"):
    return {"workers": workers, "strategy": strategy, "driver_share": share}


def test_saturation_lies_between_rows_or_beyond_them():
    # A driver whose outcomes cost the same with any number of workers.
    assert saturation([row(64, 0.064), row(256, 0.256)]) == {"dirichlet": 1000}
    # One whose outcomes cost as much as there are workers.
    rows = [row(100, 0.25), row(400, 4.0), row(1600, 64.0)]
    assert saturation(rows) == {"dirichlet": 200}
    assert saturation([row(64, 0.1)]) == {}
