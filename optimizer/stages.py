"""Which items of a split candidates are scored on first: blocks of a race, and samples.

Pure functions of the items' ids and the search's seed, so the same after a crash.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from functools import lru_cache

from configs.racing import Racing
from evaluators.scores import Items


def stages(
    items: Items,
    racing: Racing,
    seed: int,
    *,
    least_items: int = 1,
    undivided: Collection[str] = (),
    worth: Mapping[str, Mapping[str, float]] | None = None,
) -> list[dict[str, tuple[str, ...]]]:
    """Lay out a race: the items that are scored by the end of each block, the same for everyone.

    The first block holds ``racing.first_share`` of each task's items, and every further one
    doubles what was scored. Which items come first is decided by a hash of their ids.

    Args:
        items: Task -> items of the split.
        racing: The job's settings.
        seed: Of the search; another one has other items first.
        least_items: Of a task, so many are in the first block, or all.
        undivided: Tasks whose items stay together, in the first block.
        worth: Task -> item -> how much it tells; those come first that tell most.

    Returns:
        Nested sets, the last one the whole split; just that where nothing can be divided.
    """
    ends = [racing.first_share]
    while ends[-1] * 2 < 1:
        ends.append(ends[-1] * 2)
    whole = {task: tuple(ids) for task, ids in items.items()}
    found: list[dict[str, tuple[str, ...]]] = []
    for end in ends:
        stage: dict[str, tuple[str, ...]] = {}
        for task, ids in whole.items():
            count = len(ids)
            if task not in undivided:
                count = max(math.ceil(end * len(ids)), min(least_items, len(ids)))
            stage |= first_items({task: ids}, count, seed, worth)
        if stage != whole and stage not in found:
            found.append(stage)
    return [*found, whole]


def first_items(
    items: Items,
    count: int,
    seed: int,
    worth: Mapping[str, Mapping[str, float]] | None = None,
) -> dict[str, tuple[str, ...]]:
    """Return so many items of each task: those that are scored first, in the split's order."""
    found = {}
    for task, ids in items.items():
        known = (worth or {}).get(task, {})
        order = sorted(ids, key=lambda item: (-known.get(item, 0.0), _place(seed, item)))
        first = set(order[:count])
        found[task] = tuple(item for item in ids if item in first)
    return found


def sample_of(items: Items, first: Items, seed: int, turn: int) -> dict[str, tuple[str, ...]]:
    """Return the items of one turn: as many of each task as are in a first one, others in turn.

    Turns after each other share out the items, in an order of their own each time round: a sample
    that came again would be easier or harder for the same candidates, and what a search learns.

    Args:
        items: Task -> items of the split.
        first: Task -> as many items as a turn has.
        seed: Of the search; another one has other items together.
        turn: Whose.
    """
    found = {}
    for task, ids in items.items():
        count = len(first[task])
        round_, place = divmod(turn, len(ids) // count)
        chosen = set(_order(tuple(ids), seed, round_)[place * count : (place + 1) * count])
        found[task] = tuple(item for item in ids if item in chosen)
    return found


# Sorting takes longer than all else of a turn, and the turns of a round have one order. Of a task
# no more than two are in use at a time: candidates are asked for nearly in their order.
@lru_cache(maxsize=256)
def _order(ids: tuple[str, ...], seed: int, round_: int) -> list[str]:
    return sorted(ids, key=lambda item: _place(seed, f"{round_}:{item}"))


def _place(seed: int, item: str) -> bytes:
    return hashlib.sha256(f"{seed}:{item}".encode()).digest()
