"""The errors that cross a boundary of mergefront, and how each one ends the command.

MergefrontError                    .context: machine-readable fields, all optional
├── ConfigError                    .problems: every (path, message) of a job file   exit 2
├── CheckpointError                a model directory cannot be used                 exit 3
│   ├── CheckpointNotFoundError    no such directory, or no weights in it
│   ├── CorruptCheckpointError     truncated shard, header that lies, digest mismatch
│   └── IncompatibleCheckpointsError   .problems: every mismatch, not only the first
├── EvaluationError                suite missing, metric unknown or not finite      exit 5
│   └── SandboxUnavailableError    generated code cannot be contained here
├── WorkerError                    the machinery around a candidate failed          exit 6
│   ├── WorkerLostError            the process died; tried again elsewhere
│   ├── WorkerTimeoutError         the evaluation outlasted its limit
│   └── ClusterError               a Ray cluster cannot be reached or used
├── ArchiveError                   the record of a search cannot be used            exit 4
│   ├── ArchiveNotFoundError       no archive at that path
│   ├── ArchiveExistsError         a new search would overwrite an old one
│   ├── ArchiveLockedError         another driver writes this archive
│   ├── SchemaVersionError         written by another version of mergefront
│   └── JobChangedError            .problems: what differs from the archived job
├── HubError                       the Hugging Face hub refuses, or is out of reach  exit 8
└── SearchError                    the search as a whole cannot go on               exit 7
    └── TooManyFailuresError       the stated share of candidates failed

A message has three parts: what was wrong (with its path), what was found, what to do.
A *candidate* that fails is not an exception but an ``Outcome`` (``workers.outcome``).
"""

import re
from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Self

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

TERMINATED = 143
"""Exit code after SIGTERM."""


class Problem(NamedTuple):
    """One thing that is wrong: where (dotted key or file path), and what to do about it."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class MergefrontError(Exception):
    """Base of every error that mergefront raises at a boundary.

    Args:
        message: What was wrong, what was found and what to do.
        **context: Machine-readable fields; must be picklable, since errors cross Ray.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", **context: object) -> None:
        super().__init__(message)
        self.context = context

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword arguments of __init__ do not survive the default pickling.
        return _rebuild, (type(self), self.args, self.__dict__)

    @property
    def message(self) -> str:
        """The text for a person, without the type's name."""
        return str(self.args[0]) if self.args else ""

    @property
    def kind(self) -> str:
        """The name for machines: that of the class, ``archive_not_found`` for example."""
        name = type(self).__name__.removesuffix("Error")
        return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()

    @property
    def listed(self) -> list["Problem"]:
        """Every problem that is listed with it; empty where the message is all there is."""
        found = getattr(self, "problems", None) or self.context.get("problems")
        return list(found) if isinstance(found, Sequence) else []


def _rebuild(
    kind: type[MergefrontError], args: tuple[object, ...], state: dict[str, object]
) -> MergefrontError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class _ProblemsError(MergefrontError):
    """An error that lists all its problems at once.

    Args:
        title: One line that says what was being checked.
        problems: Every problem found, in the order of the input; at least one.
        **context: Machine-readable fields.
    """

    def __init__(self, title: str, problems: Sequence[Problem], **context: object) -> None:
        super().__init__("\n".join([title, *(f"  {problem}" for problem in problems)]), **context)
        self.title = title
        self.problems = list(problems)

    @classmethod
    def single(cls, path: str, message: str) -> Self:
        """Build an error of one problem."""
        return cls(f"1 problem in {path}" if path else "1 problem", [Problem(path, message)])


class ConfigError(_ProblemsError):
    """A job file cannot be used; ``problems`` lists everything that is wrong with it."""

    exit_code = 2


class CheckpointError(MergefrontError):
    """A model directory cannot be used."""

    exit_code = 3


class CheckpointNotFoundError(CheckpointError):
    """There is no such directory, or there are no safetensors weights in it."""


class CorruptCheckpointError(CheckpointError):
    """A shard is truncated, its header lies, or its digest is not the recorded one."""


class IncompatibleCheckpointsError(_ProblemsError, CheckpointError):
    """The checkpoints cannot be merged; ``problems`` lists every mismatch."""

    exit_code = 3


class EvaluationError(MergefrontError):
    """A suite cannot be built or scored; not tried again."""

    exit_code = 5


class SandboxUnavailableError(EvaluationError):
    """Generated code cannot be run safely on this machine."""


class WorkerError(MergefrontError):
    """The machinery around a candidate failed, not the candidate."""

    exit_code = 6


class WorkerLostError(WorkerError):
    """The worker's process died; the candidate is tried again on another."""


class WorkerTimeoutError(WorkerError):
    """The evaluation outlasted its limit."""


class ClusterError(WorkerError):
    """A Ray cluster cannot be reached, refuses us, or lacks what a job needs."""


class ArchiveError(MergefrontError):
    """The record of a search cannot be used."""

    exit_code = 4


class ArchiveNotFoundError(ArchiveError):
    """There is no archive at that path."""


class ArchiveExistsError(ArchiveError):
    """A new search would overwrite an old one."""


class ArchiveLockedError(ArchiveError):
    """Another driver writes this archive."""


class SchemaVersionError(ArchiveError):
    """The archive was written by another version of mergefront."""


class JobChangedError(_ProblemsError, ArchiveError):
    """The job file no longer says what the archive was made from."""

    exit_code = 4


class HubError(MergefrontError):
    """The Hugging Face hub refuses what was asked of it, or cannot be reached."""

    exit_code = 8


class SearchError(MergefrontError):
    """The search as a whole cannot go on."""

    exit_code = 7


class TooManyFailuresError(SearchError):
    """More than the stated share of candidates failed."""
