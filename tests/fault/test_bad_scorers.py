"""A scorer that cannot work ends `mergefront check` and `run` with one clear error, without Ray."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

from configs.load import load_job
from tests.fault.refused_commands import begin_archive, mergefront, refused

GOOD = """
def score(model, tokenizer, items, *, batch_size, scale=1.0):
    tokens = [tokenizer(item["text"], return_tensors="pt") for item in items]
    return [scale * float(model(**part).logits.mean()) for part in tokens]
"""


@pytest.fixture
def check(tiny_job, no_ray, tmp_path, monkeypatch) -> Callable[..., Result]:
    """Check a job of one scorer; importing Ray fails, so that getting as far as that shows."""
    monkeypatch.chdir(tmp_path)
    Path("metrics.py").write_text(GOOD)
    Path("items.jsonl").write_text("".join(f'{{"text": "the {n}"}}\n' for n in range(16)))
    content = tiny_job(archive="archive.sqlite").model_dump(mode="json")
    content["evaluation"] = {"splits": {"search": 8, "select": 4, "report": 4}}

    def run(command: str = "check", **spec: object) -> Result:
        entry = {"scorer": "metrics.py:score", "items": "items.jsonl"} | spec
        content["objectives"] = {"skill": [entry]}
        Path("job.yaml").write_text(yaml.safe_dump(content))
        return mergefront(command, "job.yaml")

    return run


def assert_one_error(result: Result, *expected: str) -> None:
    refused(result, 2, *expected)
    assert not Path("archive.sqlite").exists()


def test_good_scorer_passes(check) -> None:
    result = check(options={"scale": 2.0})
    assert result.exit_code == 0, result.output
    assert "metrics.py:score" in result.stdout


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"scorer": "metric.py:score"}, "skill.score.scorer: {place}/metric.py cannot be read"),
        ({"scorer": "metrics.py:scores"}, "there is no `scores` in {place}/metrics.py"),
        ({"options": {"scael": 2}}, "got an unexpected keyword argument 'scael'; it is score(mod"),
        ({"items": "none.jsonl"}, "skill.score.items: {place}/none.jsonl cannot be read"),
        ({"options": {"scale": "x"}}, "raised TypeError"),
    ],
)
def test_wrong_key_is_one_error(check, tmp_path, spec, expected) -> None:
    assert_one_error(check(**spec), expected.format(place=tmp_path))


def test_file_named_like_a_module_is_pointed_out(check) -> None:
    Path("lonely_metrics.py").write_text(GOOD)
    assert_one_error(
        check(scorer="lonely_metrics:score"),
        "there is no module `lonely_metrics` among the installed ones",
        "did you mean `lonely_metrics.py:...`?",
    )


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "has no items"),
        (["{"], "every line must be a JSON object, found"),
        (['{"text": "a"}'], "has 1 distinct items, but the splits ask for 8 + 4 + 4 = 16"),
        (
            [json.dumps({"words": n}) for n in range(16)],
            "scorer `score` (metrics.py:score) raised KeyError: 'text' (metrics.py line 3)",
        ),
        (
            [json.dumps({"text": f"the {n}"} if n else {"words": n}) for n in range(16)],
            "raised KeyError: 'text'",
        ),
    ],
)
def test_wrong_items_are_one_error(check, lines, expected) -> None:
    Path("items.jsonl").write_text("\n".join(lines))
    assert_one_error(check(), "skill.score", expected)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["check", "run"])
@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("raise ValueError('not today')", "raised ValueError: not today (metrics.py line 2)"),
        ("return [float('nan')] * len(items)", "returned nan as the score of item 0 of 8"),
        ("return [0.0] * 3", "returned 3 scores for 8 items"),
        ("return ['good'] * len(items)", "returned a str as the score of item 0 of 8"),
        ("return sum(range(8))", "returned a int; return one number per item, 8 in all"),
    ],
)
def test_scorer_that_fails_is_found_before_a_worker_starts(check, command, body, expected) -> None:
    Path("metrics.py").write_text(
        f"def score(model, tokenizer, items, *, batch_size):\n    {body}\n"
    )
    assert_one_error(check(command), "objectives.skill.score", expected)


def test_search_does_not_go_on_with_a_scorer_that_means_something_else(check) -> None:
    assert check().exit_code == 0
    begin_archive(load_job(Path("job.yaml")), Path("job.yaml"))
    Path("metrics.py").write_text(GOOD.replace("scale *", "2 * scale *"))
    expected = "score: its definition differs from the archived one"
    refused(mergefront("resume", "archive.sqlite"), 4, expected)
    Path("metrics.py").write_text(GOOD)
    Path("items.jsonl").write_text("".join(f'{{"text": "a {n}"}}\n' for n in range(16)))
    expected = "score: its items of the search split differ from the archived ones"
    refused(mergefront("resume", "archive.sqlite"), 4, expected)
