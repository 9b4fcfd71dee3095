import io
import json
import math
from collections import namedtuple

import pytest
from rich.console import Console

from configs.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    ConfigError,
    EvaluationError,
    SandboxUnavailableError,
)
from optimizer import dispatch_plan
from optimizer.preflight.checks import Checks
from optimizer.preflight.estimate import format_bytes, format_count, format_seconds
from optimizer.preflight.pool_view import cosine_table
from optimizer.preflight.preflight import announce_digests, prepare
from optimizer.preflight.preflight_view import prepared_record, render_prepared
from tests.unit.workers.sparse_checkpoint import llama_shapes, write_sparse
from workers.similarity import Similarity
from workers.sources import ResolvedSource, Sources

Memory = namedtuple("Memory", "total available")


@pytest.fixture
def job(tiny_job):
    return tiny_job(budget={"evaluations": 40}, workers={"count": 1})


@pytest.fixture
def prepared(job):
    return prepare(job)


def text_of(prepared) -> str:
    console = Console(width=140, file=io.StringIO())
    console.print(render_prepared(prepared))
    return console.file.getvalue()


def test_prepared_job_has_all_that_a_search_needs(prepared, tiny_pool):
    assert [source.name for source in prepared.sources.everything] == [
        "base", "instruct", "code", "math",
    ]  # fmt: skip
    assert prepared.space.size == 6
    assert prepared.space.recipe([[1], [0], [0]]).dtype == "float32"
    assert {split: len(prepared.manifest.items(split)["tiny_text"]) for split in (
        "search", "select", "report",
    )} == {"search": 8, "select": 4, "report": 4}  # fmt: skip
    assert [task.task for task in prepared.tasks] == ["tiny_text", "tiny_choice"]


def test_estimate_counts_bytes_requests_and_evaluations(prepared, tiny_pool):
    cost = prepared.estimate
    file_bytes = (tiny_pool.base / "model.safetensors").stat().st_size
    # The file is a header of some kB and the tensors.
    assert file_bytes - 10_000 < cost.model_bytes < file_bytes
    assert cost.moved_bytes == 5 * cost.model_bytes
    assert cost.num_genes == 6
    # base, 3 checkpoints, uniform soup, 8 scales, TIES, DARE-TIES, delta-guided fusion, 2 steps of
    # the greedy soup
    assert cost.num_baselines == 18
    assert cost.evaluations == {"search": 40, "select": 8, "report": 19}
    assert cost.requests == {"search": 16, "select": 8, "report": 8}
    assert cost.generations == {"search": 8, "select": 4, "report": 4}
    assert cost.new_tokens == {"search": 48, "select": 24, "report": 24}
    assert cost.total_generations == 8 * 40 + 4 * 8 + 4 * 19
    assert cost.total_moved_bytes == cost.moved_bytes * 67


def test_estimate_counts_samples_where_candidates_are_scored_on_samples(
    prepared, tiny_job, monkeypatch
):
    """Two of eight items each: of 40 evaluations 4 are whole, the others 4 merges each."""
    monkeypatch.setattr(dispatch_plan, "_LEAST_ITEMS", 2)
    check = prepare(tiny_job(budget={"evaluations": 40}))
    sampled = check.estimate
    assert sampled.evaluations == prepared.estimate.evaluations
    assert sampled.num_merges == 4 + 4 * 36 + 8 + 19
    assert sampled.num_baselines == 18
    assert sampled.baseline_evaluations == 4 + 4
    assert "40 search (of them up to 8 for 18 baselines)" in text_of(check)
    assert sampled.total_moved_bytes == sampled.moved_bytes * sampled.num_merges
    few = prepare(tiny_job(budget={"evaluations": 21}))
    assert not any("too few for a strategy" in text for text in few.warnings)


def test_estimate_counts_whoever_is_looked_at_for_one_sample(tiny_job, monkeypatch):
    monkeypatch.setattr(dispatch_plan, "_LEAST_ITEMS", 2)
    screening = {"enabled": True, "candidates": 3}
    objectives = {
        name: [spec.model_dump() | {"companion": True} for spec in objective.lm_eval_tasks]
        for name, objective in tiny_job().objectives.items()
    }
    changes = {"budget": {"evaluations": 40}, "objectives": objectives}
    cost = prepare(tiny_job(search={"screening": screening}, **changes)).estimate
    # Of 40 evaluations 4 are whole, 4 are 16 samples of baselines, the others 4 groups of 3 each.
    assert cost.num_merges == 4 + 4 * 4 + 4 * 3 * 32 + 8 + 19


def test_estimate_counts_the_variants_that_are_left_out_on_request(tiny_job):
    prepared = prepare(tiny_job(validation={"leave_one_out": True}))
    # Each of 3 checkpoints, all drops, each of 3 drops.
    assert prepared.estimate.num_variants == 7
    assert prepared.estimate.evaluations["report"] == 19 + 7
    assert "up to 26 report (7 to leave out one by one)" in text_of(prepared)


def test_check_prints_pool_suites_and_cost(prepared):
    text = text_of(prepared)
    assert "every check passed" in text
    for source in prepared.sources.everything:
        assert source.digest[:12] in text
    assert "exact_match,none" in text
    assert "moved per candidate" in text
    assert "40 search (of them up to 18 baselines), 8 select, up to 19 report" in text


def test_check_prints_names_that_look_like_markup(tiny_job, tiny_pool, tmp_path):
    import shutil

    odd = tmp_path / "[bold]models"
    shutil.copytree(tiny_pool.base, odd)
    job = tiny_job(models={**tiny_pool.models, "base": str(odd)})
    assert "[bold]models" in text_of(prepare(job)).replace("\n", "")


def test_check_as_json_is_json(prepared):
    record = json.loads(json.dumps(prepared_record(prepared), allow_nan=False))
    assert record["estimate"]["bytes_moved_per_candidate"] == prepared.estimate.moved_bytes
    assert record["deltas"]["math"]["median"] > 0
    assert record["job_digest"] == prepared.job.digest
    assert record["warnings"] == []


def test_same_checkpoint_twice_is_a_warning(tiny_job, tiny_pool):
    code = str(tiny_pool.checkpoints["code"])
    models = {"base": str(tiny_pool.base), "checkpoints": {"a": code, "b": code}}
    prepared = prepare(tiny_job(models=models))
    assert any("`a` and `b` are the same weights" in warning for warning in prepared.warnings)
    assert "same weights" in text_of(prepared)


def test_more_threads_than_cores_is_a_warning(tiny_job):
    prepared = prepare(tiny_job(workers={"count": 2, "threads": 640}))
    assert any("2 workers x 640 threads share" in warning for warning in prepared.warnings)


def test_workers_larger_than_the_memory_are_refused(tiny_job, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(10**9, 10**9))
    with pytest.raises(ConfigError, match=r"3 workers need 1\.5 GB of memory.*has 1 GB"):
        prepare(tiny_job(workers={"count": 3}))


def test_workers_that_barely_fit_are_a_warning(tiny_job, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(10**10, 10**9))
    prepared = prepare(tiny_job(workers={"count": 2}))
    assert any("2 workers need 1 GB of memory" in warning for warning in prepared.warnings)


def test_disk_too_small_for_an_export_is_a_warning(job, monkeypatch):
    usage = namedtuple("Usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6, 1000))
    assert any("an export takes" in warning for warning in prepare(job).warnings)


def test_code_is_not_allowed_to_run_where_nothing_contains_it(tiny_job, job, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    evaluation = {**job.evaluation.model_dump(), "allow_code_execution": True}
    with pytest.raises(SandboxUnavailableError, match="bwrap"):
        prepare(tiny_job(evaluation=evaluation))


def test_weak_sandbox_is_taken_only_when_the_job_says_so_and_is_a_warning(
    tiny_job, job, monkeypatch
):
    monkeypatch.setenv("PATH", "/nowhere")
    evaluation = {**job.evaluation.model_dump(), "allow_code_execution": True, "sandbox": "weak"}
    warnings = prepare(tiny_job(evaluation=evaluation)).warnings
    assert any("evaluation.sandbox is `weak`" in warning for warning in warnings)


def test_cluster_is_not_judged_by_this_machine(tiny_job, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(1000, 1000))
    workers = {"count": 99, "device": "cuda", "gpus": 1, "address": "auto"}
    assert prepare(tiny_job(workers=workers)).warnings == ()


def raised(*errors):
    checks = Checks()
    checks.errors.extend(errors)
    with pytest.raises(type(errors[0]).__mro__[0]) as caught:
        raise checks.error()
    return caught.value


def test_single_error_is_raised_as_it_is():
    error = CheckpointNotFoundError("gone")
    assert raised(error) is error


def test_a_penalty_that_the_strategy_does_not_know_is_found_before_anything_runs(tiny_job):
    wrong = tiny_job(search={"strategy": "sobol", "l1": 0.05}, merge={"method": "tie"})
    with pytest.raises(ConfigError, match="parts of the job") as caught:
        prepare(wrong)
    paths = {problem.path for problem in caught.value.problems}
    assert paths == {"search.l1", "merge.method"}
    search = {"strategy": "scalar_cma", "l1": 0.05}
    assert prepare(tiny_job(search=search)).space.size == 6


def test_several_errors_become_one_of_the_family_to_look_at_first():
    config = ConfigError("bad", [("seed", "must be a number")])
    checkpoint, suite = CheckpointNotFoundError("gone\nfor good"), EvaluationError("no suite")
    checks = Checks()
    checks.errors = [suite, checkpoint]
    with pytest.raises(CheckpointError) as caught:
        raise checks.error()
    assert type(caught.value) is CheckpointError
    assert caught.value.exit_code == 3
    assert "gone\n  for good" in caught.value.message
    assert "no suite" in caught.value.message
    checks.errors = [suite, checkpoint, config]
    with pytest.raises(ConfigError, match="3 parts of the job") as caught:
        raise checks.error()
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3_894_000, "3.89 MB"), (15.2e9, "15.2 GB")],
)
def test_bytes_are_written_with_three_digits(size, text):
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(38, "38"), (9999, "9999"), (46_100, "46.1 thousand"), (7.62e9, "7.62 billion")],
)
def test_counts_are_written_with_three_digits(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.000_31, "0.31 ms"), (42, "42 s"), (119, "119 s"), (1700, "28.3 min"), (9000, "2.5 h")],
)
def test_times_are_written_with_three_digits(seconds, text):
    assert format_seconds(seconds) == text


def test_check_prints_groups_cosines_and_tiers(tiny_job):
    merge = {"groups": {"attention": [{"kind": "attention"}], "others": ["rest"]}}
    prepared = prepare(tiny_job(merge=merge))
    text = text_of(prepared)
    lines = [line.split() for line in text.splitlines()]
    assert ["attention", "8", "8192", "28", "%"] in lines
    assert "Cosine of task vectors x 100" in text
    assert any(line[:2] == ["2", "code"] for line in lines)
    assert any(line[:2] == ["->", "host"] for line in lines)
    assert "from host memory, in about" in text
    record = json.loads(json.dumps(prepared_record(prepared), allow_nan=False))
    assert record["groups"][0] == {
        "name": "attention", "num_tensors": 8, "num_parameters": 8192,
        "share": 8192 / prepared.pool.num_parameters,
    }  # fmt: skip
    assert record["similarity"]["names"] == ["instruct", "code", "math"]
    assert record["similarity"]["cosines"][1][1] == pytest.approx(1)
    assert record["tiers"]["tier"] == "host"
    assert record["sources"][1]["tokenizer"] == "same"


def test_cosines_of_sixteen_checkpoints_fit_a_terminal():
    names = tuple(f"checkpoint-{number}" for number in range(1, 17))
    cosines = [[-0.129] * 16 for _ in range(16)]
    cosines[15][0], cosines[15][1], cosines[15][2] = 0.9999, 1.0, math.nan
    similarity = Similarity(names, tuple(map(tuple, cosines)), True, True, {})
    console = Console(width=80, file=io.StringIO())
    console.print(cosine_table(similarity))
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert len(lines) == 17
    assert lines[0] == [str(number) for number in range(1, 16)]
    assert lines[1] == ["1", "checkpoint-1"]
    # What is nearly parallel is not said to be parallel.
    assert lines[16] == ["16", "checkpoint-16", "99", "100", "-", *["-13"] * 12]


@pytest.fixture
def huge_job(tiny_job, tiny_pool, tmp_path):
    """Sixteen checkpoints of a hundred billion parameters, which only headers describe."""
    names = ["base", *(f"m{number}" for number in range(16))]
    for name in names:
        write_sparse(tmp_path / name, llama_shapes())
        tokenizer = (tiny_pool.base / "tokenizer.json").read_bytes()
        (tmp_path / name / "tokenizer.json").write_bytes(tokenizer)
    models = {
        "base": str(tmp_path / "base"),
        "checkpoints": {name: str(tmp_path / name) for name in names[1:]},
    }

    def make(**workers):
        groups = {"attention": [{"kind": "attention"}], "others": ["rest"]}
        return tiny_job(models=models, workers=workers, merge={"groups": groups})

    return make


def test_huge_pool_is_checked_by_its_headers(huge_job, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: Memory(10**12, 9 * 10**11))
    prepared = prepare(huge_job(), headers_only=True)
    pool, plan = prepared.pool, prepared.estimate.tiers
    assert pool.num_parameters == pytest.approx(100e9, rel=0.02)
    assert plan.bytes_read == 17 * 2 * pool.num_parameters
    assert plan.tier == "disk"
    assert pool.undigested_bytes == plan.bytes_read
    text = " ".join(text_of(prepared).split())
    assert "one candidate reads 3.37 TB and writes 198 GB: from disk, in about" in text
    assert "Before a search, 3.37 TB are read once for digests, about 28.1 min from disk" in text
    record = json.loads(json.dumps(prepared_record(prepared), allow_nan=False))
    assert record["headers_only"] is True
    assert record["similarity"] is None
    assert {source["digest"] for source in record["sources"]} == {None}
    assert record["tiers"]["costs"][-1]["seconds"] > 1000


def test_huge_pool_on_a_cluster_is_told_what_each_tier_takes(huge_job):
    prepared = prepare(huge_job(address="auto", device="cuda", gpus=1), headers_only=True)
    assert prepared.estimate.tiers.tier is None
    text = text_of(prepared)
    assert "depends on the room that the workers find" in text
    costs = {cost.tier: cost for cost in prepared.estimate.tiers.costs}
    assert costs["gpu"].seconds < costs["host"].seconds < costs["disk"].seconds
    assert text.count("unknown") == 2


def test_long_digests_are_announced_before_they_are_made(tmp_path):
    sources = []
    for name in ("a", "b"):
        size = write_sparse(tmp_path / name, llama_shapes(layers=2))
        sources.append(ResolvedSource(name, tmp_path / name, ""))
    said = []
    announce_digests(Sources(None, tuple(sources)), said.append)
    (text,) = said
    assert f"reading {format_bytes(2 * size)} of checkpoints once" in text
    assert "--headers-only" in text


def test_short_digests_are_not_announced(job):
    said = []
    prepare(job, announce=said.append)
    assert said == []
