"""The main job through the command line, as a person does it: real models, lm-eval and Ray."""

import contextlib
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import psutil
import pytest
import yaml

from optimizer.archive.archive import Archive

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUDGET = 15
EVALUATIONS = BUDGET + 2  # the baselines and a few of the search's own


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("job")


@pytest.fixture(scope="module")
def job_file(tiny_job, directory) -> Path:
    job = tiny_job(
        name="tiny",
        budget={"evaluations": BUDGET},
        validation={"candidates": 3},
        workers={"count": 2, "cpus": 0.5, "threads": 1},
        archive=str(directory / "archive.sqlite"),
    )
    path = directory / "job.yaml"
    path.write_text(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "optimizer.cli", *map(str, arguments)]


def mergefront(*arguments: object) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def interrupted(job_file, directory) -> tuple[Path, str]:
    """The archive of a search that was stopped with Ctrl-C on the way, and what it printed."""
    with subprocess.Popen(
        command("run", job_file),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        lines = []
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if "search 5/" in line:
                # As a terminal does it: to all processes of the command, Ray's included.
                os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=180) == 130
    return directory / "archive.sqlite", "".join(lines)


@dataclass(frozen=True)
class Finished:
    """A search that was resumed on a terminal: its archive, standard output, and the screen."""

    archive: Path
    stdout: str
    screen: str


@pytest.fixture(scope="module")
def finished(interrupted, directory) -> Finished:
    """The same search, resumed to its end, and beyond the budget that it began with."""
    path, _ = interrupted
    with (directory / "stdout").open("w+") as stdout:
        screen = on_terminal(
            command("resume", path, "--verify", "--evaluations", EVALUATIONS), stdout
        )
        stdout.seek(0)
        return Finished(path, stdout.read(), screen)


def on_terminal(arguments: list[str], stdout: TextIO) -> str:
    """Run a command whose standard error is a terminal; returns the text that was drawn there."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    with subprocess.Popen(
        arguments, cwd=ROOT, stdout=stdout, stderr=follower, env=environment
    ) as process:
        os.close(follower)
        drawn = b""
        with contextlib.suppress(OSError):  # the other end was closed
            while part := os.read(leader, 65536):
                drawn += part
        assert process.wait(timeout=60) == 0, drawn.decode()
    os.close(leader)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())


def test_interrupted_search_keeps_what_it_had_and_prints_how_to_go_on(interrupted):
    path, printed = interrupted
    assert f"continue with\n  mergefront resume {path}" in printed
    assert "Traceback" not in printed


def test_interrupt_is_no_failure_of_a_candidate(finished):
    with Archive.open(finished.archive) as archive:
        assert [outcome for outcome in archive.outcomes("search") if outcome.scores is None] == []


def processes_of(directory):
    return [
        process.info["cmdline"]
        for process in psutil.process_iter(["cmdline"])
        if any(str(directory) in part for part in process.info["cmdline"] or [])
    ]


def test_interrupted_search_leaves_no_process(interrupted, directory):
    end = time.monotonic() + 60
    while (left := processes_of(directory)) and time.monotonic() < end:
        time.sleep(0.1)
    assert left == []


def test_resumed_search_ends_with_every_evaluation_once(finished):
    with Archive.open(finished.archive) as archive:
        keys = [outcome.key.candidate for outcome in archive.outcomes("search")]
        assert sorted(keys) == list(range(EVALUATIONS))
        assert archive.choice() in archive.scores("report")
    status = json.loads(mergefront("status", finished.archive, "--json").stdout)
    assert status["state"] == "finished"


def test_resumed_search_proposes_as_recorded(finished):
    assert re.search(r"verified: \d+ proposals come out as recorded", finished.screen)


def test_terminal_shows_the_live_view_and_not_the_log(finished):
    assert "tiny · search ·" in finished.screen
    assert "worker-1 " in finished.screen
    assert "validation: report" in finished.screen
    assert f"/{EVALUATIONS}\r\n" in finished.screen
    assert "evaluations recorded" not in finished.screen


def test_search_ends_with_its_report_on_stdout(finished):
    assert "Front by posterior mean, with raw search scores beside it" in finished.stdout
    assert "Baselines on the report items" in finished.stdout
    # Random weights have no skill to win with: whatever it says, it says it.
    assert re.search(r"did not win|beats every baseline", finished.stdout)


def test_exported_merge_is_the_scored_one(finished, directory):
    import torch
    from transformers import AutoModelForCausalLM

    from workers.digest import weights_digest

    out = directory / "merged"
    record = json.loads(mergefront("export", finished.archive, "--out", out, "--json").stdout)
    with Archive.open(finished.archive) as archive:
        choice = archive.choice()
        assert record["candidate"] == choice
        assert record["weights_digest"] == archive.weights_digest(choice)
    model = AutoModelForCausalLM.from_pretrained(out)
    tensors = {n: t for n, t in model.state_dict().items() if n != "lm_head.weight"}  # tied
    assert weights_digest(tensors.items()) == record["weights_digest"]
    assert not any(torch.isnan(tensor).any() for tensor in tensors.values())


def test_another_dtype_is_exported_with_scores_that_its_own_files_have(finished, directory):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from evaluators.evaluator import LiveModel
    from evaluators.harness import HarnessEvaluator
    from evaluators.scores import aggregate

    out = directory / "merged-bfloat16"
    options = ("--dtype", "bfloat16", "--score", "--json")
    done = mergefront("export", finished.archive, "--out", out, *options)
    record = json.loads(done.stdout)
    assert "and not into the archive" in done.stderr
    with Archive.open(finished.archive) as archive:
        job, manifest, choice = archive.job, archive.manifest, archive.choice()
        searched = archive.scores("report")[choice]
        assert record["recipe_id"] not in {c.recipe.recipe_id for c in archive.candidates()}
    live = LiveModel(
        AutoModelForCausalLM.from_pretrained(out, dtype="auto").eval(),
        AutoTokenizer.from_pretrained(out),
    )
    evaluator = HarnessEvaluator(job.objectives, job.evaluation, manifest)
    again = evaluator.evaluate(live, manifest.items("report"))
    card = (out / "README.md").read_text()
    for name, score in aggregate(job.objectives, again.task_scores).items():
        assert record["scores"]["report"][name]["value"] == score.value
        gap = record["differences"][name]["mean"]
        assert gap == pytest.approx(score.value - searched[name].value)
        assert f"| {name} | {score.value:.3f} ± {score.stderr:.3f} ({score.count}) |" in card
    refused = subprocess.run(
        command("export", finished.archive, "--out", directory / "x", "--score"),
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (refused.returncode, "--score: needs --dtype" in refused.stderr) == (2, True)


def test_a_recipe_of_the_search_can_be_merged_again_from_either_language(finished, directory):
    scored = json.loads(mergefront("recipe", finished.archive).stdout)
    for form, name in (("json", "recipe.json"), ("mergekit", "recipe.yml")):
        path = directory / name
        mergefront("recipe", finished.archive, "--format", form, "--out", path)
        done = mergefront("merge", path, "--out", directory / f"again-{form}", "--json")
        record = json.loads(done.stdout)
        assert record["recipe_id"] == scored["recipe_id"]
        assert record["weights_digest"] == scored["weights_digest"]


def test_front_and_pictures_come_from_the_archive(finished, directory):
    record = json.loads(mergefront("front", finished.archive, "--json").stdout)
    assert record["front"]
    written = mergefront("plot", finished.archive, "--out", directory / "front").stdout.split()
    assert [Path(name).suffix for name in written] == [".png", ".html"]
