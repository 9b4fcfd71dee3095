"""Scorers in a job file: their form, where their files are, and what is said of wrong ones."""

from pathlib import Path

import pytest

from configs.errors import ConfigError, Problem
from configs.evaluation import TaskSpec
from configs.load import job_of
from configs.schema import JobConfig
from configs.scorers import ScorerSpec
from optimizer.job_changes import changed_keys

SCORER = {"scorer": "metrics.py:similarity", "items": "pairs.jsonl"}


def job(*entries: object, **sections: object) -> JobConfig:
    content = {
        "models": {"base": "org/base", "checkpoints": {"a": "org/a"}},
        "objectives": {"skill": list(entries)},
        "archive": "a.sqlite",
    }
    return job_of(content | sections, directory=Path("/jobs"))


def problems(*entries: object) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        job(*entries)
    return caught.value.problems


def test_scorers_stand_beside_tasks_in_their_order() -> None:
    objective = job("gsm8k", SCORER, {"task": "mbpp", "weight": 2}).objectives["skill"]
    assert [spec.task for spec in objective.tasks] == ["gsm8k", "similarity", "mbpp"]
    assert [type(spec) for spec in objective.tasks] == [TaskSpec, ScorerSpec, TaskSpec]
    assert [spec.task for spec in objective.lm_eval_tasks] == ["gsm8k", "mbpp"]
    assert [spec.task for spec in objective.scorers] == ["similarity"]


def test_single_scorer_needs_no_list_of_its_own() -> None:
    content = job(objectives={"skill": {"tasks": [SCORER]}})
    assert content.objectives == job(SCORER).objectives


def test_files_are_found_from_where_the_job_is_started() -> None:
    (spec,) = job(SCORER).objectives["skill"].scorers
    assert spec.scorer == "/jobs/metrics.py:similarity"
    assert spec.items == "/jobs/pairs.jsonl"
    (spec,) = job(SCORER, evaluation={"data_dir": "data"}).objectives["skill"].scorers
    assert spec.items == "/jobs/data/pairs.jsonl"
    absolute = {"scorer": "/m/metrics.py:f", "items": "/m/pairs.jsonl"}
    (spec,) = job(absolute, evaluation={"data_dir": "data"}).objectives["skill"].scorers
    assert (spec.scorer, spec.items) == ("/m/metrics.py:f", "/m/pairs.jsonl")


def test_importable_names_stay_as_they_are() -> None:
    (spec,) = job(SCORER | {"scorer": "pkg.metrics:f"}).objectives["skill"].scorers
    assert (spec.scorer, spec.module, spec.function) == ("pkg.metrics:f", "pkg.metrics", "f")
    assert not spec.is_file
    assert spec.metric == "pkg.metrics:f"


def test_tables_name_a_scorer_without_its_directory() -> None:
    (spec,) = job(SCORER | {"name": "pairs"}).objectives["skill"].scorers
    assert (spec.task, spec.metric) == ("pairs", "metrics.py:similarity")


def test_job_with_scorers_survives_the_archive() -> None:
    made = job(SCORER | {"options": {"pooling": "mean", "layers": [1, 2], "deep": {"a": None}}})
    assert JobConfig.model_validate(made.model_dump(mode="json")) == made


def test_option_is_part_of_what_is_searched() -> None:
    before, after = (job(SCORER | {"options": {"depth": depth}}) for depth in (1, 2))
    assert before.digest != after.digest
    assert changed_keys(before, after) == [
        Problem("objectives.skill.tasks[0].options.depth", "1 -> 2")
    ]


def test_names_are_used_once_whatever_has_them() -> None:
    (problem,) = problems("similarity", SCORER)
    assert "`similarity` is used twice" in problem.message


@pytest.mark.parametrize(
    ("entry", "path", "message"),
    [
        (SCORER | {"wieght": 1}, ".wieght", "unknown key `wieght`; did you mean `weight`?"),
        ({"scorrer": "a:b", "items": "x"}, ".scorrer", "did you mean `scorer`?"),
        (SCORER | {"task": "gsm8k"}, ".task", "unknown key `task`; known here: `scorer`, `items`"),
        ({"scorer": "a:b"}, ".items", "is missing: JSONL file, one object per item"),
        (SCORER | {"items": ""}, ".items", "must not be empty"),
        (SCORER | {"scorer": "metrics"}, ".scorer", "must be `file.py:function` or"),
        (SCORER | {"scorer": "metrics.py"}, ".scorer", "must be `file.py:function` or"),
        (SCORER | {"scorer": "metrics:"}, ".scorer", "must be `file.py:function` or"),
        (SCORER | {"scorer": "a/b:f"}, ".scorer", "found `a/b:f`"),
        (SCORER | {"scorer": 3}, ".scorer", "must be text"),
        (SCORER | {"name": "a b"}, ".name", "may hold letters, digits"),
        (SCORER | {"weight": 0}, ".weight", "must be > 0, found 0"),
        (SCORER | {"options": [1]}, ".options", "must be a mapping"),
        (SCORER | {"options": {"a": float("nan")}}, ".options.a", "must be a finite number"),
        ({"task": "gsm8k", "wieght": 1}, ".wieght", "did you mean `weight`?"),
        (7, "", "must be a mapping"),
    ],
)
def test_wrong_entry_is_explained_at_its_key(entry: object, path: str, message: str) -> None:
    found = problems("gsm8k", entry)
    matching = [p for p in found if p.path == f"objectives.skill[1]{path}"]
    assert matching, found
    assert message in matching[0].message


def test_truth_value_is_no_weight() -> None:
    with pytest.raises(ConfigError, match=r"tasks\[0\]\.weight: must be a number, found true"):
        job(objectives={"skill": {"tasks": [SCORER | {"weight": True}]}})


def test_truth_value_is_an_option() -> None:
    content = job(objectives={"skill": {"tasks": [SCORER | {"options": {"a": True}}]}})
    assert content.objectives["skill"].scorers[0].options == {"a": True}
