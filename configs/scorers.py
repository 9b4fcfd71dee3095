"""How a job names a Python function that scores a model: where it is, its items, its options.

What the function is given and must return is ``evaluators.python_scorer.Scorer``.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import Field, JsonValue, field_validator

from configs.section import Section

# How pydantic calls the two kinds of entries of an objective in the location of an error.
TASK_TAG, SCORER_TAG = "<task>", "<scorer>"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")


class ScorerSpec(Section):
    """One Python function inside an objective, beside or instead of lm-eval tasks."""

    scorer: str
    """``file.py:function``, relative to the working directory, or ``package.module:function``,
    which every worker must be able to import."""
    items: str = Field(min_length=1)
    """JSONL file, one object per item. A relative path is looked up in ``evaluation.data_dir``."""
    name: str | None = None
    """What tables and the archive call it; None is the name of the function."""
    options: dict[str, JsonValue] = Field(default_factory=dict)
    """Keyword arguments of the function."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this scorer in the objective, relative to the objective's other tasks."""
    dry_run: bool = True
    """Try the function on a few items before a worker starts; see ``optimizer.preflight.dry_run``.
    May change on resume."""
    per_item: bool = False
    """Whether an item's score is the same whichever items are scored with it, so that part of a
    split may be scored first. That of a correlation divided among its items is not."""

    @field_validator("scorer")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        module, colon, function = value.rpartition(":")
        named = function.replace(".", "_").isidentifier()
        found = module.endswith(".py") or all(part.isidentifier() for part in module.split("."))
        if not (colon and named and found):
            raise ValueError(
                f"must be `file.py:function` or `package.module:function`, found `{value}`"
            )
        return value

    @field_validator("name")
    @classmethod
    def _is_plain(cls, value: str | None) -> str | None:
        if value is not None and not _NAME.fullmatch(value):
            raise ValueError(
                f"may hold letters, digits, `_`, `.` and `-` only, found `{value}`; it must "
                "begin with a letter"
            )
        return value

    @property
    def module(self) -> str:
        """Path of a ``.py`` file, or a dotted name to import."""
        return self.scorer.rpartition(":")[0]

    @property
    def function(self) -> str:
        """Name of the function in its module; dotted where it is an attribute of something."""
        return self.scorer.rpartition(":")[2]

    @property
    def is_file(self) -> bool:
        """Whether the module is named by its file."""
        return self.module.endswith(".py")

    @property
    def task(self) -> str:
        """The name under which scores are kept, as lm-eval's tasks have one."""
        return self.name or self.function

    @property
    def metric(self) -> str:
        """What is scored, for tables: the function, of a file without its directory."""
        module = Path(self.module).name if self.is_file else self.module
        return f"{module}:{self.function}"


def kind_of_entry(value: object) -> str:
    """Tell a scorer from an lm-eval task by its keys, misspelled ones included: a tag."""
    if isinstance(value, ScorerSpec):
        return SCORER_TAG
    keys = set(value) if isinstance(value, Mapping) else set()
    is_scorer = "scorer" in keys or ("task" not in keys and {"items", "options"} & keys)
    return SCORER_TAG if is_scorer else TASK_TAG
