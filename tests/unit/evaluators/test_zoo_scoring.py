"""Scores of the zoo's tasks, on answers that are right, wrong and malformed."""

from __future__ import annotations

import pytest

from evaluators.tasks.zoo import scoring

WORDS = ["red", "cat", "sun"]


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        (" 3 + 4 = 7, 7 - 2 = 5 #### 5", 1.0),
        ("####5", 1.0),
        ("#### 15", 0.0),
        ("#### 5.5 no: #### 6", 1.0),
        ("the answer is 5", 0.0),
        ("", 0.0),
        ("#### ", 0.0),
    ],
)
def test_math_score_reads_the_first_number_after_the_mark(answer: str, score: float) -> None:
    assert scoring.math_results({"target": "5"}, [answer]) == {"exact_match": score}


@pytest.mark.parametrize(
    ("constraint", "response", "holds"),
    [
        ("upper", "RED CAT SUN", True),
        ("upper", "RED CAT sun", False),
        ("reverse", "sun cat red", True),
        ("reverse", "fox sun cat red", True),
        ("reverse", "red cat sun", False),
        ("begin:fox", "FOX red cat sun", True),
        ("begin:fox", "red cat sun fox", False),
        ("end:fox", "* red, cat, sun, fox *", True),
        ("end:fox", "fox red cat sun", False),
        ("commas", "red, cat, sun", True),
        ("commas", "* red, cat, sun *", True),
        ("commas", "red, cat sun", False),
        ("stars", "* red cat sun *", True),
        ("stars", "* red cat sun", False),
        ("stars", "* red cat *", False),
        ("upper", "", False),
        ("begin:fox", "fox", False),
    ],
)
def test_constraint_is_judged_alone(constraint: str, response: str, holds: bool) -> None:
    assert scoring.is_satisfied(constraint, WORDS, response) is holds


def test_unknown_constraint_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown constraint 'rhyme'"):
        scoring.is_satisfied("rhyme", WORDS, "red cat sun")


def test_instruct_score_is_the_share_of_constraints_on_the_first_line() -> None:
    doc = {"words": WORDS, "constraints": ["upper", "stars"]}
    for text, share in [
        (" * RED CAT SUN *\nmore", 1.0),
        (" RED CAT SUN", 0.5),
        (" red cat", 0.0),
        ("", 0.0),
    ]:
        assert scoring.instruct_results(doc, [text]) == {"constraint_acc": share}


@pytest.mark.parametrize(
    ("body", "score"),
    [
        (" x + 2", 1.0),
        (" 2 + x", 1.0),
        (" x + 2\n    return 0", 1.0),
        (" x + 3", 0.0),
        (" (x", 0.0),
        ("", 0.0),
        (" x + 2; import os; os._exit(0)", 1.0),
        (" __import__('os')._exit(0)", 0.0),
    ],
)
def test_code_score_runs_the_asserts(body: str, score: float) -> None:
    doc = {
        "prompt": 'def calc(x):\n    """add 2"""\n    return',
        "tests": "assert calc(1) == 3\nassert calc(-2) == 0",
    }
    assert scoring.code_results(doc, [body]) == {"pass_at_1": score}
