"""Sources that are no plain checkpoints, from job file to exported directory."""

import json

import pytest
import torch

from configs.schema import JobConfig
from workers.outcome import Completed, EvaluationKey, EvaluationRequest

pytestmark = pytest.mark.slow


@pytest.fixture
def models(tiny_pool, tmp_path):
    """An adapter, and a checkpoint with tokens of its own in a longer, padded table."""
    import warnings

    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, LlamaForCausalLM

    draw = torch.Generator().manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(
            LlamaForCausalLM.from_pretrained(tiny_pool.base),
            LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"]),
        )
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.data = torch.randn(parameter.shape, generator=draw) * 0.1
        adapted.save_pretrained(tmp_path / "adapter")
    longer = LlamaForCausalLM.from_pretrained(tiny_pool.checkpoints["code"])
    longer.resize_token_embeddings(264, mean_resizing=False)
    longer.model.embed_tokens.weight.data[259:] = torch.randn(5, 32, generator=draw) * 0.08
    longer.save_pretrained(tmp_path / "longer")
    tokenizer = AutoTokenizer.from_pretrained(tiny_pool.base)
    tokenizer.add_tokens(["<call>", "<result>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path / "longer")
    return {
        "base": str(tiny_pool.base),
        "checkpoints": {
            "adapted": str(tmp_path / "adapter"),
            "longer": str(tmp_path / "longer"),
            "math": str(tiny_pool.checkpoints["math"]),
        },
    }


@pytest.mark.parametrize("policy", ["pad", "intersect"])
def test_adapter_and_longer_vocabulary_are_scored_and_exported(tiny_job, models, tmp_path, policy):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from optimizer.archive.archive import Archive
    from optimizer.candidate import Candidate
    from optimizer.preflight.preflight import prepare
    from optimizer.publish.export import export
    from optimizer.results.select import choose
    from workers.job import JobRunner, WorkerSpec
    from workers.pool import LocalPool

    rows, tokens = {"pad": (264, 261), "intersect": (259, 259)}[policy]
    job: JobConfig = tiny_job(models=models | {"vocabulary": policy})
    prepared = prepare(job)
    recipe = prepared.space.recipe([[0.6], [0.5], [0.2]], [[0.1], [0.3], [0.0]])
    assert recipe.vocabulary is not None
    assert recipe.vocabulary.rows == rows

    spec = WorkerSpec(prepared.job, prepared.sources, prepared.manifest)
    candidate = Candidate(0, prepared.space.encode(recipe.weights), recipe, "baseline:x", seen=0)
    with (
        LocalPool(JobRunner(spec, "local")) as pool,
        Archive.create(
            tmp_path / "archive.sqlite",
            job=job,
            job_path=None,
            sources=prepared.sources,
            manifest=prepared.manifest,
        ) as archive,
    ):
        archive.record_proposal(candidate)
        for split in ("search", "select", "report"):
            pool.submit(EvaluationRequest(EvaluationKey(0, split), recipe))
            outcome = pool.next_outcome()
            assert isinstance(outcome, Completed), outcome
            archive.record_outcome(outcome)
        archive.record_choice(0, "for the test")
        done = export(archive, choose(archive), tmp_path / "model")
        assert done.weights_digest == outcome.weights_digest

    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert exported.get_input_embeddings().weight.shape == (rows, 32)
    assert exported.config.vocab_size == rows
    assert json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"] == rows
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert len(tokenizer) == tokens
    assert ("<result>" in tokenizer.get_vocab()) == (policy == "pad")
    prompt = tokenizer("red green then", return_tensors="pt")
    written = exported.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert written.shape[1] == prompt["input_ids"].shape[1] + 4
