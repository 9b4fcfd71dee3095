"""Running checks one after another, and raising everything that they found as one error."""

from collections.abc import Callable
from typing import TypeVar

from configs.errors import CheckpointError, ConfigError, MergefrontError, Problem

Result = TypeVar("Result")


class Checks:
    """Runs checks one after another and keeps what they raise."""

    def __init__(self) -> None:
        self.errors: list[MergefrontError] = []

    def attempt(self, check: Callable[[], Result]) -> Result | None:
        """Return what a check returns; None when it found something wrong."""
        try:
            return check()
        except MergefrontError as error:
            self.errors.append(error)
            return None

    def error(self) -> MergefrontError:
        """Return what was found, which is something, as one error.

        A single error is returned as it is. Several become one of the first one's family, so that
        the exit code says what to look at first: the job, then checkpoints, then suites.
        """
        if len(self.errors) == 1:
            return self.errors[0]
        title = f"{len(self.errors)} parts of the job cannot be used"
        problems = [problem for error in self.errors for problem in _problems_of(error)]
        if any(isinstance(error, ConfigError) for error in self.errors):
            return ConfigError(title, problems)
        first = next((e for e in self.errors if isinstance(e, CheckpointError)), self.errors[0])
        lines = [f"  {problem}" for problem in problems]
        return _family_of(first)("\n".join([title, *lines]), problems=problems)


def _problems_of(error: MergefrontError) -> list[Problem]:
    problems = getattr(error, "problems", None)
    return problems or [Problem("", error.message.replace("\n", "\n  "))]


def _family_of(error: MergefrontError) -> type[MergefrontError]:
    """Return the class right below MergefrontError, whose constructor takes a text."""
    ancestors = type(error).__mro__
    return next(kind for kind in ancestors if MergefrontError in kind.__bases__)
