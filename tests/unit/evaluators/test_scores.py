import math

import numpy as np
import pytest

from configs.schema import Objective
from evaluators.scores import TaskScores, aggregate

OBJECTIVES = {
    "math": Objective.model_validate(["gsm"]),
    "code": Objective.model_validate([{"task": "he", "weight": 3}, {"task": "mbpp", "weight": 1}]),
}


def task_scores(**values):
    return {
        task: TaskScores(task, tuple(f"{task}{i}" for i in range(len(v))), np.array(v, dtype=float))
        for task, v in values.items()
    }


def test_aggregate_weighs_tasks_and_adds_errors_in_quadrature():
    scores = aggregate(OBJECTIVES, task_scores(gsm=[1, 0, 0, 0], he=[1, 1], mbpp=[0, 1, 0, 1]))
    assert scores["math"].value == 0.25
    assert scores["math"].stderr == pytest.approx(0.25)  # sd 0.5 of [1, 0, 0, 0], over sqrt(4)
    assert scores["code"].value == pytest.approx(0.75 * 1 + 0.25 * 0.5)
    assert scores["code"].stderr == pytest.approx(0.25 * math.sqrt(1 / 3) / 2)
    assert scores["code"].count == 6


def test_aggregate_of_one_item_has_no_error():
    assert aggregate({"math": OBJECTIVES["math"]}, task_scores(gsm=[1]))["math"].stderr == 0.0


def test_task_scores_refuses_values_that_do_not_fit_the_items():
    with pytest.raises(ValueError, match=r"must have shape \(2,\), one per item, found \(3,\)"):
        TaskScores("gsm", ("a", "b"), np.zeros(3))
