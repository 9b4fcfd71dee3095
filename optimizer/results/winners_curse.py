"""The winner's curse: how much the scores of the search flatter the merge that it chose.

Whatever is picked for a high score owes part of it to luck, and loses that on other items. Items
of another split may also be harder for everyone; the baselines, which nothing picked, show by how
much, so the curse is what the chosen merge lost beyond them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from configs.evaluation import SplitName
from evaluators.paired import PairedDifference, paired_difference
from evaluators.scores import TaskScores, aggregate
from optimizer.archive.archive import Archive
from optimizer.scalarize import preferred_mean

_SPLITS: tuple[SplitName, SplitName] = ("search", "report")


@dataclass(frozen=True, slots=True)
class WinnersCurse:
    """Preferred means of the chosen merge on search and report items, and of the baselines.

    On the search items that the chosen merge was scored on, which may be a sample of them.
    ``baselines_search`` and ``baselines_report`` are averages over the baselines that were scored
    on those items, and on the report items. ``flattery`` is by how much more the chosen merge fell
    than they did, with its standard error: (chosen - baselines on search) - (chosen - baselines on
    report).
    """

    search: float
    report: float
    baselines_search: float
    baselines_report: float
    flattery: float
    stderr: float

    @property
    def sentence(self) -> str:
        """The curse in words."""
        numbers = f"{self.flattery:+.3f} ± {self.stderr:.3f}"
        said = f"so the search flattered it by {numbers}"
        if self.flattery <= 0:
            said = f"so no flattery shows ({numbers})"
        return (
            f"Winner's curse: the chosen merge scored {self.search:.3f} on its search items and "
            f"{self.report:.3f} on the report items, where baselines went from "
            f"{self.baselines_search:.3f} to {self.baselines_report:.3f}; {said}."
        )


def winners_curse(archive: Archive, chosen: int, baselines: Sequence[int]) -> WinnersCurse | None:
    """Compare search with report scores; None where the chosen merge or all baselines lack some.

    Args:
        archive: The record of the search.
        chosen: The chosen candidate.
        baselines: Candidates that the search did not pick.
    """
    search, report = archive.scores("search"), archive.scores("report")
    items = archive.scored_items(chosen, "search")
    known = [
        index
        for index in baselines
        if index in report and _has_all(archive.scored_items(index, "search"), items)
    ]
    if chosen not in search or chosen not in report or not known:
        return None
    (before, own), (after, held_out) = (_ahead(archive, chosen, known, split) for split in _SPLITS)
    return WinnersCurse(
        search=own,
        report=held_out,
        baselines_search=own - before.mean,
        baselines_report=held_out - after.mean,
        flattery=before.mean - after.mean,
        # Items of the two splits are different, so their errors are independent.
        stderr=math.hypot(before.stderr, after.stderr),
    )


def _ahead(
    archive: Archive, chosen: int, baselines: Sequence[int], split: SplitName
) -> tuple[PairedDifference, float]:
    """Return how far a merge is ahead of the average baseline, and its own preferred mean.

    Both on the items that the merge was scored on.
    """
    ours = archive.scored_items(chosen, split)
    parts = [archive.scored_items(index, split) for index in baselines]
    average = {
        task: _mean_scores([part[task].restricted_to(set(own.item_ids)) for part in parts])
        for task, own in ours.items()
    }
    objectives, preference = archive.job.objectives, archive.job.preference
    mean = preferred_mean(aggregate(objectives, ours), preference)
    return paired_difference(objectives, preference, ours, average), mean


def _has_all(known: Mapping[str, TaskScores], wanted: Mapping[str, TaskScores]) -> bool:
    return all(
        task in known and set(part.item_ids) <= set(known[task].item_ids)
        for task, part in wanted.items()
    )


def _mean_scores(parts: Sequence[TaskScores]) -> TaskScores:
    values = np.mean([part.values for part in parts], axis=0)
    return TaskScores(parts[0].task, parts[0].item_ids, values, parts[0].weights)
