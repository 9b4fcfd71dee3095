"""What a job file says of scores: objectives, their tasks and scorers, and the items of each split.

``configs.schema.JobConfig`` holds these sections beside those of the search.
"""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from configs.scorers import SCORER_TAG, TASK_TAG, ScorerSpec, kind_of_entry
from configs.section import Section

SplitName = Literal["search", "select", "report"]
SPLITS: tuple[SplitName, ...] = ("search", "select", "report")
SandboxKind = Literal["strict", "weak"]
BackendName = Literal["static", "continuous"]


class TaskSpec(Section):
    """One lm-eval task inside an objective. A plain string is short for ``task``."""

    task: str = Field(min_length=1)
    """Name of the lm-eval task."""
    metric: str | None = None
    """Metric, optionally with its filter as lm-eval prints it (``exact_match,strict-match``).
    None takes the task's only metric."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this task in the objective, relative to the objective's other tasks."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in the prompt; None keeps the task's own number."""
    max_new_tokens: int | None = Field(default=None, ge=1)
    """Most tokens that are generated per item; None keeps the task's own limit."""
    companion: bool = False
    """Record beside the score how likely the reference answer is (bits per byte; of a multiple
    choice the log-likelihood of the right choice): one forward pass per item more."""
    target: str | None = Field(default=None, min_length=1)
    """Column of the data that holds the reference answer, for ``companion`` and the metrics
    ``target_bits_per_byte`` and ``target_loglikelihood``; None takes the task's own target."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        return {"task": value} if isinstance(value, str) else value


Scored = Annotated[
    Annotated[TaskSpec, Tag(TASK_TAG)] | Annotated[ScorerSpec, Tag(SCORER_TAG)],
    Discriminator(kind_of_entry),
]
"""One entry of an objective: an lm-eval task, or a Python function. Both have ``task``, the name
of their scores, ``metric`` and ``weight``."""


class Objective(Section):
    """One axis of the front: the weighted mean of its tasks' metrics, higher is better."""

    tasks: list[Scored] = Field(min_length=1)
    """Tasks and scorers of the objective, each scored on its own items."""

    @property
    def lm_eval_tasks(self) -> list[TaskSpec]:
        """The tasks that lm-eval scores."""
        return [spec for spec in self.tasks if isinstance(spec, TaskSpec)]

    @property
    def scorers(self) -> list[ScorerSpec]:
        """The Python functions of the user's own."""
        return [spec for spec in self.tasks if isinstance(spec, ScorerSpec)]

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: object) -> object:
        if isinstance(value, str):
            return {"tasks": [value]}
        return {"tasks": value} if isinstance(value, list) else value


class SplitSizes(Section):
    """Items per task in each split; the splits are disjoint by the hash of an item's content."""

    search: int = Field(default=64, ge=1)
    """Items that the search sees."""
    select: int = Field(default=128, ge=1)
    """Items on which one merge is chosen from the front."""
    report: int = Field(default=256, ge=1)
    """Items that are printed and never used to choose."""

    @property
    def total(self) -> int:
        """Items that a task needs."""
        return self.search + self.select + self.report


class EvaluationSettings(Section):
    """How candidates are scored."""

    include_path: list[str] = Field(default_factory=list)
    """Directories with task YAMLs, beside those that ship with lm-eval."""
    data_dir: str | None = None
    """Directory against which relative ``data_files`` of tasks and ``items`` of scorers are
    resolved (None is the working directory), and where stock tasks find local items instead of
    the hub's: ``openai/gsm8k`` reads ``gsm8k/SPLIT.jsonl`` there if it has a folder ``gsm8k``."""
    splits: SplitSizes = SplitSizes()
    """Items per task and split."""
    batch_size: int | Literal["auto"] = 64
    """Rows per forward pass, or ``auto``: as many as memory holds with room to spare. Batches
    that are too large all the same are tried again in halves."""
    backend: BackendName = "static"
    """What generates: ``static`` batches of our own, or the ``continuous`` ones of transformers."""
    apply_chat_template: bool = False
    """Wrap prompts in the tokenizer's chat template, as ``lm_eval --apply_chat_template``."""
    allow_code_execution: bool = False
    """Run generated code in the sandbox; tasks that need it are refused otherwise."""
    sandbox: SandboxKind = "strict"
    """``strict``: bubblewrap, and a refusal where it is missing. ``weak``: Landlock and seccomp,
    which hide less; for machines where bubblewrap cannot be had."""

    @field_validator("batch_size", mode="plain", json_schema_input_type=int | Literal["auto"])
    @classmethod
    def _rows_or_auto(cls, value: object) -> object:
        is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if value == "auto" or is_count:
            return value
        raise ValueError(f"must be a whole number >= 1 or `auto`, found `{value}`")
