"""Which metric of a task is scored, and what one item contributes to it.

A search compares candidates item by item, so a metric must be a mean over items, perhaps a
weighted one. Most are; ratios of sums (IFEval's accuracy over instructions, bits per byte) are
means of the items' ratios weighted by their denominators, and perplexities are exponentials of
such a mean, whose logarithm is scored. Start at :func:`choose_metric`.
"""

from __future__ import annotations

import copy
import difflib
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from lm_eval.api import metrics
from lm_eval.api.task import Task

from configs.errors import EvaluationError
from evaluators.harness_problems import TaskProblemError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ItemForm:
    """What one item's result means to the score of a task.

    Attributes:
        read: A scorer's result for one item -> (value, weight); the task's score is the mean of
            values weighted by weights. Raises TypeError or ValueError for what is no such result.
        is_log: The metric is the exponential of that mean, and its logarithm is what is scored.
    """

    read: Callable[[Any], tuple[float, float]]
    is_log: bool = False


@dataclass(frozen=True, slots=True)
class MetricKey:
    """A metric as lm-eval prints it, its direction, and how it is read.

    ``sign`` is 1 where higher is better and -1 where lower is better, by which every item's
    value is multiplied.
    """

    metric: str
    filter: str
    sign: int
    form: ItemForm

    def __str__(self) -> str:
        return f"{self.metric},{self.filter}"

    def item_score(self, results: Mapping[str, Any], where: str) -> tuple[float, float]:
        """Read one item's score, higher is better, and its weight, positive.

        Args:
            results: What the task's ``process_results`` gave for the item.
            where: Names the item in errors.

        Raises:
            EvaluationError: The metric is missing, no number, or not finite.
        """
        if self.metric not in results:
            raise EvaluationError(f"{where} is missing; the scorer gave {', '.join(results)}")
        try:
            value, weight = self.form.read(results[self.metric])
        except (TypeError, ValueError, ZeroDivisionError) as error:
            raise EvaluationError(f"{where} is {error}") from error
        if not math.isfinite(value):
            raise EvaluationError(f"{where} is {value}")
        if not 0.0 < weight < math.inf:
            raise EvaluationError(f"{where} counts {weight:g} times; every item must count")
        return self.sign * value, weight

    def stock_value(self, score: float) -> float:
        """Return the number that lm-eval prints where ours is ``score``."""
        value = self.sign * score
        return math.exp(value) if self.form.is_log else value


def choose_metric(task: Task, wanted: str | None) -> MetricKey:
    """Choose metric and filter, or say what there is.

    Args:
        task: lm-eval's task.
        wanted: ``metric`` or ``metric,filter``; None takes the task's only one.

    Raises:
        TaskProblemError: There is no such metric or filter, or several, or it has no form per
            item.
    """
    aggregations = _aggregations(task)
    forms = {name: form for name, function in aggregations.items() if (form := form_of(function))}
    filters = [ensemble.name for ensemble in task._filters]
    metric, _, filter_name = (part.strip() for part in (wanted or "").partition(","))
    choices = [f"{name},{filter_}" for name in forms for filter_ in filters]
    listed = ", ".join(f"`{choice}`" for choice in choices) or "none"
    if not metric:
        if len(choices) != 1:
            raise TaskProblemError("metric", f"has several metrics, choose one of {listed}")
        metric = next(iter(forms))
    if metric not in aggregations:
        near = difflib.get_close_matches(metric, list(aggregations), n=1)
        hint = f"did you mean `{near[0]}`? There is {listed}" if near else f"there is {listed}"
        raise TaskProblemError("metric", f"there is no `{metric}`; {hint}")
    if metric not in forms:
        raise TaskProblemError(
            "metric",
            f"`{metric}` is not a mean over items but {_name_of(aggregations[metric])} of all of "
            f"them, so it has no score per item; use one of {listed}",
        )
    if not filter_name and len(filters) == 1:
        filter_name = filters[0]
    if filter_name not in filters:
        named = ", ".join(f"`{metric},{filter_}`" for filter_ in filters)
        what = "has several filters; choose one of"
        if filter_name:
            near = difflib.get_close_matches(filter_name, filters, n=1)
            hint = f", did you mean `{near[0]}`? There is" if near else "; choose one of"
            what = f"there is no filter `{filter_name}`{hint}"
        raise TaskProblemError("metric", f"{what} {named}")
    higher = task.higher_is_better().get(metric, True)
    return MetricKey(metric, filter_name, 1 if higher else -1, forms[metric])


def _aggregations(task: Task) -> dict[str, Callable[..., object]]:
    """Return metric -> aggregation, with `pass@k` for the functions that report it."""
    found: dict[str, Callable[..., object]] = dict(task.aggregation())
    for entry in task.config.metric_list or []:
        name = entry["metric"] if isinstance(entry["metric"], str) else entry["metric"].__name__
        if name in found and "k" in entry:
            counts = entry["k"] if isinstance(entry["k"], list) else [entry["k"]]
            function = found.pop(name)
            found.update({f"pass@{k}": function for k in counts})
    return found


def form_of(aggregation: Callable[..., object]) -> ItemForm | None:
    """Return what an item contributes to an aggregation; None if it is no mean over items.

    lm-eval's own aggregations are known by name. A task's own function is tried on numbers:
    whatever gives their mean, or the mean of all parts of lists, is taken for that.
    """
    if aggregation in _KNOWN:
        return _KNOWN[aggregation]
    if aggregation in vars(metrics).values():
        return None
    return next((form for form, probes in _PROBES if _gives(aggregation, probes)), None)


def _number(result: object) -> tuple[float, float]:
    if not isinstance(result, bool | int | float | np.number | np.bool_):
        raise TypeError(f"a {type(result).__name__}, not a number")
    return float(result), 1.0


def _parts(result: object) -> tuple[float, float]:
    if not isinstance(result, list | tuple | np.ndarray):
        raise TypeError(f"a {type(result).__name__}, not a list of parts")
    if not len(result):
        raise ValueError("an empty list, with nothing to count")
    return math.fsum(_number(part)[0] for part in result) / len(result), float(len(result))


def _ratio(scale: float) -> Callable[[Any], tuple[float, float]]:
    """Read (log-likelihood, count) as ``scale`` times their ratio, weighted by the count."""

    def read(result: object) -> tuple[float, float]:
        if not isinstance(result, list | tuple):
            raise TypeError(f"a {type(result).__name__}, not a pair of log-likelihood and count")
        total, count = (_number(part)[0] for part in result)
        return scale * total / count, count

    return read


def _negated(result: object) -> tuple[float, float]:
    return -_number(result)[0], 1.0


def _brier(result: object) -> tuple[float, float]:
    return float(metrics.brier_score([result])), 1.0


MEAN, _POOLED = ItemForm(_number), ItemForm(_parts)
_KNOWN: dict[Callable[..., object], ItemForm] = {
    metrics.mean: MEAN,
    np.mean: MEAN,
    metrics.brier_score: ItemForm(_brier),
    metrics.bits_per_byte: ItemForm(_ratio(-1.0 / math.log(2.0))),
    metrics.weighted_perplexity: ItemForm(_ratio(-1.0), is_log=True),
    metrics.perplexity: ItemForm(_negated, is_log=True),
}
# Lists whose mean no median, extreme, macro average or rounded percentage shares.
_NUMBERS = ([0.0, 1.0, 1.0, 0.25], [3.0, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0])
_LISTS = ([[True, False], [True]], [[False], [True, True, True], [False, True]], [[1, 0, 0], [1]])
_PROBES: tuple[tuple[ItemForm, tuple[tuple[Any, float], ...]], ...] = (
    (MEAN, tuple((values, math.fsum(values) / len(values)) for values in _NUMBERS)),
    (
        _POOLED,
        tuple((parts, sum(map(sum, parts)) / sum(map(len, parts))) for parts in _LISTS),
    ),
)


def _gives(aggregation: Callable[..., Any], probes: tuple[tuple[Any, float], ...]) -> bool:
    try:
        return all(
            math.isclose(float(aggregation(copy.deepcopy(values))), expected, rel_tol=1e-12)
            for values, expected in probes
        )
    # Every exception: a task author's function may raise anything where it is given numbers, and
    # whatever it raised, it is not the aggregation that was asked for.
    except Exception:
        logger.debug("%s takes no numbers such as %s", _name_of(aggregation), probes, exc_info=True)
        return False


def _name_of(function: object) -> str:
    return f"`{getattr(function, '__name__', type(function).__name__)}`"
