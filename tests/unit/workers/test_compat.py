"""Whether a pool can be merged: everything wrong at once, and what is in it."""

from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from configs.errors import ConfigError, IncompatibleCheckpointsError
from configs.schema import Merge, Models
from tests.unit.workers.copied_pool import CopiedPool, Tensors
from workers.compat import check_compatible
from workers.sources import resolve_sources

EMBEDDINGS = "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj.weight"


def test_report_counts_parameters_and_bytes_per_candidate(pool: CopiedPool) -> None:
    report = pool.check()
    tensors = load_file(pool.root / "base" / "model.safetensors")
    total = sum(tensor.numel() for tensor in tensors.values())
    assert report.num_tensors == len(tensors)
    assert report.num_parameters == total
    assert report.dtype == "float32"
    assert report.bytes_read == 4 * 4 * total
    assert report.bytes_written == 4 * total
    assert report.largest_tensor_bytes == max(tensor.nbytes for tensor in tensors.values())
    assert report.warnings == ()


def test_report_of_another_output_dtype_counts_its_bytes(pool: CopiedPool) -> None:
    report = pool.check(dtype="bfloat16")
    assert report.dtype == "bfloat16"
    assert report.bytes_written * 8 == report.bytes_read


def test_linear_merge_does_not_read_the_base(pool: CopiedPool) -> None:
    report = pool.check(method="linear")
    assert report.bytes_read == 3 * report.bytes_written


def test_pool_without_a_base_is_compared_with_its_first_checkpoint(pool: CopiedPool) -> None:
    report = pool.check(base=None, method="linear")
    assert report.deltas == ()
    assert report.bytes_read == 3 * report.bytes_written


def test_delta_sizes_are_those_of_the_task_vectors(pool: CopiedPool) -> None:
    stats = {stats.checkpoint: stats for stats in pool.check().deltas}
    base = load_file(pool.root / "base" / "model.safetensors")
    math = load_file(pool.root / "math" / "model.safetensors")
    delta = torch.cat([(math[name] - base[name]).abs().reshape(-1) for name in base])
    weights = torch.cat([tensor.abs().reshape(-1) for tensor in base.values()])
    assert list(stats) == ["instruct", "code", "math"]
    assert stats["math"].median == pytest.approx(float(delta.quantile(0.5)), rel=1e-5)
    assert stats["math"].p99 == pytest.approx(float(delta.quantile(0.99)), rel=1e-5)
    assert stats["math"].maximum == float(delta.max())
    assert stats["math"].relative == pytest.approx(
        float(delta.quantile(0.5) / weights.quantile(0.5)), rel=1e-3
    )
    assert stats["math"].unchanged == pytest.approx(float((delta == 0).float().mean()))
    assert not stats["math"].is_sampled


def test_tensors_of_another_shape_are_all_named(pool: CopiedPool) -> None:
    def change(tensors: Tensors) -> None:
        tensors[EMBEDDINGS] = torch.zeros(260, 32)
        tensors["extra"] = tensors.pop(QUERY)

    pool.change("math", change)
    (problem,) = pool.problems()
    assert "cannot merge `math` into `base`: 3 of 20 tensors differ." in problem
    assert f"`{EMBEDDINGS}` expected (259, 32), found (260, 32)" in problem
    assert f"`{QUERY}` is missing" in problem
    assert "`extra` is not in the reference" in problem
    assert "Resize the vocabulary first" in problem


def test_every_mismatch_is_in_the_context_when_there_are_many(pool: CopiedPool) -> None:
    pool.change("math", lambda tensors: [tensors.pop(name) for name in list(tensors)[:9]])
    with pytest.raises(IncompatibleCheckpointsError, match="and 4 more") as caught:
        pool.check()
    assert len(caught.value.context["mismatches"]["math"]) == 9


def test_problems_of_all_checkpoints_and_groups_are_named_at_once(pool: CopiedPool) -> None:
    pool.change("math", lambda tensors: tensors.pop(QUERY))
    pool.change_json("code", "config.json", lambda config: config.update(model_type="bert"))
    problems = pool.problems(groups={"mlp": [r".*\.mlp\..*"]})
    assert [problem.split(":")[0] for problem in problems] == ["code", "math", "merge.groups"]
    assert "model_type is `bert`, expected `llama`" in problems[0]


def test_counters_must_be_the_same(pool: CopiedPool) -> None:
    for name in ("base", *pool.names):
        pool.change(name, lambda tensors: tensors.update(steps=torch.tensor([1, 2])))
    assert pool.check().warnings == ()
    pool.change("math", lambda tensors: tensors.update(steps=torch.tensor([1, 3])))
    assert "`steps` (int64) cannot be merged and has other values" in pool.problems()[0]


def test_tensors_in_no_group_or_in_two_are_named(pool: CopiedPool) -> None:
    problems = pool.problems(
        groups={"attention": [r".*attn.*"], "first": [r"model\.layers\.0\..*"]}
    )
    assert f"`{EMBEDDINGS}`" in problems[0]
    assert "tensors are in no group" in problems[0]
    assert "4 tensors are in more than one group" in problems[1]
    assert "(attention, first)" in problems[1]


def test_group_without_tensors_is_a_warning(pool: CopiedPool) -> None:
    report = pool.check(groups={"all": [".*"], "experts": [r".*\.experts\..*"]})
    assert report.warnings == ("group `experts` holds no tensor; its genes change nothing",)


def test_other_token_ids_are_refused(pool: CopiedPool) -> None:
    def swap(content: dict[str, Any]) -> None:
        vocab = content["model"]["vocab"]
        vocab["a"], vocab["b"] = vocab["b"], vocab["a"]

    pool.change_json("code", "tokenizer.json", swap)
    (problem,) = pool.problems()
    assert "the tokenizers differ: 2 of 259 tokens differ, e.g. 'a' has id" in problem


def test_checkpoint_without_a_tokenizer_is_a_warning(pool: CopiedPool) -> None:
    (pool.root / "code" / "tokenizer.json").unlink()
    (warning,) = pool.check().warnings
    assert warning.startswith("`code`: has no tokenizer")


@pytest.mark.parametrize("where", ["base", "math"])
def test_nan_in_a_checkpoint_is_refused(pool: CopiedPool, where: str) -> None:
    pool.change(where, lambda tensors: tensors[QUERY].view(-1)[7].fill_(torch.nan))
    found = [problem for problem in pool.problems() if "NaN" in problem]
    assert found == [
        f"{where}: `{QUERY}` holds NaN or infinity ({pool.root / where}); copy the checkpoint "
        "again, or leave it out"
    ]


def test_unknown_method_is_a_config_error(pool: CopiedPool) -> None:
    with pytest.raises(ConfigError, match="`average` is no merge method"):
        pool.check(method="average")


def test_large_pools_are_sampled_at_fixed_places(
    pool: CopiedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = pool.check().deltas
    monkeypatch.setattr("workers.delta_stats._WHOLE_ELEMENTS", 0)
    monkeypatch.setattr("workers.delta_stats._RUN_ELEMENTS", 64)
    sampled, again = pool.check().deltas, pool.check().deltas
    assert all(stats.is_sampled for stats in sampled)
    assert sampled == again
    for whole, part in zip(exact, sampled, strict=True):
        assert part.median == pytest.approx(whole.median, rel=0.1)
        assert part.p99 == pytest.approx(whole.p99, rel=0.2)
        assert part.maximum <= whole.maximum


def test_share_of_tensors_that_are_the_base_s_is_counted(pool: CopiedPool) -> None:
    base = load_file(pool.root / "base" / "model.safetensors")
    pool.change("math", lambda tensors: tensors.update({QUERY: base[QUERY].clone()}))
    norms = sum("norm" in name for name in base)
    stats = {stats.checkpoint: stats.identical_tensors for stats in pool.check().deltas}
    code = load_file(pool.root / "code" / "model.safetensors")
    same = sum(torch.equal(base[name], code[name]) for name in base)
    assert same < norms + 1
    assert stats["code"] == pytest.approx(same / len(base))
    assert stats["math"] - stats["code"] == pytest.approx(1 / len(base))


def test_nan_is_refused_without_a_base_too(pool: CopiedPool) -> None:
    pool.change("math", lambda tensors: tensors[QUERY].view(-1)[7].fill_(torch.nan))
    (problem,) = pool.problems(base=None, method="linear")
    assert problem.startswith(f"math: `{QUERY}` holds NaN or infinity ({pool.root / 'math'})")


def test_facts_of_every_model_are_reported(pool: CopiedPool) -> None:
    (pool.root / "math" / "tokenizer.json").unlink()
    pool.change("code", lambda t: t.update({EMBEDDINGS: t[EMBEDDINGS].bfloat16()}))
    base, instruct, code, math = pool.check().sources
    assert (base.name, base.tokenizer, instruct.tokenizer) == ("base", "reference", "same")
    assert math.tokenizer == "unknown"
    assert base.dtypes == {"float32": base.num_parameters}
    assert code.dtypes == {
        "float32": base.num_parameters - 259 * 32,
        "bfloat16": 259 * 32,
    }
    assert code.size_bytes == base.size_bytes - 2 * 259 * 32


def test_groups_are_counted_and_cover_everything(pool: CopiedPool) -> None:
    report = pool.check(
        groups={
            "attention": [{"kind": "attention", "layers": 0}],
            "mlp": [{"kind": "mlp"}],
            "others": ["rest"],
        }
    )
    sizes = {group.name: group for group in report.groups}
    assert sizes["attention"].num_tensors == 4
    assert sizes["attention"].num_parameters == 4 * 32 * 32
    assert sizes["mlp"].num_tensors == 6
    assert sum(group.num_parameters for group in report.groups) == report.num_parameters
    assert sum(group.share for group in report.groups) == pytest.approx(1)


def test_head_that_is_tied_explains_its_empty_group(pool: CopiedPool) -> None:
    report = pool.check(groups={"head": [{"kind": "head"}], "others": ["rest"]})
    assert report.warnings == (
        "group `head` holds no tensor; its genes change nothing: a tied head is part of the "
        "embeddings",
    )


def test_headers_only_reads_no_tensor(pool: CopiedPool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a tensor was read")

    monkeypatch.setattr("workers.checkpoint.CheckpointReader.tensor", refuse)
    for name in ("base", *pool.names):
        pool.change(name, lambda tensors: tensors.update(steps=torch.tensor([1, 2])))
    checkpoints = {name: str(pool.root / name) for name in pool.names}
    models = Models.model_validate({"base": str(pool.root / "base"), "checkpoints": checkpoints})
    sources = resolve_sources(models, with_digests=False)
    assert {source.digest for source in sources.everything} == {""}
    report = check_compatible(sources, Merge(), headers_only=True)
    assert report.headers_only
    assert (report.deltas, report.similarity, report.warnings) == ((), None, ())
    assert report.undigested_bytes == report.bytes_read


def test_digests_that_are_known_cost_nothing(pool: CopiedPool) -> None:
    assert pool.check().undigested_bytes == 0
