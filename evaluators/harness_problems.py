"""What is wrong with one task, on its way to the place that lists all problems of a job."""

from collections.abc import Iterable


class TaskProblemError(Exception):
    """Carries problems of one task, each with the key of the task's section that it is about.

    Args:
        key: Key below the task (``metric``, ``num_fewshot``), or ``""`` for the task itself.
        message: What was wrong, what was found, what to do.
        others: More (key, message) pairs of the same task.
    """

    def __init__(self, key: str, message: str, others: Iterable[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = ((key, message), *others)


def cause_of(error: BaseException) -> str:
    """Say an error in one line; its type matters where the text is a bare key."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
