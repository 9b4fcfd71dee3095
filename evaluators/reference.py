"""How likely a model finds a task's reference answers: smooth where exact match is flat.

One forward pass per item and no generation: the reference stands after the very prompt that
answers are generated from. A task can be scored by it (``metric: target_bits_per_byte``), or say
it beside its score (``companion: true``). Bits per byte are comparable between tokenizers and
lengths (Gao et al., "The Pile", arXiv:2101.00027, section 3.1).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from configs.evaluation import TaskSpec

BITS_PER_BYTE = "target_bits_per_byte"
LOGLIKELIHOOD = "target_loglikelihood"
TARGET_METRICS = (BITS_PER_BYTE, LOGLIKELIHOOD)


class NoReferenceError(ValueError):
    """A task has no reference answer; ``key`` is the key of the job that can mend it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a task's reference answers come from, and what is made of their likelihood.

    Attributes:
        metric: ``target_bits_per_byte`` or ``target_loglikelihood`` (natural logarithm, summed
            over the tokens).
        column: Column of the data that holds the answer; None takes the task's own target.
        is_objective: Whether it is the task's score, or only stands beside it.
    """

    metric: str
    column: str | None
    is_objective: bool

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if self.metric == BITS_PER_BYTE else 1

    def value(self, log_probability: float, num_bytes: int) -> float:
        """Return an item's value, higher is better.

        Args:
            log_probability: Natural logarithm, summed over the tokens of the answer.
            num_bytes: UTF-8 bytes of what these tokens say, >= 1.
        """
        if self.metric == LOGLIKELIHOOD:
            return log_probability
        return log_probability / (math.log(2) * num_bytes)


def reference_of(spec: TaskSpec, output_type: str) -> Reference | None:
    """Return how the job wants a task's references scored; None where it does not.

    The companion of a multiple choice is the log-likelihood of the right choice, that of any
    other task the bits per byte of its target.

    Raises:
        NoReferenceError: The job's keys contradict each other.
    """
    is_objective = (spec.metric or "").partition(",")[0] in TARGET_METRICS
    if is_objective and spec.companion:
        raise NoReferenceError(
            "companion", f"the task is scored by `{spec.metric}` already; leave `companion` out"
        )
    if is_objective:
        return Reference(str(spec.metric).partition(",")[0], spec.target, is_objective=True)
    if spec.companion:
        metric = LOGLIKELIHOOD if output_type == "multiple_choice" else BITS_PER_BYTE
        return Reference(metric, spec.target, is_objective=False)
    if spec.target is not None:
        listed = ", ".join(f"`{name}`" for name in TARGET_METRICS)
        raise NoReferenceError(
            "target", f"is only used with `companion: true` or one of the metrics {listed}"
        )
    return None


class ReferenceTask(Protocol):
    """What is asked of a task of lm-eval (``ConfigurableTask``), which has no types."""

    OUTPUT_TYPE: str
    config: Any

    def doc_to_target(self, doc: Mapping[str, object], /) -> object:
        """Return the answer, several, or the place of the right choice."""

    def doc_to_choice(self, doc: Mapping[str, object], /) -> Sequence[object]:
        """Return the choices of an item."""

    def doc_to_prefix(self, doc: Mapping[str, object], /) -> str | None:
        """Return the beginning of the answer that the prompt gives."""


def check_references(
    task: ReferenceTask,
    reference: Reference,
    documents: Iterable[Mapping[str, object]],
) -> None:
    """Make sure that every document has a reference answer.

    Raises:
        NoReferenceError: The task has none, or a document lacks it.
    """
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        raise NoReferenceError(
            "", "scores whole texts, which is a likelihood already: there is no target to score"
        )
    if getattr(task, "multiple_input", 0):
        raise NoReferenceError("", "puts its choices into the prompt, so there is no one target")
    if reference.column is None and task.config.unsafe_code:
        raise NoReferenceError(
            "target",
            "its doc_to_target holds the tests of a program, not an answer; name the column of "
            "the data that holds one, such as `target: canonical_solution`",
        )
    for document in documents:
        answer_of(task, reference, document)


def answer_of(
    task: ReferenceTask,
    reference: Reference,
    document: Mapping[str, object],
) -> str:
    """Return the reference answer of a document, as examples in a prompt show it.

    Of several the first one counts, as in lm-eval's few-shot examples.

    Raises:
        NoReferenceError: There is none.
    """
    if reference.column is not None:
        return _from_column(reference.column, document)
    if isinstance(task.config.doc_to_target, int) and task.OUTPUT_TYPE != "multiple_choice":
        raise NoReferenceError(
            "",
            f"has no reference answers: its doc_to_target is {task.config.doc_to_target}, not a "
            "text; name a column that holds them with `target`, or leave `companion` out",
        )
    found = task.doc_to_target(document)
    if isinstance(found, list):
        found = next(iter(found), None)
    if task.OUTPUT_TYPE == "multiple_choice" and isinstance(found, int):
        choices = task.doc_to_choice(document)
        found = choices[found] if 0 <= found < len(choices) else None
    text = "" if found is None else str(found)
    if not text.strip():
        raise NoReferenceError("", "has an item without a reference answer: its target is empty")
    return text


def _from_column(column: str, document: Mapping[str, object]) -> str:
    if column not in document:
        listed = ", ".join(f"`{name}`" for name in document)
        raise NoReferenceError("target", f"there is no column `{column}`; there is {listed}")
    text = document[column]
    if not isinstance(text, str) or not text.strip():
        raise NoReferenceError(
            "target", f"column `{column}` must hold text in every item, found {text!r:.40}"
        )
    return text


def continuation_of(
    task: ReferenceTask,
    reference: Reference,
    document: Mapping[str, object],
    context: str,
    *,
    apply_chat_template: bool,
) -> str:
    """Return the answer with what stands between the prompt and it, as in lm-eval's prompts.

    That is the task's delimiter; after a beginning of the answer that the prompt gives, or where
    the answer is not the one that examples show, a delimiter only between two words. A chat
    template brings its own.

    Raises:
        NoReferenceError: The document has no reference.
    """
    answer = answer_of(task, reference, document)
    prefix = task.doc_to_prefix(document)
    if prefix:
        delimiter = " "
    elif apply_chat_template:
        return answer
    else:
        delimiter = str(task.config.target_delimiter)
    own = reference.column is None and not prefix
    joined = own or not (context[-1:].isspace() or answer[:1].isspace())
    return (delimiter if joined else "") + answer
