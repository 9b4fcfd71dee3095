"""What jobs over HTTP may ask for, and what is refused before anything is started."""

import json
import os
import sys
import time

import pytest
import yaml

from configs.errors import ConfigError
from optimizer.service.client import ServiceClient, ServiceRefusedError
from optimizer.service.processes import DetachedProcess
from optimizer.service.settings import ScorerRule, existing_scorers
from tests.unit.optimizer.service.conftest import TOKEN, URL
from tests.unit.optimizer.synthetic_archive import Merge, build


@pytest.fixture
def roots(tmp_path):
    """Directories of models, tasks and scorers; `tmp_path/models` is the model root."""
    for name in ("models/base", "models/code", "tasks", "scorers", "private"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
    (tmp_path / "models" / "way-out").symlink_to(tmp_path / "private", target_is_directory=True)
    (tmp_path / "scorers" / "good.py").write_text("")
    (tmp_path / "scorers" / "a:b").mkdir()
    (tmp_path / "scorers" / "a:b" / "c:d.py").write_text("")
    (tmp_path / "private" / "bad.py").write_text("")
    return tmp_path


@pytest.fixture
def job(roots):
    """A job that is allowed; keyword arguments replace sections."""

    def make(**sections) -> str:
        content = {
            "models": {"base": "base", "checkpoints": {"code": str(roots / "models" / "code")}},
            "objectives": {"math": ["gsm8k"]},
            "archive": "anywhere.sqlite",
        }
        return yaml.safe_dump(content | sections)

    return make


@pytest.fixture
def validate(settings, roots):
    """Checks the form of a job with a service that was started with some options."""
    from fastapi.testclient import TestClient

    from optimizer.service.app import create_app

    def check(text, changes=None, **options):
        with TestClient(create_app(settings(**options), TOKEN), base_url=URL) as http:
            return ServiceClient(URL, TOKEN, http=http).validate(text, changes, depth="form")

    return check


def names_in(directory):
    return sorted(path.name for path in directory.iterdir())


def paths_of(answer):
    return [problem.path for problem in answer.problems]


def test_allowed_job_is_valid(validate, job):
    answer = validate(job())
    assert (answer.valid, answer.problems) == (True, [])


def test_all_problems_are_said_at_once(validate, job):
    answer = validate(job(budget={"evaluations": 0}, serach={}, seed="x"))
    assert not answer.valid
    assert {"budget.evaluations", "serach", "seed"} == set(paths_of(answer))
    assert any("line" in problem.message for problem in answer.problems)


def test_everything_that_reaches_outside_is_refused_at_once(validate, job, roots):
    text = job(
        models={
            "base": "/etc",
            "checkpoints": {
                "up": "../private",
                "link": "way-out",
                "hub": "org/name",
                "web": "http://169.254.169.254/latest",
                "file": "file:///etc",
            },
        },
        objectives={
            "a": [{"scorer": f"{roots}/private/bad.py:score", "items": "/etc/passwd"}],
            "b": [{"scorer": "os:system", "items": "x.jsonl"}, f"{roots}/private/task.yaml"],
        },
        evaluation={
            "include_path": [str(roots / "tasks")],
            "data_dir": "/home/somebody",
            "allow_code_execution": True,
            "sandbox": "weak",
        },
        baselines={"dam": "/home/somebody/dam", "inside": str(roots / "models" / "dam")},
        workers={"address": "ray://evil.example:10001", "threads": 100_000},
        telemetry={
            "log_file": "/home/somebody/.bashrc",
            "tensorboard": {"directory": "/var/www"},
            "mlflow": {"uri": "http://evil.example"},
            "wandb": {"mode": "online", "directory": "/home/somebody"},
        },
    )
    assert set(paths_of(validate(text))) == {
        "models.base",
        *(f"models.checkpoints.{name}" for name in ("up", "link", "hub", "web", "file")),
        "objectives.a.tasks[0].scorer",
        "objectives.a.tasks[0].items",
        "objectives.b.tasks[0].scorer",
        "objectives.b.tasks[0].items",
        "objectives.b.tasks[1].task",
        "evaluation.include_path[0]",
        "evaluation.data_dir",
        "evaluation.allow_code_execution",
        "evaluation.sandbox",
        "baselines.dam",
        "workers.address",
        "workers.threads",
        "telemetry.log_file",
        "telemetry.tensorboard.directory",
        "telemetry.mlflow.uri",
        "telemetry.wandb.directory",
        "telemetry.wandb.mode",
    }


def test_operator_allows_scorers_tasks_hub_and_urls(validate, job, roots):
    text = job(
        models={
            "base": "org/base",
            "checkpoints": {"a": "s3://bucket/models/a", "b": str(roots / "models" / "code")},
        },
        objectives={
            "a": [{"scorer": f"{roots}/scorers/good.py:score", "items": f"{roots}/tasks/a.jsonl"}],
            "b": [{"scorer": "metrics.text:f", "items": f"{roots}/models/b.jsonl"}],
        },
        evaluation={"include_path": [str(roots / "tasks")], "allow_code_execution": True},
    )
    allowed = {
        "model_urls": ("s3://bucket/models/",),
        "hub": ("org/",),
        "scorers": existing_scorers("", [f"{roots}/scorers/good.py:score", "metrics.text"]),
        "task_dirs": (roots / "tasks",),
        "allow_code_execution": True,
    }
    answer = validate(text, **allowed)
    assert answer.valid, answer.problems
    others = [f"{roots}/scorers/good.py:other", "metrics.text:g"]
    other = {**allowed, "scorers": existing_scorers("", others)}
    assert paths_of(validate(text, **other)) == [
        "objectives.a.tasks[0].scorer",
        "objectives.b.tasks[0].scorer",
    ]
    for url in ("s3://bucket/models/../x", "s3://bucket/models-evil/a", "s3://bucket/models/%2e"):
        models = {"base": "org/base", "checkpoints": {"a": url}}
        assert paths_of(validate(job(models=models), **allowed)) == ["models.checkpoints.a"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (("metrics", "metrics:f"), True),
        (("metrics", "metrics:os.system"), False),
        (("metrics", "metrics.text:f"), False),
        (("metrics", "{scorers}/good.py:f"), False),
        (("metrics:Scores.mean", "metrics:Scores.mean"), True),
        (("metrics:Scores.mean", "metrics:Scores"), False),
        (("{scorers}/good.py", "{scorers}/good.py:f"), True),
        (("{scorers}/good.py", "{scorers}/good.py:subprocess.run"), False),
        (("{scorers}/good.py:a.b", "{scorers}/good.py:a.b"), True),
        (("{scorers}/good.py:a.b", "{scorers}/good.py:b"), False),
        (("{scorers}", "{scorers}/good.py:f"), True),
        (("{scorers}", "{scorers}/good.py:os.system"), False),
        (("{scorers}", "{scorers}/../private/bad.py:f"), False),
        (("{scorers}/a:b", "{scorers}/a:b/c:d.py:f"), True),
        (("{scorers}/a:b/", "{scorers}/good.py:f"), False),
        (("{scorers}/a:b/c:d.py", "{scorers}/a:b/c:d.py:f"), True),
        (("{scorers}/a:b/c:d.py:f", "{scorers}/a:b/c:d.py:f"), True),
        (("{scorers}/a:b/c:d.py:f", "{scorers}/a:b/c:d.py:g"), False),
    ],
)
def test_scorer_is_allowed_as_far_as_was_said(validate, job, roots, rule, expected):
    allowed, scorer = (text.format(scorers=roots / "scorers") for text in rule)
    task = {"scorer": scorer, "items": f"{roots}/models/items.jsonl"}
    answer = validate(
        job(objectives={"a": [task]}), scorers=existing_scorers("--allow-scorer", [allowed])
    )
    assert paths_of(answer) == ([] if expected else ["objectives.a.tasks[0].scorer"])


def test_operator_names_directories_of_scorers_with_a_slash(roots, monkeypatch):
    monkeypatch.chdir(roots)
    scorers = roots.resolve() / "scorers"
    said = ["scorers", "scorers:f", "scorers/", "scorers/good.py", "./scorers/good.py:f"]
    rules = existing_scorers("--allow-scorer", said)
    assert rules == (
        ScorerRule("scorers"),
        ScorerRule("scorers", "f"),
        ScorerRule(scorers),
        ScorerRule(scorers / "good.py"),
        ScorerRule(scorers / "good.py", "f"),
    )
    assert [str(rule) for rule in rules[1:3]] == ["scorers:f", str(scorers)]
    wrong = ["good.py", "metrics", "nothing/", "metrics:", "a b:f", "scorers/good.py:f g", ":f"]
    with pytest.raises(ConfigError) as refused:
        existing_scorers("--allow-scorer", wrong)
    messages = [problem.message for problem in refused.value.problems]
    assert [text.partition(": ")[0] for text in messages if "no such file" in text] == [
        str(roots.resolve() / name) for name in ("good.py", "nothing", "scorers/good.py:f g")
    ]
    assert [text.rpartition("found ")[2] for text in messages if "expected" in text] == [
        "`metrics:`", "`a b:f`", "`:f`",
    ]  # fmt: skip


def test_logs_go_below_a_directory_of_their_own(validate, job, archives):
    good = {"log_file": str(archives / "telemetry" / "a.jsonl")}
    assert validate(job(telemetry=good)).valid
    # Lines of text appended to it would destroy the archive.
    bad = {"log_file": str(archives / "done" / "archive.sqlite")}
    assert paths_of(validate(job(telemetry=bad))) == ["telemetry.log_file"]


def test_changes_are_checked_like_the_job(validate, job):
    answer = validate(job(), {"models.base": "/etc", "telemetry.log_file": "/tmp/x"})
    assert set(paths_of(answer)) == {"models.base", "telemetry.log_file"}
    assert paths_of(validate(job(), {"a..b": 1})) == ["a..b"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [1]\n" + "".join(f"{k}: &{k} [*{p},*{p},*{p},*{p},*{p},*{p},*{p},*{p}]\n"
         for p, k in zip("abcdefghi", "bcdefghij", strict=True)), "aliases unfold"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a\n  b: *a\n", "contains itself"),
        ("x" * 199_999, "mapping"),
        ("a: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("models: {checkpoints: {'<b>x</b>': x}}\nobjectives: {a: gsm8k}\n", "may hold letters"),
    ],
)  # fmt: skip
def test_yaml_that_is_a_trap_costs_little_and_is_refused(validate, text, said):
    began = time.process_time()
    answer = validate(text)
    assert time.process_time() - began < 5
    assert not answer.valid
    assert said in json.dumps(answer.model_dump(mode="json"))


def test_job_that_is_too_long_is_refused(client):
    with pytest.raises(ServiceRefusedError) as refused:
        client.validate("#" * 200_001, depth="form")
    assert refused.value.status == 422
    answer = client.validate("# " + "\u20ac" * 150_000, depth="form")
    assert "at most 200000 are read" in answer.problems[0].message


def test_submitting_a_bad_job_makes_nothing(client, archives, job):
    before = names_in(archives)
    with pytest.raises(ServiceRefusedError) as refused:
        client.submit(job(models={"base": "/etc", "checkpoints": {"a": "/var"}}))
    assert (refused.value.status, refused.value.kind_there) == (422, "config")
    assert [problem.path for problem in refused.value.problems] == [
        "models.base",
        "models.checkpoints.a",
    ]
    assert names_in(archives) == before


def test_what_does_not_run_is_not_stopped(client, archives):
    before = names_in(archives / "done")
    with pytest.raises(ServiceRefusedError, match="does not run") as refused:
        client.stop("done")
    assert (refused.value.status, refused.value.kind_there) == (409, "conflict")
    assert names_in(archives / "done") == before


def test_what_another_process_writes_is_neither_stopped_resumed_nor_deleted(client, archives):
    from optimizer.archive.archive import Archive

    with Archive.open(archives / "done" / "archive.sqlite", writable=True):
        assert client.search("done").state == "running"
        assert client.search("done").runner == "elsewhere"
        for attempt in (client.stop, client.resume, client.delete):
            with pytest.raises(ServiceRefusedError, match=f"process {os.getpid()}") as refused:
                attempt("done")
            assert refused.value.status == 409


def test_resume_changes_budgets_and_nothing_else(client):
    with pytest.raises(ServiceRefusedError) as refused:
        client.resume("done", {"seed": 1, "models.base": "/etc", "workers.address": "auto"})
    assert len(refused.value.problems) == 3


def test_resume_asks_what_the_operator_allows(client):
    # The archive was not made over HTTP, and its models are elsewhere.
    with pytest.raises(ServiceRefusedError, match="does not allow") as refused:
        client.resume("done", {"budget.evaluations": 10})
    assert refused.value.problems[0].path == "models.base"


def test_nothing_more_is_started_than_may_run(settings, job, archives):
    from fastapi.testclient import TestClient

    from optimizer.service.app import create_app

    process = DetachedProcess(archives / "done" / "archive.sqlite.service")
    process.start([sys.executable, "-c", "import time; time.sleep(60)"])
    before = names_in(archives)
    text = yaml.safe_dump(yaml.safe_load(job()) | {"budget": {"evaluations": 3}})
    with TestClient(create_app(settings(max_searches=1), TOKEN), base_url=URL) as http:
        client = ServiceClient(URL, TOKEN, http=http)
        try:
            with pytest.raises(ServiceRefusedError, match=r"1 searches.*at most 1 may") as refused:
                client.submit(text)
            assert (refused.value.status, refused.value.kind_there) == (429, "busy")
            assert names_in(archives) == before
        finally:
            process.kill()
        # As soon as there is room it is taken.
        begun = client.submit(text)
        try:
            assert set(names_in(archives)) == {*before, begun.id}
        finally:
            client.stop(begun.id, force=True)


def test_fork_needs_an_archive_to_begin_with(client, archives, job):
    (archives / "begun" / "archive.sqlite.service").mkdir(parents=True)
    with pytest.raises(ServiceRefusedError, match="no archive yet"):
        client.fork("begun", job=job())


def test_delete_wants_the_id_once_more(as_program, archives):
    url = "/api/v1/searches/done"
    assert as_program.delete(url).status_code == 422
    assert as_program.delete(url, params={"confirm": "other"}).status_code == 400
    assert (archives / "done" / "archive.sqlite").exists()
    assert as_program.delete(url, params={"confirm": "done"}).status_code == 200
    assert not (archives / "done").exists()


def test_delete_leaves_what_is_not_of_the_search(client, archives):
    (archives / "done" / "notes.txt").write_text("mine")
    build(archives / "done" / "other.sqlite", [Merge((0, 0, 0), (0.5,) * 3)])
    client.delete("done")
    left = sorted(path.name for path in (archives / "done").iterdir())
    assert "notes.txt" in left
    assert "other.sqlite" in left
    assert not any(name.startswith("archive.sqlite") for name in left)


def test_export_of_what_was_never_scored_is_refused(client):
    with pytest.raises(ServiceRefusedError, match="no scored recipe") as refused:
        client.export("done", recipe_id="ffff")
    assert (refused.value.status, refused.value.problems[0].path) == (422, "recipe_id")
    with pytest.raises(ServiceRefusedError, match="lower one"):
        client.export("done", floors={"math": 3.0})
    assert client.exports("done") == []
