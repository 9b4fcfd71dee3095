"""Bad input ends a command with one clear message, its own exit code, and no Ray.

Real tiny checkpoints, real tasks, the real command line. Importing Ray is made to fail, so that
a command which gets as far as that shows it.
"""

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from configs.schema import JobConfig
from optimizer.archive import Archive
from optimizer.cli import app
from optimizer.preflight import prepare
from workers.checkpoint import CheckpointReader


@pytest.fixture(autouse=True)
def _no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in [name for name in sys.modules if name.startswith("workers.ray_")]:
        monkeypatch.delitem(sys.modules, name)


@pytest.fixture
def job(tiny_job, tmp_path) -> JobConfig:
    return tiny_job(archive=str(tmp_path / "archive.sqlite"), budget={"evaluations": 8})


@pytest.fixture
def write_job(job, tmp_path) -> Callable[..., Path]:
    """Write the job file, after changing the content of the job."""

    def write(change: Callable[[dict], object] = lambda content: None) -> Path:
        content = job.model_dump(mode="json")
        change(content)
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return path

    return write


@pytest.fixture
def copy_of(tmp_path) -> Callable[[Path], Path]:
    """Copy a checkpoint, so that it can be broken."""
    return lambda directory: Path(shutil.copytree(directory, tmp_path / f"my-{directory.name}"))


@pytest.fixture
def archive_path(job, write_job) -> Path:
    """The archive of a search that was just begun from the job file."""
    job_path = write_job()
    prepared = prepare(job)
    Archive.create(
        Path(job.archive),
        job=job,
        job_path=job_path,
        sources=prepared.sources,
        manifest=prepared.manifest,
    ).close()
    return Path(job.archive)


def mergefront(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(result: Result, exit_code: int, *texts: str) -> str:
    """Check that a command ended with one clear message; returns it."""
    message = result.stderr
    assert result.exit_code == exit_code, f"{result.output}\n{result.exception!r}"
    assert result.stdout == ""
    assert message.startswith("error: ")
    assert "Traceback" not in message
    for text in texts:
        assert text in message
    return message


@pytest.fixture(params=["check", "run"])
def start(request) -> Callable[[Path], Result]:
    """Check a job, or try to run it."""
    return lambda path: mergefront(request.param, path)


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


@pytest.mark.slow  # lm-eval indexes all its tasks to say which one is near
def test_unknown_task_is_named_with_the_nearest(write_job):
    path = write_job(lambda job: job["objectives"]["text"]["tasks"][0].update(task="tiny_txt"))
    refused(mergefront("run", path), 2, "objectives.text.tiny_txt", "tiny_text")


def test_unknown_metric_is_named_with_those_there_are(start, write_job):
    path = write_job(lambda job: job["objectives"]["choice"]["tasks"][0].update(metric="accc"))
    refused(start(path), 2, "objectives.choice.tiny_choice", "`accc`", "did you mean `acc`")


@pytest.fixture
def own_data(job, tmp_path) -> Path:
    """A copy of the job's tasks and their items, to be broken."""
    return Path(shutil.copytree(job.evaluation.data_dir, tmp_path / "tasks"))


def on(directory: Path, **evaluation: object) -> Callable[[dict], object]:
    """Let a job read its tasks and items from a directory."""
    here = {"include_path": [str(directory)], "data_dir": str(directory), **evaluation}
    return lambda job: job["evaluation"].update(here)


def test_broken_line_of_a_data_file_is_named(start, write_job, own_data):
    items = own_data / "items.jsonl"
    lines = items.read_text().splitlines()
    items.write_text("\n".join([*lines[:4], lines[4][:-5], *lines[5:]]))
    refused(start(write_job(on(own_data))), 2, "objectives.text.tiny_text", f"{items}, line 5 is")


def test_column_that_is_missing_is_named_with_file_and_template(start, write_job, own_data):
    items = own_data / "items.jsonl"
    items.write_text(items.read_text().replace('"prompt"', '"question"'))
    message = refused(start(write_job(on(own_data))), 2, f"{items}, line 1 (and 23 more lines)")
    assert "no column `prompt`, which `doc_to_text: prompt` wants; it has `question`" in message
    assert "objectives.text.tiny_text" in message
    assert "objectives.choice.tiny_choice" in message


def test_split_without_items_is_refused(start, write_job, own_data):
    items = own_data / "items.jsonl"
    items.write_text("")
    refused(start(write_job(on(own_data))), 2, f"objectives.text.tiny_text: {items} is empty")


def test_split_that_its_function_empties_is_refused(start, write_job, own_data):
    (own_data / "drop.py").write_text("def all_of(docs):\n    return docs.select([])\n")
    task = own_data / "tiny_text.yaml"
    task.write_text(task.read_text() + "process_docs: !function drop.all_of\n")
    refused(start(write_job(on(own_data))), 2, "objectives.text.tiny_text", "split `test`")


def test_examples_among_scored_items_are_refused(start, write_job, own_data):
    task = own_data / "tiny_text.yaml"
    task.write_text(task.read_text() + "fewshot_split: test\nnum_fewshot: 2\n")
    message = refused(start(write_job(on(own_data))), 2, "objectives.text.tiny_text")
    assert "draws its 2 few-shot examples from the items that are scored (16 in common)" in message


def test_scorer_that_raises_is_refused(start, write_job, own_data):
    (own_data / "bad.py").write_text("def score(doc, results):\n    return doc['solution']\n")
    task = own_data / "tiny_text.yaml"
    task.write_text(task.read_text() + "process_results: !function bad.score\n")
    refused(start(write_job(on(own_data))), 2, "its scorer fails", "KeyError: 'solution'")


def test_missing_data_of_a_stock_task_is_named_before_anything_is_fetched(
    start, write_job, own_data
):
    (own_data / "gsm8k").mkdir()

    def score_gsm8k(job: dict) -> None:
        on(own_data)(job)
        job["objectives"]["text"]["tasks"][0] = {"task": "gsm8k", "metric": "exact_matches"}

    expected = f"its data file {own_data}/gsm8k/test.jsonl does not exist"
    refused(start(write_job(score_gsm8k)), 2, "objectives.text.gsm8k", expected)


def test_problems_of_tasks_come_at_once(start, write_job, own_data):
    items = own_data / "items.jsonl"
    (own_data / "tiny_text.yaml").write_text(
        (own_data / "tiny_text.yaml").read_text().replace("items.jsonl", "gone.jsonl")
    )

    def break_more(job: dict) -> None:
        on(own_data)(job)
        job["objectives"]["choice"]["tasks"][0].update(metric="acc,nonee", max_new_tokens=3)

    message = refused(start(write_job(break_more)), 2, "gone.jsonl does not exist")
    assert "tiny_choice.metric: there is no filter `nonee`, did you mean `none`?" in message
    assert "tiny_choice.max_new_tokens: nothing is generated" in message
    assert items.is_file()


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


def test_more_items_than_a_task_has_are_refused(start, write_job):
    path = write_job(lambda job: job["evaluation"]["splits"].update(report=500))
    refused(start(path), 2, "objectives.text.tiny_text", "24 distinct items", "512")


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


def test_run_does_not_overwrite_an_archive(write_job, archive_path):
    before = archive_path.read_bytes()
    refused(
        mergefront("run", write_job()), 4, "exists already", f"mergefront resume {archive_path}"
    )
    assert archive_path.read_bytes() == before


def test_run_that_was_refused_leaves_no_archive(write_job, job):
    mergefront("run", write_job(lambda job: job["search"].update(strategy="cmaes")))
    assert not Path(job.archive).exists()


def test_archive_that_cannot_be_made_is_refused_by_the_check(start, write_job, tmp_path):
    (tmp_path / "file").touch()
    path = write_job(lambda job: job.update(archive=str(tmp_path / "file" / "a.sqlite")))
    refused(start(path), 2, "archive", "is not writable")


def test_job_edited_before_resume_is_refused_key_by_key(archive_path, write_job):
    def edit(job: dict) -> None:
        job["search"]["sigma"] = 0.4
        job["merge"]["weight"]["high"] = 2.0

    write_job(edit)
    refused(
        mergefront("resume", archive_path), 4,
        "search.sigma: 0.2 -> 0.4", "merge.weight.high: 1.5 -> 2.0", "--archived-job",
    )  # fmt: skip


def test_other_job_file_is_refused_on_resume(archive_path, write_job, tmp_path):
    other = write_job(lambda job: job.update(seed=7)).rename(tmp_path / "other.yaml")
    write_job()
    refused(mergefront("resume", archive_path, "--job", other), 4, "seed: 0 -> 7", "other.yaml")


@pytest.mark.parametrize("arguments", [[], ["--archived-job"]])
def test_job_that_only_asks_for_more_goes_on(archive_path, write_job, arguments):
    write_job(lambda job: job["budget"].update(evaluations=30))
    result = mergefront("resume", archive_path, *arguments)
    assert isinstance(result.exception, ImportError)  # it went as far as Ray
    assert ("budget.evaluations: 8 -> 30" in result.stderr) == (not arguments)


def test_archived_job_goes_on_after_the_file_was_edited(archive_path, write_job):
    write_job(lambda job: job.update(seed=7))
    result = mergefront("resume", archive_path, "--archived-job", "--evaluations", "9")
    assert isinstance(result.exception, ImportError)


def test_archived_job_goes_on_after_the_file_was_removed(archive_path, write_job):
    write_job().unlink()
    result = mergefront("resume", archive_path)
    assert isinstance(result.exception, ImportError)
    assert "is gone; going on with the archived job" in result.stderr


def test_keys_that_change_the_search_cannot_be_set_on_resume(archive_path):
    refused(
        mergefront("resume", archive_path, "--set", "seed=3", "--set", "budget.hours=1"), 2,
        "seed: cannot change on resume",
    )  # fmt: skip


def test_checkpoint_that_changed_is_refused_on_resume(archive_path, write_job, copy_of, tiny_pool):
    with Archive.open(archive_path) as archive:
        math = archive.sources.checkpoints[2].directory
    backup = copy_of(math)
    shutil.copy(tiny_pool.checkpoints["code"] / "model.safetensors", math)
    try:
        refused(mergefront("resume", archive_path), 3, "`math` has changed", str(math))
    finally:
        shutil.copy(backup / "model.safetensors", math)


def test_task_that_changed_is_refused_on_resume(archive_path, job):
    task = Path(job.evaluation.include_path[0]) / "tiny_text.yaml"
    before = task.read_text(encoding="utf-8")
    task.write_text(before.replace("max_gen_toks: 6", "max_gen_toks: 9"), encoding="utf-8")
    try:
        refused(mergefront("resume", archive_path), 4, "tiny_text: its definition differs")
    finally:
        task.write_text(before, encoding="utf-8")


READERS = (
    ["status"],
    ["front"],
    ["report"],
    ["plot", "--out", "never.png"],
    ["export", "--out", "never"],
)


@pytest.fixture(params=[["resume"], *READERS], ids=lambda arguments: arguments[0])
def use(request, tmp_path, monkeypatch) -> Iterator[Callable[[Path], Result]]:
    """Use an archive in every way that there is."""
    monkeypatch.chdir(tmp_path)
    command, *options = request.param
    yield lambda path: mergefront(command, path, *options)
    assert not (tmp_path / "never").exists()


def test_archive_of_another_version_is_refused(use, archive_path):
    with sqlite3.connect(archive_path) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    refused(use(archive_path), 4, str(archive_path), "99")


def test_archive_that_is_not_there_is_named(use, tmp_path):
    refused(use(tmp_path / "none.sqlite"), 4, "none.sqlite")


def test_file_that_is_no_archive_is_refused(use, tmp_path):
    (tmp_path / "text.sqlite").write_text("not an archive", encoding="utf-8")
    refused(use(tmp_path / "text.sqlite"), 4, "text.sqlite")


def test_second_driver_on_an_archive_is_refused(archive_path):
    with Archive.open(archive_path, writable=True):
        refused(mergefront("resume", archive_path), 4, "is being written by process")


def test_archive_can_be_read_while_it_is_written(archive_path):
    with Archive.open(archive_path, writable=True):
        assert mergefront("status", archive_path).exit_code == 0
        assert "running" in mergefront("status", archive_path).stdout


def resize(directory: Path, name: str, size: int) -> None:
    """Rewrite a checkpoint with one tensor cut to another length."""
    from safetensors.torch import save_file

    with CheckpointReader(directory) as reader:
        tensors = {entry: reader.tensor(entry).clone() for entry in reader.entries}
    tensors[name] = tensors[name][:size].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
