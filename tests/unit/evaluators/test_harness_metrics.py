"""What an item contributes to a metric, so that the mean over items is what lm-eval prints."""

import math
import random

import numpy as np
import pytest
from lm_eval.api import metrics
from lm_eval.api.registry import get_aggregation

from configs.errors import EvaluationError
from evaluators.harness_metrics import ItemForm, MetricKey, form_of
from evaluators.scores import TaskScores


def instruction_accuracy(items: list[list[bool]]) -> float:
    """As IFEval's."""
    flat = [part for item in items for part in item]
    return sum(flat) / len(flat)


def percentage(items: list[float]) -> float:
    return 100 * sum(items) / len(items)


def macro(items: list[list[bool]]) -> float:
    return sum(sum(item) / len(item) for item in items) / len(items)


def sorted_mean(items: list[float]) -> float:
    items.sort()
    return math.fsum(items) / len(items)


def draw(kind: str, rng: random.Random) -> object:
    match kind:
        case "number":
            return rng.random()
        case "parts":
            return [rng.random() < 0.5 for _ in range(rng.randint(1, 4))]
        case "likelihood":
            return (-200 * rng.random(), rng.randint(1, 90))
        case _:
            shares = [rng.random() for _ in range(3)]
            return (rng.randrange(3), [share / sum(shares) for share in shares])


@pytest.mark.parametrize(
    ("aggregation", "kind"),
    [
        (metrics.mean, "number"),
        (np.mean, "number"),
        (sorted_mean, "number"),
        (metrics.perplexity, "number"),
        (instruction_accuracy, "parts"),
        (metrics.bits_per_byte, "likelihood"),
        (metrics.weighted_perplexity, "likelihood"),
        (metrics.brier_score, "choice"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_weighted_mean_of_items_is_what_lm_eval_prints(aggregation, kind, sign) -> None:
    rng = random.Random(kind)
    items = [draw(kind, rng) for _ in range(40)]
    form = form_of(aggregation)
    assert form is not None
    key = MetricKey("m", "none", sign, form)
    values, weights = np.array([key.item_score({"m": item}, "item") for item in items]).T
    scores = TaskScores("t", tuple(map(str, range(40))), values, weights)
    assert key.stock_value(scores.mean) == pytest.approx(aggregation(items), rel=1e-12)


@pytest.mark.parametrize("name", ["median", "f1", "bleu", "chrf", "ter", "matthews_corrcoef"])
def test_aggregation_over_all_items_together_has_no_form(name) -> None:
    assert form_of(get_aggregation(name)) is None


@pytest.mark.parametrize("function", [percentage, macro, max, len, lambda items: items[0]])
def test_own_function_that_is_no_mean_has_no_form(function) -> None:
    assert form_of(function) is None


@pytest.mark.parametrize(
    ("form", "result", "message"),
    [
        (form_of(metrics.mean), "a", "x is a str, not a number"),
        (form_of(metrics.mean), float("nan"), "x is nan"),
        (form_of(instruction_accuracy), [], "x is an empty list"),
        (form_of(instruction_accuracy), True, "x is a bool, not a list"),
        (form_of(metrics.bits_per_byte), (-3.0, 0), "x is .*division"),
        (ItemForm(lambda result: (1.0, 0.0)), 1, "x counts 0 times; every item must count"),
    ],
)
def test_result_that_cannot_be_read_is_named(form, result, message) -> None:
    with pytest.raises(EvaluationError, match=message):
        MetricKey("m", "none", 1, form).item_score({"m": result}, "x")
