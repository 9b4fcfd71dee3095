"""Drafted jobs: from the models, tasks and hardware that are there to a file that runs."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from configs.errors import CheckpointError, ConfigError
from configs.load import load_job
from optimizer.cli import app as cli
from optimizer.preflight.draft import Draft, Wishes, draft_job, render_draft
from workers.hardware import Gpu, Hardware

LAPTOP = Hardware(cores=8, memory_bytes=16 * 2**30, free_bytes=12 * 2**30, gpus=())
SERVER = Hardware(
    cores=64,
    memory_bytes=512 * 2**30,
    free_bytes=400 * 2**30,
    gpus=tuple(Gpu("H100", 80 * 10**9) for _ in range(8)),
)


@pytest.fixture
def wishes(tiny_job, tiny_pool):
    """What a person says of the tiny pool and its tasks."""

    def make(**changes: object) -> Wishes:
        evaluation = tiny_job().evaluation
        content = {
            "name": "mine",
            "base": str(tiny_pool.base),
            "checkpoints": {name: str(path) for name, path in tiny_pool.checkpoints.items()},
            "objectives": [("text", "tiny_text"), ("choice", "tiny_choice:acc")],
            "archive": "runs/mine/archive.sqlite",
            "data_dir": evaluation.data_dir,
            "include_path": evaluation.include_path,
        }
        return Wishes(**(content | changes))

    return make


@pytest.fixture
def write(tmp_path):
    def write(draft: Draft) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(render_draft(draft), encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize("hardware", [LAPTOP, SERVER])
@pytest.mark.parametrize("has_base", [True, False])
def test_file_says_what_was_drafted(wishes, write, hardware, has_base):
    draft = draft_job(wishes(**({} if has_base else {"base": None})), hardware)
    path = write(draft)
    assert load_job(path) == draft.job
    merge = draft.job.merge
    assert (merge.method, merge.parametrization) == (
        ("dare_linear", "free") if has_base else ("linear", "simplex")
    )
    # Three in four lines of settings say why.
    lines = path.read_text().splitlines()
    assert sum("#" in line for line in lines) >= 15


def test_items_are_as_many_as_the_tasks_have(wishes):
    # 24 items each: 0.3, 0.2 and 0.5 of them.
    draft = draft_job(wishes(), LAPTOP)
    splits = draft.job.evaluation.splits
    assert (splits.search, splits.select, splits.report) == (7, 4, 12)
    assert draft.items == {"tiny_text": 24, "tiny_choice": 24}
    assert "tiny_text has 24 items in all" in render_draft(draft)


def test_workers_fit_the_hardware(wishes):
    small = draft_job(wishes(), LAPTOP).job.workers
    assert (small.device, small.count, small.threads) == ("cpu", 8, 1)
    large = draft_job(wishes(), SERVER).job.workers
    assert (large.device, large.count, large.gpus, large.threads) == ("cuda", "auto", 1.0, 8)


def test_workers_of_models_larger_than_a_gpu_get_several():
    from optimizer.preflight.draft import _workers

    seventy = 140 * 10**9
    assert _workers(SERVER, 70 * 10**9, seventy) == {
        "device": "cuda", "gpus": 3, "cpus": 32, "threads": 32,
    }  # fmt: skip
    assert _workers(LAPTOP, 7 * 10**9, 14 * 10**9) == {"count": 1, "threads": 8}


def test_names_of_people_are_quoted(wishes, write, tmp_path, tiny_pool):
    import shutil

    place = tmp_path / "a: b #c '\"{}"
    shutil.copytree(tiny_pool.base, place)
    draft = draft_job(wishes(base=str(place), name="yes: [no]\n#"), LAPTOP)
    content = yaml.safe_load(write(draft).read_text())
    assert content["models"]["base"] == str(place)
    assert content["name"] == "yes: [no]\n#"


def test_words_that_yaml_takes_for_values_stay_names(wishes, write, tiny_pool):
    checkpoints = {"no": str(tiny_pool.checkpoints["math"]), "1": str(tiny_pool.base)}
    objectives = [("on", "tiny_text"), ("2e3", "tiny_choice")]
    draft = draft_job(wishes(checkpoints=checkpoints, objectives=objectives, name="\x7f~"), LAPTOP)
    content = yaml.safe_load(write(draft).read_text())
    assert content["models"]["checkpoints"] == checkpoints
    assert list(content["objectives"]) == ["on", "2e3"]
    assert content["name"] == "\x7f~"


@pytest.mark.parametrize("fewest", [3, 24, 100, 300, 447, 448, 10_000])
def test_few_items_never_draft_a_larger_search(fewest):
    from configs.evaluation import SplitSizes
    from optimizer.preflight.draft import _splits

    wanted = SplitSizes().model_dump()
    sizes = _splits(SplitSizes(), {"few": fewest, "many": 100_000}) if fewest > 4 else {}
    assert sum(sizes.values()) <= fewest
    assert all(sizes[name] <= wanted[name] for name in sizes)


@pytest.mark.slow
def test_what_cannot_be_used_is_refused_before_a_file_is_there(wishes, tmp_path):
    with pytest.raises(ConfigError, match=r"tiny_txt.*tiny_text"):
        draft_job(wishes(objectives=[("text", "tiny_txt")]), LAPTOP)
    with pytest.raises(CheckpointError, match="no such directory"):
        draft_job(wishes(base=str(tmp_path / "none")), LAPTOP)


def mergefront(*arguments: object, **options: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments], **options)


def test_command_writes_a_file_that_passes_the_check(wishes, tmp_path, monkeypatch):
    said = wishes()
    monkeypatch.chdir(tmp_path)
    flags = ["--base", said.base, "--data-dir", said.data_dir]
    flags += ["--include-path", said.include_path[0]]
    for name, place in said.checkpoints.items():
        flags += ["--checkpoint", f"{name}={place}"]
    for name, task in said.objectives:
        flags += ["--objective", f"{name}={task}"]
    done = mergefront("init", "jobs/mine.yaml", *flags)
    assert done.exit_code == 0, done.output
    assert done.stdout == "jobs/mine.yaml\n"
    checked = mergefront("check", "jobs/mine.yaml", "--headers-only", "--json")
    assert checked.exit_code == 0, checked.output
    assert json.loads(checked.stdout)["headers_only"] is True
    job = load_job(tmp_path / "jobs" / "mine.yaml")
    assert (job.name, job.archive) == ("mine", str(tmp_path / "runs/mine/archive.sqlite"))
    again = mergefront("init", "jobs/mine.yaml", *flags)
    assert again.exit_code == 2
    assert "is there already; choose another name, or --force" in again.stderr


def test_file_that_is_there_is_said_before_anything_is_asked(tmp_path, monkeypatch):
    from optimizer.cli import init_commands

    (tmp_path / "job.yaml").write_text("mine")
    monkeypatch.setattr(init_commands.sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(init_commands.typer, "prompt", lambda *_, **__: pytest.fail("asked"))
    done = mergefront("init", tmp_path / "job.yaml")
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    assert (tmp_path / "job.yaml").read_text() == "mine"


def test_command_says_all_that_is_missing(tmp_path):
    done = mergefront("init", tmp_path / "job.yaml", "--base", "x")
    assert done.exit_code == 2
    assert "--checkpoint: name at least one" in done.stderr
    assert "--objective: name at least one" in done.stderr
    done = mergefront(
        "init", tmp_path / "job.yaml", "--checkpoint", "a", "--checkpoint", "b=1",
        "--checkpoint", "b=2", "--objective", "=x",
    )  # fmt: skip
    for said in ("found `a`", "found `=x`", "a name is used twice"):
        assert said in done.stderr
    assert not (tmp_path / "job.yaml").exists()


def test_command_asks_where_somebody_answers(wishes, tmp_path, monkeypatch):
    from optimizer.cli import init_commands

    said = wishes()
    answers = iter(
        [said.base, *(f"{n}={p}" for n, p in said.checkpoints.items()), "", "text=tiny_text", ""]
    )
    monkeypatch.setattr(init_commands.typer, "prompt", lambda *_, **__: next(answers))
    monkeypatch.setattr(init_commands.sys.stdin, "isatty", lambda: True)
    flags = init_commands.InitFlags(
        base=None, checkpoints=[], objectives=[], data_dir=said.data_dir,
        include_path=said.include_path, name=None, archive="a.sqlite", runs_code=False,
        force=False,
    )  # fmt: skip
    init_commands.init(tmp_path / "asked.yaml", flags)
    job = load_job(tmp_path / "asked.yaml")
    assert list(job.models.checkpoints) == ["instruct", "code", "math"]
    assert list(job.objectives) == ["text"]
    assert list(answers) == []
