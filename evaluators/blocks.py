"""Blocks of items: any part of a split, scored now, the rest later or never.

A block is named by what is in it, so that two candidates that were scored on equal items have
outcomes under equal names. :func:`partition` cuts a split into blocks that are the same for every
candidate; :func:`union` puts scores of several blocks together.
"""

import hashlib
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence

import numpy as np

from evaluators.scores import Items, TaskScores

WHOLE = ""
"""Name of the block that is the whole split."""

_NAME_DIGITS = 16


def block_name(items: Items) -> str:
    """Name a block by its items: the first 64 bits of a SHA-256, as 16 hexadecimal digits.

    Neither the order of tasks nor that of items counts.
    """
    content = {task: sorted(ids) for task, ids in items.items()}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:_NAME_DIGITS]


def ordered(items: Items, split: Items) -> dict[str, tuple[str, ...]]:
    """Put the items of a block into the order of their split; repeated ones count once.

    Args:
        items: Task -> some of its items.
        split: Task -> all items of the split, in scoring order.

    Raises:
        ValueError: The block is empty, or an item is not in the split.
    """
    for task, ids in items.items():
        if foreign := set(ids).difference(split.get(task, ())):
            raise ValueError(f"`{min(foreign)}` is no item of task `{task}` in this split")
    chosen = {task: set(items.get(task, ())) for task in split}
    block = {
        task: tuple(item for item in ids if item in chosen[task])
        for task, ids in split.items()
        if chosen[task]
    }
    if not block:
        raise ValueError("a block needs at least one item")
    return block


def partition(
    split: Items, shares: Sequence[float], *, undivided: Collection[str] = ()
) -> list[dict[str, tuple[str, ...]]]:
    """Cut a split into disjoint blocks, each with about its share of every task's items.

    Items are taken in their order, which for a manifest is that of a hash: every block is a
    random sample. Put them into another order first to have other items early.

    Args:
        split: Task -> item ids.
        shares: Relative sizes of the blocks, each > 0, first block first.
        undivided: Tasks whose items stay together, all of them in the first block
            (``configs.schema.JobConfig.undivided``).

    Returns:
        Blocks that together hold every item once. A task with few items may be missing from a
        block, and a block of none of them is left out.

    Raises:
        ValueError: There is no share, or one that is not positive.
    """
    if not shares or min(shares) <= 0:
        raise ValueError(f"shares of blocks must be positive, got {list(shares)}")
    ends = np.cumsum(shares) / np.sum(shares)
    blocks: list[dict[str, tuple[str, ...]]] = []
    for start, end in itertools.pairwise((0.0, *ends)):
        block = {
            task: tuple(ids[round(start * len(ids)) : round(end * len(ids))])
            for task, ids in split.items()
            if task not in undivided
        }
        if not blocks:
            block |= {task: tuple(ids) for task, ids in split.items() if task in undivided}
        blocks.append({task: ids for task, ids in block.items() if ids})
    return [block for block in blocks if block]


def remaining(wanted: Items, done: Mapping[str, Iterable[str]]) -> dict[str, tuple[str, ...]]:
    """Return what of the wanted items is not done; tasks that are done are left out."""
    left = {}
    for task, ids in wanted.items():
        seen = set(done.get(task, ()))
        if rest := tuple(item for item in ids if item not in seen):
            left[task] = rest
    return left


def union(parts: Iterable[Mapping[str, TaskScores]], split: Items) -> dict[str, TaskScores]:
    """Put the scores of several blocks together, in the order of their split.

    Where blocks overlap, the score that comes first in ``parts`` counts.

    Args:
        parts: Task -> scores, block by block.
        split: Task -> all items of the split, in scoring order.

    Returns:
        Task -> scores on all items that any block holds; tasks without are left out.
    """
    found: dict[str, dict[str, tuple[float, float]]] = {task: {} for task in split}
    for part in parts:
        for task, scores in part.items():
            weights = np.ones(len(scores.item_ids)) if scores.weights is None else scores.weights
            pairs = zip(scores.values.tolist(), weights.tolist(), strict=True)
            for item, pair in zip(scores.item_ids, pairs, strict=True):
                found[task].setdefault(item, pair)
    together = {}
    for task, by_item in found.items():
        ids = tuple(item for item in split[task] if item in by_item)
        if ids:
            values, weights = np.array([by_item[item] for item in ids]).T.copy()
            together[task] = TaskScores(
                task, ids, values, None if (weights == 1.0).all() else weights
            )
    return together
