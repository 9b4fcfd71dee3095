import csv
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from configs.errors import ConfigError
from optimizer.archive.archive import Archive
from optimizer.cli import app as cli
from optimizer.cli import export_commands, options, read_commands
from tests.unit.optimizer.synthetic_archive import Merge, build

COMMANDS = (
    "init", "doctor", "check", "noise", "run", "resume", "rival", "learn", "launch", "status",
    "logs", "stop", "list", "serve", "front", "plot", "report", "export", "push", "merge", "recipe",
    "archive",
)  # fmt: skip
MERGES = (
    Merge((0, 0, 0), (0.1,) * 3, report=(0.1,) * 3, origin="baseline:base"),
    Merge((0.7, 0.6, 0.5), (0.9,) * 3, select=(0.8,) * 3, report=(0.7,) * 3),
    Merge((0.7, 0.6, 0.6), (0.5, 0.5, 1.0)),
    Merge((0.1, 0.6, 0.6), None),
)


@pytest.fixture
def archive(tmp_path) -> Path:
    return build(tmp_path / "a.sqlite", MERGES, chosen=1, budget={"evaluations": 4})


def mergefront(*arguments: object):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout


def test_help_lists_every_command_with_a_whole_sentence():
    text = mergefront("--help").stdout
    listed = text[text.index("Commands:") :].splitlines()[1:]
    assert [line.split()[0] for line in listed] == list(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in listed)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_arguments(command):
    result = mergefront(command, "--help")
    assert result.exit_code == 0
    assert "--help" in result.stdout


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from typer.testing import CliRunner; from optimizer.cli.app import app\n"
        "CliRunner().invoke(app, ['--help']); print(*sys.modules)"
    )
    loaded = {name.partition(".")[0] for name in run_python(code).split()}
    assert "optimizer" in loaded
    assert loaded.isdisjoint(
        {"torch", "transformers", "ray", "lm_eval", "numpy", "pydantic", "sqlalchemy", "cma"}
    )


@pytest.mark.slow  # a time is only worth something on a quiet machine
def test_help_answers_in_half_a_second():
    command = [sys.executable, "-m", "optimizer.cli", "--help"]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.5


def test_shell_completes_commands():
    code = "import sys; sys.argv = ['mergefront']; from optimizer.cli.app import main; main()"
    typed = {"COMP_WORDS": "mergefront rep", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | typed | {"_MERGEFRONT_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["report"], done.stderr


def test_version_is_printed():
    result = mergefront("--version")
    assert result.exit_code == 0
    assert result.stdout.startswith("mergefront ")


@pytest.mark.slow
def test_check_of_headers_prints_the_whole_report_as_json(tiny_job, tmp_path):
    path = tmp_path / "job.yaml"
    merge = {"groups": {"late": [{"layers": "1-"}], "others": ["rest"]}}
    path.write_text(json.dumps(tiny_job(merge=merge).model_dump(mode="json")))
    result = mergefront("check", path, "--headers-only", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["headers_only"] is True
    assert [group["name"] for group in record["groups"]] == ["late", "others"]
    assert record["tiers"]["tier"] == "host"
    assert {source["digest"] for source in record["sources"]} == {None}
    whole = json.loads(mergefront("check", path, "--json").stdout)
    assert whole["similarity"]["names"] == ["instruct", "code", "math"]
    assert all(source["digest"] for source in whole["sources"])
    assert record.keys() == whole.keys()


def test_status_says_how_far_a_search_is(archive):
    text = mergefront("status", archive).stdout
    assert f"finished; see it with `mergefront report {archive}`" in text
    assert "recorded 4, in flight or lost 0, budget 4" in text
    assert "evaluate: EvaluationError 1" in text


def test_status_as_json_has_a_state_in_one_word(archive, tmp_path):
    record = json.loads(mergefront("status", archive, "--json").stdout)
    assert record["state"] == "finished"
    assert record["verdict"]["sentence"] in mergefront("status", archive).stdout
    assert (
        record["verdict"] == json.loads(mergefront("report", archive, "--json").stdout)["verdict"]
    )
    begun = build(tmp_path / "b.sqlite", MERGES[:2])
    record = json.loads(mergefront("status", begun, "--json").stdout)
    assert record["state"] == "interrupted"
    assert record["evaluations"] == {"recorded": 2, "in flight or lost": 0, "budget": 96}
    with Archive.open(begun, writable=True):
        record = json.loads(mergefront("status", begun, "--json").stdout)
    assert record["state"] == "running"
    assert record["writer"] is not None


def test_front_is_printed_as_table_json_and_csv(archive):
    assert "strategy" not in mergefront("front", archive).stdout
    record = json.loads(mergefront("front", archive, "--json").stdout)
    assert [row["candidate"] for row in record["front"]] == [1, 2]
    assert record["objectives"] == ["instruct", "code", "math"]
    lines = list(csv.DictReader(io.StringIO(mergefront("front", archive, "--csv").stdout)))
    assert [line["candidate"] for line in lines] == ["1", "2"]


def test_front_of_a_split_that_was_not_scored_is_empty(tmp_path):
    path = build(tmp_path / "b.sqlite", MERGES[2:])
    result = mergefront("front", path, "--split", "report")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no merge was scored on the report split yet" in result.stderr
    assert (
        json.loads(mergefront("front", path, "--split", "report", "--json").stdout)["front"] == []
    )


def test_front_of_an_unknown_split_is_refused(archive):
    result = mergefront("front", archive, "--split", "test")
    assert result.exit_code == 2
    assert "`test` is no split; there are search, select, report" in result.stderr


def test_report_prints_the_verdict(archive):
    assert "beats every baseline" in mergefront("report", archive).stdout
    assert json.loads(mergefront("report", archive, "--json").stdout)["verdict"]["won"] is True


@pytest.mark.slow
@pytest.mark.parametrize(
    ("out", "names"),
    [
        (None, ["a-front.html", "a-front.png"]),
        ("pictures/front", ["front.html", "front.png"]),
        ("front.v2", ["front.v2.html", "front.v2.png"]),
        ("only.png", ["only.png"]),
        ("only.HTML", ["only.HTML"]),
    ],
)
def test_plot_writes_what_its_name_asks_for(archive, tmp_path, out, names):
    options = [] if out is None else ["--out", tmp_path / out]
    result = mergefront("plot", archive, *options)
    assert result.exit_code == 0, result.output
    written = [Path(line) for line in result.stdout.splitlines()]
    assert sorted(path.name for path in written) == names
    assert all(path.stat().st_size > 1000 for path in written)


def test_commands_that_read_change_nothing(archive):
    before = archive.read_bytes()
    for command in ("status", "front", "report"):
        assert mergefront(command, archive).exit_code == 0
    assert archive.read_bytes() == before


def test_interrupt_ends_a_command_as_shells_expect(archive, monkeypatch):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(read_commands, "status", interrupt)
    result = mergefront("status", archive)
    assert result.exit_code == 130
    assert "interrupted" in result.stderr


def test_unexpected_error_shows_its_traceback(archive, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(read_commands, "status", fail)
    assert isinstance(mergefront("status", archive).exception, ZeroDivisionError)


def test_settings_are_yaml_values_under_dotted_keys():
    settings = [
        "budget.hours=2.5",
        "workers.address=null",
        "merge.weight={low: 0, high: 2}",
        "a=b=c",
    ]
    assert options.read_overrides(settings, evaluations=7) == {
        "budget.hours": 2.5,
        "workers.address": None,
        "merge.weight": {"low": 0, "high": 2},
        "a": "b=c",
        "budget.evaluations": 7,
    }


def test_every_setting_that_cannot_be_read_is_named():
    with pytest.raises(ConfigError) as caught:
        options.read_overrides(["seed", "=3", "merge={"])
    assert [problem.path for problem in caught.value.problems] == ["--set", "--set", "--set merge"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5 * 10**9), ("500 mb", 5 * 10**8), ("1.5GiB", 3 * 2**29), ("1000", 1000)],
)
def test_shard_size_is_read_with_its_unit(text, size):
    assert export_commands.size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "5TB", "five"])
def test_shard_size_that_is_none_is_refused(text):
    with pytest.raises(ConfigError, match="expected a size such as 500MB"):
        export_commands.size_in_bytes(text)


def test_wishes_are_read_as_name_and_number():
    assert export_commands.numbers("--prefer", "math=0.5, code=2") == {"math": 0.5, "code": 2.0}
    assert export_commands.numbers("--prefer", None) is None


@pytest.mark.parametrize("text", ["math", "math=much", "math=1,,code=2", ""])
def test_wishes_that_cannot_be_read_are_refused(text):
    with pytest.raises(ConfigError, match="expected NAME=NUMBER"):
        export_commands.numbers("--prefer", text)
