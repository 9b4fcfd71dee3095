"""Two candidates of an archive item by item, with what they said."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from configs.evaluation import SplitName
from evaluators.paired import PairedDifference
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.archive.records import covered_objectives
from optimizer.results.verdict import compare
from optimizer.service.candidates import candidate_at, label, shown
from optimizer.service.errors import ConflictError
from optimizer.service.result_models import (
    CompareAnswer,
    Compared,
    ComparedItem,
    ComparedTask,
    Difference,
)

Which = Literal["differing", "wins", "losses", "all", "none"]
"""Which items are listed: those that differ, that a or b is better on, all, or none."""

_BEST_FIRST: tuple[SplitName, ...] = ("report", "select", "search")


@dataclass(frozen=True, slots=True)
class ItemsWish:
    """Which items are listed of each task, from where on, and how many at most."""

    which: Which = "differing"
    offset: int = 0
    limit: int = 50


def compare_candidates(
    archive: Archive, a: int, b: int, split: SplitName | None, wish: ItemsWish
) -> CompareAnswer:
    """Compare two candidates on the items that both were scored on.

    Args:
        archive: The record of the search.
        a: Index of the candidate that counts positively.
        b: Index of the other.
        split: Where; None is the first of report, select and search that both have items of.
        wish: Which items are listed.

    Raises:
        NotFoundError: There is no such candidate.
        ConflictError: They share no items.
    """
    sides = [_side(archive, index) for index in (a, b)]
    for place in _BEST_FIRST if split is None else (split,):
        # Once: a search that runs records more at any time.
        read = [archive.scores_and_texts(index, place) for index in (a, b)]
        ours, theirs = _shared(read[0][0], read[1][0])
        covered = covered_objectives(archive.job.objectives, ours)
        if covered:
            break
    else:
        where = "any split" if split is None else f"the {split} split"
        raise ConflictError(f"candidates {a} and {b} were scored on no items of {where} alike")
    preference = {name: archive.job.preference[name] for name in covered}
    total = sum(preference.values())
    weights = {name: 1 / len(covered) for name in covered}
    if total > 0:
        weights = {name: weight / total for name, weight in preference.items()}
    found = compare(covered, weights, ours, theirs)
    kept = [_by_item(scored, texts) for scored, texts in read]
    return CompareAnswer(
        a=sides[0],
        b=sides[1],
        split=place,
        preferred=_difference(found.mean, found.p_value),
        objectives={
            name: _difference(gap, found.objective_p_values.get(name))
            for name, gap in found.objectives.items()
        },
        tasks=[
            _task(name, ours[spec.task], theirs[spec.task], kept, wish)
            for name, objective in covered.items()
            for spec in objective.tasks
        ],
        left_out=[name for name in archive.job.objectives if name not in covered],
    )


def _side(archive: Archive, index: int) -> Compared:
    candidate = candidate_at(archive, index)
    recipe_id = archive.recipe_ids()[index]
    return Compared(candidate=index, label=label(candidate, recipe_id), recipe_id=recipe_id)


def _shared(
    first: Mapping[str, TaskScores], second: Mapping[str, TaskScores]
) -> tuple[dict[str, TaskScores], dict[str, TaskScores]]:
    """Return the scores of both on the items that both have, in one order."""
    ours, theirs = {}, {}
    for task in first.keys() & second.keys():
        shared = set(first[task].item_ids) & set(second[task].item_ids)
        if shared:
            ours[task] = first[task].restricted_to(shared)
            theirs[task] = second[task].restricted_to(shared)
    return ours, theirs


def _by_item(
    scored: Mapping[str, TaskScores], texts: Mapping[str, tuple[str, ...]]
) -> dict[tuple[str, str], str]:
    return {
        (task, item): text
        for task, kept in texts.items()
        for item, text in zip(scored[task].item_ids, kept, strict=True)
    }


def _task(
    objective: str,
    ours: TaskScores,
    theirs: TaskScores,
    texts: list[dict[tuple[str, str], str]],
    wish: ItemsWish,
) -> ComparedTask:
    gaps = (ours.values - theirs.values).tolist()
    rows = [row for row, gap in enumerate(gaps) if _is_listed(gap, wish.which)]
    listed = rows[wish.offset : wish.offset + wish.limit]
    return ComparedTask(
        task=ours.task,
        objective=objective,
        num_items=len(gaps),
        wins=sum(gap > 0 for gap in gaps),
        losses=sum(gap < 0 for gap in gaps),
        ties=sum(gap == 0 for gap in gaps),
        items=[
            ComparedItem(
                id=(item := ours.item_ids[row]),
                a=float(ours.values[row]),
                b=float(theirs.values[row]),
                text_a=shown(texts[0].get((ours.task, item))),
                text_b=shown(texts[1].get((ours.task, item))),
            )
            for row in listed
        ],
    )


def _is_listed(gap: float, which: Which) -> bool:
    if which == "differing":
        return gap != 0
    return which == "all" or (which == "wins" and gap > 0) or (which == "losses" and gap < 0)


def _difference(gap: PairedDifference, p_value: float | None) -> Difference:
    return Difference(
        mean=gap.mean,
        stderr=gap.stderr,
        sigmas=gap.sigmas if math.isfinite(gap.sigmas) else None,
        interval_95=gap.interval(0.95),
        p_value=p_value,
    )
