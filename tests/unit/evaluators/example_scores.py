"""Two objectives of one and of two tasks, and scores of theirs from plain numbers."""

import numpy as np

from configs.evaluation import Objective
from evaluators.scores import TaskScores

OBJECTIVES = {
    "math": Objective.model_validate(["gsm"]),
    "code": Objective.model_validate([{"task": "he", "weight": 3}, {"task": "mbpp", "weight": 1}]),
}


def task_scores(**values):
    """Scores by task; items are numbered."""
    return {
        task: TaskScores(task, tuple(f"{task}{i}" for i in range(len(v))), np.array(v, dtype=float))
        for task, v in values.items()
    }
