"""The difference of two jobs names every key, and nothing that may change on resume."""

import json

import pytest

from configs.errors import JobChangedError
from configs.schema import OPERATIONAL_KEYS, JobConfig
from optimizer.archive.records import job_to_json, json_to_job
from optimizer.job_changes import changed_keys, continued

JOB = {
    "name": "a",
    "models": {"base": "org/base", "checkpoints": {"math": "org/math", "code": "org/code"}},
    "objectives": {"math": ["gsm8k"], "code": [{"task": "mbpp"}, {"task": "humaneval"}]},
    "merge": {"groups": {"mlp": [".*mlp.*"], "rest": ["(?!.*mlp).*"]}},
    "archive": "x.sqlite",
}


def job(**changes: object) -> JobConfig:
    return JobConfig.model_validate(JOB | changes)


def test_equal_jobs_do_not_differ() -> None:
    assert changed_keys(job(), job()) == []


def test_archive_from_before_samples_goes_on_without_whatever_the_job_leaves_open() -> None:
    content = json.loads(job_to_json(job()))
    del content["search"]["racing"]["sampling"]
    archived = json_to_job(json.dumps(content))
    assert archived.search.racing.sampling is False
    for racing in ({}, {"sampling": "auto"}, {"sampling": False}):
        again = continued(archived, job(search={"racing": racing}), "another search")
        assert again.search.racing.sampling is False
    with pytest.raises(JobChangedError, match=r"search\.racing\.sampling: false -> true"):
        continued(archived, job(search={"racing": {"sampling": True}}), "another search")


def test_archive_from_before_samples_had_a_number_of_items_goes_on_with_a_share() -> None:
    content = json.loads(job_to_json(job()))
    del content["search"]["racing"]["sample_items"]
    archived = json_to_job(json.dumps(content))
    assert archived.search.racing.sample_items is None
    assert archived.search.racing.sampling == "auto"
    for racing in ({}, {"sampling": "auto"}, {"sample_items": None}):
        again = continued(archived, job(search={"racing": racing}), "another search")
        assert again.search.racing.sample_items is None
    with pytest.raises(JobChangedError, match=r"search\.racing\.sample_items: null -> 16"):
        continued(archived, job(search={"racing": {"sample_items": 16}}), "another search")


def test_archive_from_before_who_was_screened_was_sampled_goes_on_scoring_everything() -> None:
    content = json.loads(job_to_json(job()))
    del content["search"]["screening"]["sampling"]
    archived = json_to_job(json.dumps(content))
    assert archived.search.screening.sampling is False
    for screening in ({}, {"sampling": False}, {"candidates": 6}):
        again = continued(archived, job(search={"screening": screening}), "another search")
        assert again.search.screening.sampling is False
    with pytest.raises(JobChangedError, match=r"search\.screening\.sampling: false -> true"):
        continued(archived, job(search={"screening": {"sampling": True}}), "another search")


def test_archive_that_says_whether_it_samples_is_held_to_it() -> None:
    archived = json_to_job(job_to_json(job(search={"racing": {"sampling": False}})))
    with pytest.raises(JobChangedError, match=r"search\.racing\.sampling: false -> auto"):
        continued(archived, job(), "another search")


def test_operational_keys_may_change() -> None:
    other = job(
        name="b",
        archive="y.sqlite",
        baselines={"mine": "recipe.json"},
        budget={"evaluations": 7},
        workers={"count": 9, "device": "cuda", "gpus": 1},
        telemetry={"log_file": "log.jsonl", "metrics": False, "wandb": {}},
    )
    assert {
        "name", "archive", "baselines", "budget", "validation", "workers", "telemetry"
    } == OPERATIONAL_KEYS  # fmt: skip
    assert job().digest == other.digest
    assert changed_keys(job(), other) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"evaluation": {"splits": {"search": 128}, "apply_chat_template": True}},
            [
                "evaluation.splits.search: 64 -> 128",
                "evaluation.apply_chat_template: false -> true",
            ],
        ),
        (
            {"models": {"checkpoints": {"math": "org/maths", "extra": "org/e"}}},
            [
                'models.base: {"path": "org/base", "revision": null} -> null',
                "models.checkpoints.math.path: org/math -> org/maths",
                'models.checkpoints.code: {"path": "org/code", "revision": null} -> (absent)',
                'models.checkpoints.extra: (absent) -> {"path": "org/e", "revision": null}',
            ],
        ),
        (
            {"objectives": {"math": ["gsm8k"], "code": [{"task": "mbpp", "weight": 2}, "arc"]}},
            [
                "objectives.code.tasks[0].weight: 1.0 -> 2.0",
                "objectives.code.tasks[1].task: humaneval -> arc",
            ],
        ),
        (
            {"merge": {"groups": {"mlp": [".*mlp.*", "x"], "rest": ["(?!.*mlp).*"]}}},
            ['merge.groups.mlp: [".*mlp.*"] -> [".*mlp.*", "x"]'],
        ),
        ({"search": {"population_size": 12}}, ["search.population_size: null -> 12"]),
    ],
)
def test_every_change_is_named(changes, expected) -> None:
    if "models" in changes:
        changes = changes | {"merge": {**JOB["merge"], "method": "linear"}}
        expected = [*expected, "merge.method: dare_linear -> linear"]
    assert [str(problem) for problem in changed_keys(job(), job(**changes))] == expected


@pytest.mark.parametrize(
    ("section", "order"),
    [
        ("models.checkpoints", "math, code -> code, math"),
        ("objectives", "math, code -> code, math"),
        ("merge.groups", "mlp, rest -> rest, mlp"),
    ],
)
def test_another_order_of_genes_or_columns_is_a_change(section, order) -> None:
    top, _, inner = section.partition(".")
    content = JOB[top]
    if inner:
        changed = content | {inner: dict(reversed(content[inner].items()))}
    else:
        changed = dict(reversed(content.items()))

    (problem,) = changed_keys(job(), job(**{top: changed}))
    assert str(problem) == f"{section}: order {order}"


def test_order_of_a_preference_means_nothing() -> None:
    assert (
        changed_keys(
            job(search={"preference": {"math": 1, "code": 2}}),
            job(search={"preference": {"code": 2, "math": 1}}),
        )
        == []
    )


def test_whether_scorers_are_tried_may_change_on_resume_and_what_scores_may_not() -> None:
    scorer = {"scorer": "metrics.py:f", "items": "x.jsonl", "options": {"dry_run": 1}}

    def scored(**keys: object) -> JobConfig:
        return job(objectives={"math": ["gsm8k"], "own": [scorer | keys]})

    before, after = scored(), scored(dry_run=False)
    assert changed_keys(before, after) == []
    assert before.digest == after.digest
    for keys in ({"weight": 2}, {"options": {"dry_run": 2}}, {"per_item": True}):
        assert len(changed_keys(before, scored(**keys))) == 1
        assert before.digest != scored(**keys).digest
    # The archived job still says that it was not tried.
    assert after.model_dump(mode="json")["objectives"]["own"]["tasks"][0]["dry_run"] is False
