"""Calling scorers on a live model: what they are given, and what becomes of what they return."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import EvaluationError
from configs.evaluation import EvaluationSettings, Objective
from evaluators.evaluator import Evaluation
from evaluators.manifest import Manifest, item_id
from evaluators.python_scorer import ScorerEvaluator
from evaluators.scorer_suite import load_scorers

ITEMS = [{"text": f"the {n} and the {n}", "words": [n]} for n in range(6)]
IDS = tuple(item_id(item) for item in ITEMS)
CALLED = "def f(model, tokenizer, items, *, batch_size, **options):\n    "


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., ScorerEvaluator]:
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))

    def make_one(body: str, manifest: Manifest | None = None, **spec: object) -> ScorerEvaluator:
        path = tmp_path / "metrics.py"
        path.write_text(f"import random, numpy, torch\n{CALLED}" + body.replace("\n", "\n    "))
        entry = {"scorer": f"{path}:f", "items": str(tmp_path / "items.jsonl")} | spec
        loaded, problems = load_scorers({"skill": Objective(tasks=[entry])}, EvaluationSettings())
        assert problems == []
        return ScorerEvaluator(loaded, batch_size=5, manifest=manifest)

    return make_one


@pytest.fixture
def score(make, live) -> Callable[..., np.ndarray]:
    def score_once(body: str, **spec: object) -> np.ndarray:
        return scores_of(make(body, **spec).evaluate(live, {"f": IDS}))

    return score_once


def scores_of(evaluation: Evaluation) -> np.ndarray:
    return evaluation.task_scores["f"].values


def test_scorer_sees_the_weights_that_are_live_now(make, live, model_directories) -> None:
    evaluator = make(
        "tokens = [tokenizer(item['text'], return_tensors='pt') for item in items]\n"
        "return [model(**t).logits.mean() for t in tokens]"
    )
    first = scores_of(evaluator.evaluate(live, {"f": IDS}))
    live.swap(model_directories[1])
    second = scores_of(evaluator.evaluate(live, {"f": IDS}))
    live.swap(model_directories[0])
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(scores_of(evaluator.evaluate(live, {"f": IDS})), first)
    with torch.no_grad():
        text = live.tokenizer(ITEMS[2]["text"], return_tensors="pt")
        assert first[2] == float(live.model(**text).logits.mean())


def test_scores_follow_the_items_that_were_asked_for(make, live) -> None:
    evaluator = make("return [item['words'][0] for item in items]")
    part = evaluator.evaluate(live, {"f": (IDS[4], IDS[1])}).task_scores["f"]
    assert (part.item_ids, part.values.tolist()) == ((IDS[4], IDS[1]), [4.0, 1.0])


def test_scorer_is_told_batch_size_and_options(score) -> None:
    found = score("return [batch_size * options['k'][0]] * len(items)", options={"k": [3]})
    assert found.tolist() == [15.0] * 6


@pytest.mark.parametrize(
    "returned",
    [
        "list(range(6))",
        "tuple(range(6))",
        "numpy.arange(6, dtype=numpy.float32)",
        "numpy.arange(6).tolist()",
        "list(numpy.arange(6))",
        "torch.arange(6, dtype=torch.bfloat16)",
        "list(torch.arange(6.0))",
        "[False, True, 2, 3.0, numpy.float16(4), torch.tensor([5])]",
    ],
)
def test_any_numbers_will_do(score, returned: str) -> None:
    found = score(f"return {returned}")
    assert found.dtype == np.float64
    assert found.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", r"scorer `f` \(metrics.py:f\) returned a NoneType; .* per item, 6 in all"),
        ("return 0.5", "returned a float; return one number per item"),
        ("return '012345'", "returned a str; return"),
        ("return {1: 2}", "returned a dict; return"),
        ("return (n for n in range(6))", "returned a generator; return"),
        ("return torch.zeros(6, 1)", "returned a Tensor; return one number per item"),
        ("return numpy.zeros((6, 2))", "returned a ndarray; return one number per item"),
        ("return [1.0] * 5", "returned 5 scores for 6 items"),
        ("return numpy.zeros(7)", "returned 7 scores for 6 items"),
        ("return [1, 2, 'x', 4, 5, 6]", "returned a str as the score of item 2 of 6"),
        ("return [1, 2, 3, [4], 5, 6]", "returned a list as the score of item 3 of 6"),
        ("return [1j] * 6", "returned a complex as the score of item 0 of 6"),
        ("return numpy.array(['a'] * 6)", "returned a str as the score of item 0"),
        ("return [1, 2, float('nan'), 4, 5, 6]", "returned nan as the score of item 2 of 6"),
        ("return torch.tensor([0, 1, -torch.inf, 1, 1, 1])", "returned -inf .* of item 2 of 6"),
        ("return [10**400] * 6", "returned inf as the score of item 0"),
        ("return items[0]['nothing']", r"raised KeyError: 'nothing' \(metrics.py line 3\)"),
        ("x = 1\nraise ValueError('odd')", r"raised ValueError: odd \(metrics.py line 4\)"),
        ("model.train()\nreturn [0] * 6", "left the model in training mode"),
    ],
)
def test_failure_is_an_error_that_says_what_and_where(score, live, body: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        score(body)
    assert not live.model.training


def test_lack_of_memory_keeps_its_name_for_the_worker(score) -> None:
    with pytest.raises(torch.OutOfMemoryError):
        score("raise torch.OutOfMemoryError('full')")


def test_scorer_that_runs_out_of_memory_is_given_smaller_batches(make, live, caplog) -> None:
    evaluator = make(
        "items[0]['words'].append(0)\n"
        "if batch_size > 1: raise torch.OutOfMemoryError('full')\n"
        "return [len(item['words']) + batch_size for item in items]"
    )
    for _ in range(2):
        assert scores_of(evaluator.evaluate(live, {"f": IDS})).tolist() == [3.0] + [2.0] * 5
    # 5, 2, 1 rows; the second evaluation begins where the first ended.
    assert [record.args[1] for record in caplog.records] == [2, 1]


def test_global_draws_are_seeded_and_leave_no_trace(make, live) -> None:
    evaluator = make("return [random.random(), numpy.random.random(), *torch.rand(4)]")

    def state() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002 - guarded

    before = state()
    first = scores_of(evaluator.evaluate(live, {"f": IDS}))
    assert state() == before
    random.random()
    torch.rand(3)
    np.testing.assert_array_equal(scores_of(evaluator.evaluate(live, {"f": IDS})), first)
    assert len(set(first)) == 6


def test_what_a_scorer_changes_is_its_own(make, live) -> None:
    evaluator = make(
        "tokenizer.padding_side = 'left'\n"
        "value = len(items[0]['words']) + len(options['k'])\n"
        "items[0]['words'].append(1); options['k'].append(1)\n"
        "return [value] * 6",
        options={"k": []},
    )
    side = live.tokenizer.padding_side
    live.tokenizer.padding_side = "right"
    try:
        for _ in range(2):
            assert scores_of(evaluator.evaluate(live, {"f": IDS})).tolist() == [1.0] * 6
        assert live.tokenizer.padding_side == "right"
    finally:
        live.tokenizer.padding_side = side


def test_nothing_is_recorded_for_gradients(score) -> None:
    body = "model.requires_grad_(True)\nh = model(**tokenizer('a', return_tensors='pt')).logits\n"
    assert score(body + "return [h.requires_grad] * 6").tolist() == [0.0] * 6


def test_wrong_use_is_refused(make, live) -> None:
    evaluator = make("return [0] * len(items)")
    with pytest.raises(EvaluationError, match="item `nowhere` of scorer `f` is not in"):
        evaluator.evaluate(live, {"f": ("nowhere",)})
    with pytest.raises(ValueError, match="has no items to score"):
        evaluator.evaluate(live, {"f": ()})
    live.model.train()
    with pytest.raises(ValueError, match="in training mode"):
        evaluator.evaluate(live, {"f": IDS})


def test_scorer_that_changed_since_the_job_was_checked_is_refused(make) -> None:
    same = make("return [0] * len(items)")
    manifest = Manifest({}, {"f": same.scorers["f"].definition})
    make("return [0] * len(items)", manifest)
    with pytest.raises(EvaluationError, match="definition of `f` changed since the job"):
        make("return [1] * len(items)", manifest)
