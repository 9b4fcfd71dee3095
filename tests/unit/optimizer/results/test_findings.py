"""Jobs with little to find: they end properly, on real merges, and say what it means."""

import io
import re

import pytest
from rich.console import Console

from optimizer.archive.archive import Archive
from optimizer.archive.recorded_space import recorded_space
from optimizer.driver import run_search
from optimizer.preflight.preflight import prepare
from optimizer.report.report import render, report_of, report_record
from optimizer.results.findings import findings_after
from tests.unit.optimizer.synthetic_archive import Merge, build


def findings(tmp_path, *merges: Merge, **changes) -> str:
    with Archive.open(build(tmp_path / "a.sqlite", merges, **changes)) as archive:
        return "\n".join(findings_after(archive, recorded_space(archive)))


BASE = Merge((0, 0, 0), (0.0, 0.5, 0.1), origin="baseline:base")


def test_objective_that_is_always_zero_is_named_with_what_to_do(tmp_path):
    text = findings(tmp_path, BASE, Merge((1, 0, 0), (0.0, 0.6, 0.3)))
    assert "Objective instruct was 0 for all 2 merges: no merge solved an item" in text
    assert "companion: true" in text
    assert "code" not in text


def test_objective_that_is_constant_is_named(tmp_path):
    text = findings(tmp_path, BASE, Merge((1, 0, 0), (0.1, 0.5, 0.3)))
    assert "Objective code was 0.500 for all 2 merges: it cannot tell merges apart" in text
    assert "earliest of equals" not in text


def test_nothing_solved_at_all_is_said_once_more(tmp_path):
    nothing = (0.0, 0.0, 0.0)
    text = findings(tmp_path, Merge((0, 0, 0), nothing), Merge((1, 0, 0), nothing))
    assert "No merge solved any item" in text


def test_one_candidate_says_nothing_of_objectives(tmp_path):
    assert findings(tmp_path, Merge((1, 0, 0), (0.0, 0.5, 0.1))) == ""


def test_a_search_of_baselines_only_is_none(tmp_path):
    text = findings(tmp_path, BASE, Merge((1, 0, 0), (0.5,) * 3, origin="baseline:checkpoint a"))
    assert "Only baselines were scored (2 of budget.evaluations = 96)" in text


def test_check_says_that_the_budget_is_smaller_than_the_baselines(tiny_job):
    prepared = prepare(tiny_job(budget={"evaluations": 10}))
    assert any("nothing may be left to search" in warning for warning in prepared.warnings)
    prepared = prepare(tiny_job(budget={"evaluations": 21}))
    assert any(
        "leaves 3 proposals beside baselines, which take up to 18" in text
        for text in prepared.warnings
    )
    prepared = prepare(tiny_job(budget={"evaluations": 40}))
    assert prepared.warnings == ()


@pytest.fixture
def search(tiny_pool):
    """Run a job to its end in this process; returns its report and the report's text."""

    def search(job):
        from workers.job import JobRunner, WorkerSpec
        from workers.pool import LocalPool

        prepared = prepare(job)
        spec = WorkerSpec(job=job, sources=prepared.sources, manifest=prepared.manifest)
        archive = Archive.create(
            _path(job),
            job=job,
            job_path=None,
            sources=prepared.sources,
            manifest=prepared.manifest,
        )
        with archive, LocalPool(JobRunner(spec, "test")) as pool:
            run_search(archive, pool, prepared.space)
            report = report_of(archive)
        console = Console(width=200, file=io.StringIO())
        console.print(render(report))
        report_record(report)
        return prepared, report, console.file.getvalue()

    return search


def _path(job):
    from pathlib import Path

    return Path(job.archive)


def models_of(pool, **checkpoints) -> dict[str, object]:
    named = {name: str(pool.checkpoints[source]) for name, source in checkpoints.items()}
    return {"base": str(pool.base), "checkpoints": named}


SMALL = {"validation": {"candidates": 2, "leave_one_out": True}}
# With companions, candidates are screened: what a job gets that asks for nothing else.
SCREENED = {name: [{"task": f"tiny_{name}", "companion": True}] for name in ("text", "choice")}
both_ways = pytest.mark.parametrize("objectives", [{}, {"objectives": SCREENED}])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dare_linear", "task_arithmetic"])
@both_ways
def test_one_checkpoint_ends_and_says_what_can_be_found(
    search, tiny_job, tiny_pool, method, objectives
):
    models = models_of(tiny_pool, math="math")
    job = tiny_job(
        models=models,
        budget={"evaluations": 14},
        merge={"method": method},
        **SMALL,
        **objectives,
    )
    prepared, report, text = search(job)
    assert any("There is one checkpoint, math" in warning for warning in prepared.warnings)
    assert "There is one checkpoint, math: a search can only find how much" in text
    assert report.num_outcomes == 14
    assert report.verdict is not None


@pytest.mark.slow
def test_one_checkpoint_without_a_base_is_every_merge(search, tiny_job, tiny_pool):
    models = {"checkpoints": {"math": str(tiny_pool.checkpoints["math"])}}
    merge = {"method": "linear", "parametrization": "simplex"}
    job = tiny_job(models=models, budget={"evaluations": 5}, merge=merge, **SMALL)
    _, report, text = search(job)
    assert "no base: every merge is that checkpoint, and there is nothing to search" in text
    assert len(report.front) == 1
    assert "The search did not win" in text


@pytest.mark.slow
@both_ways
def test_two_identical_checkpoints_end_and_are_named(search, tiny_job, tiny_pool, objectives):
    job = tiny_job(
        models=models_of(tiny_pool, a="code", b="code"),
        budget={"evaluations": 20},
        **SMALL,
        **objectives,
    )
    _, report, text = search(job)
    assert "`a` and `b` are the same weights" in text
    assert report.verdict is not None


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["cma", "dirichlet"])
def test_objective_that_is_always_zero_ends_the_search_properly(search, tiny_job, strategy):
    # Random weights never say the answer.
    job = tiny_job(
        objectives={"text": "tiny_text"},
        budget={"evaluations": 24},
        search={"strategy": strategy},
        **SMALL,
    )
    _, report, text = search(job)
    assert re.search(r"Objective text was 0 for all 2\d merges", text)
    assert "No merge solved any item" in text
    assert not report.verdict.won


@pytest.mark.slow
@pytest.mark.parametrize("searched", [1, 3])
def test_search_by_companions_ends_where_no_score_says_anything(search, tiny_job, searched):
    # Random weights never say the answer, and there is no time to learn from anything.
    text = SCREENED["text"]
    prepared, report, printed = search(
        tiny_job(objectives={"text": text}, budget={"evaluations": 18 + searched}, **SMALL)
    )
    assert any(f"leaves {searched} proposals" in warning for warning in prepared.warnings)
    assert report.num_outcomes == 18 + searched
    assert "Objective text was 0 for all" in printed
    assert "No merge solved any item" in printed
    looked_at = report.savings.stopped["screened"]
    assert looked_at % 5 == 0
    assert looked_at >= 5 * searched
    assert f"{looked_at} were looked at by" in printed
    assert not report.verdict.won


@pytest.mark.slow
def test_budget_smaller_than_the_baselines_ends_and_says_that_nothing_was_searched(
    search, tiny_job
):
    _, report, text = search(tiny_job(budget={"evaluations": 5}, **SMALL))
    assert "Only baselines were scored (5 of budget.evaluations = 5)" in text
    assert report.num_outcomes == 5
