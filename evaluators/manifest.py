"""Which items are scored: named by their content, split by the hash of it, recorded once.

A manifest is made when a job is checked (``evaluators.suite.JobSuite``), kept in the
archive, and given to every worker, so that all candidates of a search see the same items.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import cast, get_args

from configs.evaluation import SplitName, SplitSizes
from evaluators.scores import Items

_ID_DIGITS = 16
_VERSION = 1


def item_id(doc: Mapping[str, object]) -> str:
    """Name an item by its content: the first 64 bits of a SHA-256, as 16 hexadecimal digits.

    Args:
        doc: One document of a task, as the task sees it; values that JSON lacks count by their
            ``str``. The order of keys does not matter.
    """
    text = json.dumps(doc, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_ID_DIGITS]


def split_items(ids: Iterable[str], sizes: SplitSizes) -> dict[SplitName, tuple[str, ...]]:
    """Divide a task's items into disjoint splits by their names alone.

    Items are ordered by name. ``search`` is taken from the start, ``report`` from the end, and
    ``select`` from just before ``report``, both walking backwards: so a smaller split is a prefix
    of a larger one, and no item of ``report`` moves when another split grows. Neither the order
    of the items in their file nor repeated items matter.

    Args:
        ids: Item names, in any order; repeated ones count once.
        sizes: Items per split.

    Raises:
        ValueError: There are fewer distinct items than the splits ask for.
    """
    ordered = sorted(set(ids))
    asked = sizes.search + sizes.select + sizes.report
    if len(ordered) < asked:
        raise ValueError(
            f"has {len(ordered)} distinct items, but the splits ask for {sizes.search} + "
            f"{sizes.select} + {sizes.report} = {asked} (search + select + report); lower "
            "`evaluation.splits` or use a task with more items"
        )
    backwards = ordered[::-1]
    return {
        "search": tuple(ordered[: sizes.search]),
        "select": tuple(backwards[sizes.report : sizes.report + sizes.select]),
        "report": tuple(backwards[: sizes.report]),
    }


@dataclass(frozen=True, slots=True)
class Manifest:
    """The items of a job, and the tasks that they belong to.

    Attributes:
        splits: Split -> task -> item ids in scoring order; splits of a task are disjoint.
        task_hashes: Task -> hash of its definition (prompt, metrics, filters, generation limits,
            few-shot count), which fixes what an item's score means.
    """

    splits: Mapping[SplitName, Mapping[str, tuple[str, ...]]]
    task_hashes: Mapping[str, str]

    def items(self, split: SplitName) -> Items:
        """Return task -> item ids of a split, in scoring order."""
        return self.splits[split]

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks, in the order of the job file."""
        return tuple(self.task_hashes)

    def restricted_to(self, tasks: Collection[str]) -> "Manifest":
        """Return the manifest of some of the tasks; names that it lacks are no error."""
        return Manifest(
            splits={
                split: {task: ids for task, ids in items.items() if task in tasks}
                for split, items in self.splits.items()
            },
            task_hashes={t: digest for t, digest in self.task_hashes.items() if t in tasks},
        )

    def to_json(self) -> str:
        """Write as JSON; :meth:`from_json` gives back an equal manifest."""
        content = {
            "version": _VERSION,
            "splits": {
                split: {task: list(ids) for task, ids in tasks.items()}
                for split, tasks in self.splits.items()
            },
            "task_hashes": dict(self.task_hashes),
        }
        return json.dumps(content, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        """Read what :meth:`to_json` wrote.

        Raises:
            ValueError: It is no manifest, or one of another version.
        """
        content = json.loads(text)
        version = content.get("version") if isinstance(content, dict) else None
        if version != _VERSION:
            raise ValueError(
                f"not a manifest of version {_VERSION}: found version {version!r}; it was written "
                "by another version of mergefront"
            )
        if unknown := set(content["splits"]) - set(get_args(SplitName)):
            raise ValueError(f"a manifest has no split `{sorted(unknown)[0]}`")
        splits = {
            cast("SplitName", split): {task: tuple(ids) for task, ids in tasks.items()}
            for split, tasks in content["splits"].items()
        }
        return cls(splits=splits, task_hashes=dict(content["task_hashes"]))
