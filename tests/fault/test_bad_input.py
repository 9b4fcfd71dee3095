"""Bad input ends a command with one clear message, its own exit code, and no Ray.

Real tiny checkpoints, real tasks, the real command line. Importing Ray is made to fail, so that
a command which gets as far as that shows it. Tasks and archives have files of their own.
"""

import json
from pathlib import Path

import pytest

from tests.fault.refused_commands import mergefront, refused
from workers.checkpoint import CheckpointReader

pytestmark = pytest.mark.usefixtures("no_ray")


def test_command_that_would_start_ray_is_caught_by_these_tests(write_job):
    result = mergefront("run", write_job())
    assert isinstance(result.exception, ImportError)
    assert "ray" in str(result.exception)


def test_missing_checkpoint_is_named(start, write_job):
    path = write_job(lambda job: job["models"]["checkpoints"]["code"].update(path="/gone/code"))
    refused(start(path), 3, "`code`", "/gone/code: no such directory")


def test_truncated_shard_is_named_with_its_sizes(start, write_job, copy_of, tiny_pool):
    broken = copy_of(tiny_pool.checkpoints["math"])
    shard = broken / "model.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)
    path = write_job(lambda job: job["models"]["checkpoints"]["math"].update(path=str(broken)))
    refused(start(path), 3, str(broken), "header promises", "copy it again")


def test_other_shapes_are_named_tensor_by_tensor(start, write_job, copy_of, tiny_pool):
    other = copy_of(tiny_pool.checkpoints["math"])
    resize(other, "model.norm.weight", 16)
    path = write_job(lambda job: job["models"]["checkpoints"]["math"].update(path=str(other)))
    refused(
        start(path), 3, "cannot merge `math` into `base`", "`model.norm.weight`", "(32,)", "(16,)"
    )


def test_another_tokenizer_is_named_with_a_token(start, write_job, copy_of, tiny_pool):
    other = copy_of(tiny_pool.checkpoints["code"])
    tokenizer = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    path = write_job(lambda job: job["models"]["checkpoints"]["code"].update(path=str(other)))
    refused(start(path), 3, "the tokenizers differ", "'a'")


def test_quantized_checkpoint_is_refused(start, write_job, copy_of, tiny_pool):
    other = copy_of(tiny_pool.checkpoints["code"])
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (other / "config.json").write_text(json.dumps(config), encoding="utf-8")
    path = write_job(lambda job: job["models"]["checkpoints"]["code"].update(path=str(other)))
    refused(start(path), 3, "quantized", "gptq")


def test_drop_ratio_bound_of_one_is_explained(start, write_job):
    path = write_job(lambda job: job["merge"]["drop_ratio"].update(high=1.0))
    refused(start(path), 2, "merge.drop_ratio", "high must be < 1", "use 0.99")


def test_unknown_key_is_named_with_the_nearest(start, write_job):
    def misspell(job: dict) -> None:
        job["budgett"] = job.pop("budget")

    refused(start(write_job(misspell)), 2, "unknown key", "did you mean `budget`")


def test_unknown_strategy_is_named_with_those_there_are(start, write_job):
    path = write_job(lambda job: job["search"].update(strategy="cmaes"))
    refused(start(path), 2, "search.strategy", "`cmaes`", "did you mean `cma`", "dirichlet")


def test_cuda_without_a_device_is_refused(start, write_job, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = write_job(lambda job: job["workers"].update(device="cuda", gpus=1))
    refused(start(path), 2, "workers.device", "no CUDA device")


def test_tensors_outside_every_group_are_refused(start, write_job):
    path = write_job(lambda job: job["merge"].update(groups={"mlp": [r".*\.mlp\..*"]}))
    refused(start(path), 3, "merge.groups", "are in no group")


def test_job_file_that_is_not_there_is_named(start, tmp_path):
    refused(start(tmp_path / "none.yaml"), 2, "none.yaml")


def test_problems_of_all_parts_come_at_once(start, write_job):
    def break_everything(job: dict) -> None:
        job["models"]["checkpoints"]["code"]["path"] = "/gone/code"
        job["objectives"]["choice"]["tasks"][0]["metric"] = "accc"
        job["search"]["strategy"] = "cmaes"

    message = refused(
        start(write_job(break_everything)), 2, "/gone/code", "`accc`", "`cmaes`", "3 parts"
    )
    assert message.count("error: ") == 1


def test_json_carries_the_error_on_stdout_and_its_text_on_stderr(write_job):
    path = write_job(lambda job: job["search"].update(strategy="cmaes"))
    result = mergefront("check", path, "--json")
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == 2
    assert error["type"] == "config"
    assert [problem["path"] for problem in error["problems"]] == ["search.strategy"]
    assert error["message"] in result.stderr


def resize(directory: Path, name: str, size: int) -> None:
    """Rewrite a checkpoint with one tensor cut to another length."""
    from safetensors.torch import save_file

    with CheckpointReader(directory) as reader:
        tensors = {entry: reader.tensor(entry).clone() for entry in reader.entries}
    tensors[name] = tensors[name][:size].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
