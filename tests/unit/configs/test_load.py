"""From a job file to a job: paths, overrides, and every problem at once."""

from pathlib import Path

import pytest

from configs.errors import ConfigError, Problem
from configs.load import job_of, load_job

JOB = """\
models:
  base: org/base
  checkpoints:
    math: org/math
    code: org/code@v1
objectives:
  math: [gsm8k]
  code:
    tasks:
      - {task: mbpp, weight: 2}
      - humaneval
archive: runs/search.sqlite
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def write(text: str | bytes) -> Path:
        path = tmp_path / "job.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems_of(path: Path, overrides=None) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        load_job(path, overrides)
    assert str(path) in caught.value.title
    assert caught.value.exit_code == 2
    return caught.value.problems


def test_job_is_what_the_file_says(write) -> None:
    job = load_job(write(JOB + "seed: 7\nbudget: {evaluations: 5, hours: 1.5e-1}\n"))

    assert (job.seed, job.budget.evaluations, job.budget.hours) == (7, 5, 0.15)
    assert list(job.models.checkpoints) == ["math", "code"]
    assert job.models.checkpoints["code"].path == "org/code"
    assert job.models.checkpoints["code"].revision == "v1"
    assert [task.task for task in job.objectives["code"].tasks] == ["mbpp", "humaneval"]


# Paths


def test_local_paths_become_absolute(write, tmp_path) -> None:
    (tmp_path / "zoo" / "local").mkdir(parents=True)
    job = load_job(
        write(
            """
models:
  base: zoo/local
  checkpoints:
    hub: zoo/remote
    short: gpt2
    dotted: ./zoo/remote
    up: ../elsewhere
    rooted: /models//x/../y
    deep: a/b/c
    home: ~/models/z
    revision: zoo/local@v2
objectives: {math: gsm8k}
evaluation: {include_path: [tasks, /tasks], data_dir: data}
archive: runs/x.sqlite
"""
        )
    )

    assert job.models.base.path == str(tmp_path / "zoo/local")
    assert {name: source.path for name, source in job.models.checkpoints.items()} == {
        "hub": "zoo/remote",
        "short": "gpt2",
        "dotted": str(tmp_path / "zoo/remote"),
        "up": str(tmp_path.parent / "elsewhere"),
        "rooted": "/models/y",
        "deep": str(tmp_path / "a/b/c"),
        "home": str(Path.home() / "models/z"),
        "revision": str(tmp_path / "zoo/local"),
    }
    assert job.evaluation.include_path == [str(tmp_path / "tasks"), "/tasks"]
    assert job.evaluation.data_dir == str(tmp_path / "data")
    assert job.archive == str(tmp_path / "runs/x.sqlite")


def test_paths_are_relative_to_the_named_directory(write, tmp_path) -> None:
    job = load_job(write(JOB), directory=Path("/started/here"))

    assert job.archive == "/started/here/runs/search.sqlite"
    assert job.evaluation.data_dir is None


def test_address_of_a_database_stays_as_it_is(write) -> None:
    job = load_job(write(JOB), {"archive": "postgresql://host/team"})

    assert job.archive == "postgresql://host/team"


# Overrides


def test_overrides_win_over_the_file(write) -> None:
    job = load_job(
        write(JOB + "budget: {evaluations: 5, hours: 2}\nworkers:\n"),
        {
            "budget.evaluations": 9,
            "search.sigma": "0.5",
            "workers.count": 3,
            "models.checkpoints.new": "org/new",
            "seed": 4,
        },
    )

    assert (job.budget.evaluations, job.budget.hours, job.seed) == (9, 2.0, 4)
    assert (job.search.sigma, job.workers.count) == (0.5, 3)
    assert list(job.models.checkpoints) == ["math", "code", "new"]


def test_override_reaches_names_with_dots(write) -> None:
    text = JOB.replace("    math: org/math", "    v1.5: {path: org/math, revision: a}")
    job = load_job(write(text), {"models.checkpoints.v1.5.revision": "b"})

    assert job.models.checkpoints["v1.5"].revision == "b"


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("budjet.evaluations", 3, "unknown key `budjet`; did you mean `budget`?"),
        ("budget.evaluations", 0, "must be >= 1, found 0"),
        ("objectives.math.tasks", [], "`math` is a list, not a section"),
        ("seed.", 1, "names joined by single dots"),
        ("", 1, "names joined by single dots"),
    ],
)
def test_bad_override_is_a_problem_of_its_key(write, key, value, message) -> None:
    (problem,) = problems_of(write(JOB), {key: value})

    assert problem.path in (key, key.partition(".")[0])
    assert message in problem.message
    assert "line" not in problem.message


# Problems


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        (
            "searhc: {sigma: 0.1}",
            "searhc",
            "unknown key `searhc`; did you mean `search`? (line 13)",
        ),
        (
            "search: {budjet: 1, sigm: 1}",
            "search.sigm",
            "unknown key `sigm`; did you mean `sigma`? (line 13)",
        ),
        (
            "evaluations: 3",
            "evaluations",
            "unknown key `evaluations`; did you mean `budget.evaluations`? (line 13)",
        ),
        (
            "validation: {zzz: 3}",
            "validation.zzz",
            "unknown key `zzz`; known here: `candidates`, `leave_one_out` (line 13)",
        ),
        ("seed: many", "seed", "must be a whole number, found `many` (line 13)"),
        ("seed: 1.5", "seed", "must be a whole number, found 1.5 (line 13)"),
        ("seed: yes", "seed", "must be a number, found true (line 13)"),
        ("seed:", "seed", "must be a whole number, found nothing (line 13)"),
        ("seed: -1", "seed", "must be >= 0, found -1 (line 13)"),
        (
            "seed: 0x" + "f" * 99,
            "seed",
            "must be < 9223372036854775808, found a number of 396 bits",
        ),
        ("name: 2024-01-01", "name", "must be text, found a date; put quotes around it (line 13)"),
        ("budget: [1]", "budget", "must be a mapping (`key: value` lines), found a list (line 13)"),
        ("budget: {hours: .inf}", "budget.hours", "must be a finite number, found inf (line 13)"),
        ("budget: {hours: 0}", "budget.hours", "must be > 0, found 0 (line 13)"),
        ("workers: {device: cdua}", "workers.device", "must be `cpu` or `cuda`, found `cdua`"),
        (
            "evaluation: {allow_code_execution: perhaps}",
            "evaluation.allow_code_execution",
            "must be `true` or `false`, found `perhaps` (line 13)",
        ),
        ("evaluation: {include_path: x}", "evaluation.include_path", "must be a list, found `x`"),
        ("evaluation: {include_path: [1]}", "evaluation.include_path[0]", "must be text, found 1;"),
        (
            "merge: {drop_ratio: {low: 0, high: 1.0}}",
            "merge.drop_ratio",
            "high must be < 1 (got 1.0): dropping everything leaves nothing to rescale; use 0.99",
        ),
        ("merge: {weight: {low: 2, high: 1}}", "merge.weight", "`low <= high` must hold, but got"),
        ("merge: {groups: {all: ['(']}}", "merge.groups.all[0]", "`(` is not a regular expression"),
        ("merge: {groups: {}}", "merge.groups", "must have at least 1 entry"),
        ("merge: {groups: {'a b': [x]}}", "merge.groups", "name `a b` may hold letters"),
        ("workers: {device: cuda, gpus: 0}", "workers", "device is `cuda` but gpus is 0"),
        ("workers: {gpus: 1.5}", "workers", "gpus is 1.5; Ray reserves a fraction of one GPU, or"),
        (
            "workers: {count: 0}",
            "workers.count",
            "must be a whole number >= 1 or `auto`, found `0`",
        ),
        ("search: {preference: {maths: 1}}", "search.preference", "`maths` is no objective"),
        ("budget: {1: 2}", "budget", "a key must be text, found 1; put quotes around it (line 13)"),
        (
            r'name: "\ud800"',
            "name",
            r"`\ud800` is no text: half of a surrogate pair is no character",
        ),
        (r'budget: {"\udfff": 2}', "budget", r"`\udfff` is no text: half of a surrogate pair"),
    ],
)
def test_problem_names_the_key_and_what_to_write(write, text, path, message) -> None:
    found = {problem.path: problem.message for problem in problems_of(write(JOB + text))}

    assert message in found[path]


@pytest.mark.parametrize(
    ("old", "new", "path", "message"),
    [
        ("archive: runs/search.sqlite\n", "", "archive", "is missing: What records the search"),
        ("base: org/base", "base: 5", "models.base", "must be a mapping"),
        ("base: org/base", "base: ''", "models.base", "must not be empty, found empty text"),
        ("base: org/base", "base: {revision: x}", "models.base.path", "is missing"),
        ("math: [gsm8k]", "math: []", "objectives.math", "must have at least 1 entry"),
        ("math: [gsm8k]", "math: ['']", "objectives.math[0]", "must not be empty"),
        ("math: [gsm8k]", "math: ''", "objectives.math", "must not be empty"),
        (
            "weight: 2",
            "weight: 0",
            "objectives.code.tasks[0].weight",
            "must be > 0, found 0 (line 10",
        ),
        ("weight: 2", "wieght: 2", "objectives.code.tasks[0].wieght", "did you mean `weight`?"),
        ("humaneval", "gsm8k", "objectives", "task `gsm8k` is used twice"),
        (
            "    math: org/math",
            "    1: org/math",
            "models.checkpoints",
            "text, found 1; put quotes",
        ),
        ("    math: org/math", "    a b: org/math", "models.checkpoints", "name `a b` may hold"),
    ],
)
def test_problem_is_placed_where_the_person_wrote_it(write, old, new, path, message) -> None:
    assert old in JOB
    found = [
        problem
        for problem in problems_of(write(JOB.replace(old, new)))
        if problem.path == path and message in problem.message
    ]
    assert len(found) == 1


def test_all_problems_are_found_at_once(write) -> None:
    text = """\
modles:
  base: org/base
  checkpoints: {math: org/math}
  revison: x
objectives: {math: gsm8k, code: gsm8k}
serach: {sigma: 2, preference: {mathe: 1}}
budget: {evaluations: 0, ours: 1}
workers: {device: cuda, gpus: 0, count: yes}
merge: {drop_ratio: {high: 1}}
archive: x.sqlite
"""
    assert [str(problem) for problem in problems_of(write(text))] == [
        "modles: unknown key `modles`; did you mean `models`? (line 1)",
        "serach: unknown key `serach`; did you mean `search`? (line 6)",
        "budget.ours: unknown key `ours`; did you mean `hours`? (line 7)",
        "budget.evaluations: must be >= 1, found 0 (line 7)",
        "workers.count: must be a whole number >= 1 or `auto`, found `True` (line 8)",
        "workers: device is `cuda` but gpus is 0; reserve at least a share of a GPU (line 8)",
        "merge.drop_ratio: high must be < 1 (got 1.0): dropping everything leaves nothing to "
        "rescale; use 0.99 (line 9)",
        "models.revison: unknown key `revison`; known here: `base`, `checkpoints`, `vocabulary`",
        "search.sigma: must be <= 1, found 2",
        "search.preference: `mathe` is no objective; there are math, code",
    ]


def test_one_problem_is_counted_as_one(write) -> None:
    path = write(JOB + "seed: x\n")
    with pytest.raises(ConfigError) as caught:
        load_job(path)
    assert str(caught.value) == (
        f"1 problem in {path}\n  seed: must be a whole number, found `x` (line 13)"
    )


def test_job_of_takes_content_from_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r"^3 problems in the request\n"):
        job_of({}, name="the request")


def test_job_of_leaves_the_content_alone() -> None:
    content = {"models": {"chekpoints": {}}, "budget": {"evaluations": 1}}
    with pytest.raises(ConfigError):
        job_of(content, {"budget.evaluations": 2})
    assert content == {"models": {"chekpoints": {}}, "budget": {"evaluations": 1}}


def test_deep_nesting_is_a_problem_not_a_crash() -> None:
    deep: list[object] = []
    for _ in range(5000):
        deep = [deep]
    with pytest.raises(ConfigError, match="nested too deeply"):
        job_of({"models": deep})
