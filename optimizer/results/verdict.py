"""Did the search win? The chosen merge against every baseline, item by item, on report items.

There are many baselines, and the strongest is known only after looking. Two things keep the
claims honest. "Better than every baseline" takes a win against each of them: the p-value is the
largest of all, which needs no correction (the intersection-union test: Berger, "Multiparameter
hypothesis testing and acceptance sampling", Technometrics 24, 1982). "Some baseline is better"
is claimed with Holm's correction for their number (Scandinavian Journal of Statistics 6, 1979).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from configs.evaluation import Objective
from evaluators.paired import PairedDifference, paired_difference, sign_flip_p_value, strata
from evaluators.scores import TaskScores
from optimizer.archive.archive import Archive
from optimizer.baselines import baseline_labels
from optimizer.results.winners_curse import WinnersCurse, winners_curse
from optimizer.scalarize import preferred_mean
from optimizer.space import SearchSpace

WIN_SIGMAS = 2.0
"""About how many standard errors of the paired difference a win takes."""

ALPHA = 0.05
"""The largest p-value that counts as a win, or as a loss."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The chosen merge minus a rival on the same items.

    Attributes:
        mean: Difference of the preferred mean of the objectives.
        objectives: Difference of each objective.
        p_value: Two-sided, of the preferred mean, by flipping signs (``sign_flip_p_value``).
        objective_p_values: The same of each objective, where asked for.
    """

    mean: PairedDifference
    objectives: dict[str, PairedDifference]
    p_value: float
    objective_p_values: dict[str, float]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The chosen merge against the baselines, over the report split.

    ``comparisons`` maps a baseline's label to chosen minus baseline, strongest baseline first.
    ``adjusted`` are their p-values after Holm's correction for the number of baselines.
    ``means`` maps every label, and ``chosen``, to its preferred mean. ``chosen_baseline`` is
    the label of the chosen merge when that is a baseline itself. ``num_rivals`` counts baselines
    of different tensors: two labels may stand for one.
    """

    chosen: int
    chosen_baseline: str | None
    means: dict[str, float]
    comparisons: dict[str, Comparison]
    adjusted: dict[str, float]
    num_rivals: int
    curse: WinnersCurse | None

    @property
    def strongest(self) -> str | None:
        """Label of the baseline with the best mean; None when none was scored."""
        return next(iter(self.comparisons), None)

    @property
    def p_value(self) -> float:
        """That the chosen merge beats every baseline, by chance alone; 1 where it does not."""
        gaps = self.comparisons.values()
        if not gaps or any(gap.mean.mean <= 0 for gap in gaps):
            return 1.0
        return max(gap.p_value for gap in gaps)

    @property
    def won(self) -> bool:
        """Whether the chosen merge beats every baseline, each of them significantly."""
        return self.chosen_baseline is None and self.p_value <= ALPHA

    @property
    def beaten_by(self) -> list[str]:
        """The baselines that are significantly better, after correction for their number."""
        return [
            label
            for label, gap in self.comparisons.items()
            if gap.mean.mean < 0 and self.adjusted[label] <= ALPHA
        ]

    def interval(self, confidence: float = 0.95) -> tuple[float, float] | None:
        """Return an interval of the gap to whichever baseline is truly the best.

        The lower end is the lowest of all baselines' intervals, and needs no correction, as the
        p-value; the upper end is the lowest of the upper ends, each widened for their number
        (Bonferroni). None without baselines.
        """
        if not self.comparisons:
            return None
        wide = 1 - (1 - confidence) / self.num_rivals
        gaps = [gap.mean for gap in self.comparisons.values()]
        low = min(gap.interval(confidence)[0] for gap in gaps)
        return low, min(gap.interval(wide)[1] for gap in gaps)

    @property
    def sentence(self) -> str:
        """The verdict in words, no stronger than the numbers."""
        if self.chosen_baseline is not None:
            return (
                f"The search did not win: on the select split nothing that it proposed was better "
                f"than a baseline, {self.chosen_baseline}, which is the choice."
            )
        if self.strongest is None:
            return "No baseline was scored on the report split, so there is no verdict."
        gap = self.comparisons[self.strongest].mean
        numbers = f"{gap.mean:+.3f} ± {gap.stderr:.3f} on the mean of the objectives"
        if self.won:
            return (
                f"The chosen merge beats every baseline ({format_p_value(self.p_value)}); "
                f"against the strongest, {self.strongest}, {numbers}."
            )
        if self.beaten_by:
            return (
                f"The search lost: against the strongest baseline, {self.strongest}, {numbers}; "
                f"significantly better than the chosen merge: {', '.join(self.beaten_by)}."
            )
        if gap.mean > 0:
            return (
                f"The search did not win clearly: against the strongest baseline, "
                f"{self.strongest}, {numbers} ({format_p_value(self.p_value)} against all)."
            )
        return f"The search did not win: against {self.strongest}, {numbers}."


def verdict(archive: Archive, space: SearchSpace) -> Verdict | None:
    """Compare the archive's choice with its baselines; None before the report split is scored."""
    chosen = archive.choice()
    scores = archive.scores("report")
    if chosen is None or chosen not in scores:
        return None
    preference = archive.job.preference
    every = baseline_labels(archive, space)
    labels = {label: index for label, index in every.items() if index in scores and index != chosen}
    means = {label: preferred_mean(scores[index], preference) for label, index in labels.items()}
    order = sorted(labels, key=lambda name: -means[name])
    found = _compare_with_each(archive, chosen, {label: labels[label] for label in order})
    means["chosen"] = preferred_mean(scores[chosen], preference)
    distinct = {labels[label]: gap.p_value for label, gap in found.items()}
    adjusted = holm(distinct)
    return Verdict(
        chosen=chosen,
        chosen_baseline=next((label for label, index in every.items() if index == chosen), None),
        means=means,
        comparisons=found,
        adjusted={label: adjusted[labels[label]] for label in found},
        num_rivals=len(distinct),
        curse=winners_curse(archive, chosen, sorted(set(labels.values()))),
    )


def compare(
    objectives: Mapping[str, Objective],
    preference: Mapping[str, float],
    ours: Mapping[str, TaskScores],
    theirs: Mapping[str, TaskScores],
    *,
    test_objectives: bool = True,
) -> Comparison:
    """Compare two merges on the same items, on the preferred mean and objective by objective.

    Args:
        objectives: The job's.
        preference: Objective -> weight.
        ours: Per-item scores of the merge that counts positively.
        theirs: Those of the other.
        test_objectives: Whether single objectives get a p-value too.

    Raises:
        ValueError: They were not scored on the same items.
    """

    def p_value(weights: Mapping[str, float]) -> float:
        return sign_flip_p_value(strata(objectives, weights, ours, theirs))

    alone = {name: {name: 1.0} for name in objectives}
    return Comparison(
        mean=paired_difference(objectives, preference, ours, theirs),
        objectives={
            name: paired_difference(objectives, weights, ours, theirs)
            for name, weights in alone.items()
        },
        p_value=p_value(preference),
        objective_p_values={name: p_value(weights) for name, weights in alone.items()}
        if test_objectives
        else {},
    )


def holm(p_values: Mapping[int, float]) -> dict[int, float]:
    """Return p-values corrected for how many there are (Holm 1979): none above 1, in order."""
    adjusted: dict[int, float] = {}
    largest = 0.0
    for place, key in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[key]))
        adjusted[key] = largest
    return adjusted


def format_p_value(value: float) -> str:
    """Write a p-value with two digits: ``p = 0.031``, ``p = 0.0004``, ``p < 0.0001``."""
    return "p < 0.0001" if value < 0.0001 else f"p = {value:.2g}"


def _compare_with_each(
    archive: Archive, chosen: int, rivals: Mapping[str, int]
) -> dict[str, Comparison]:
    """Compare with each rival, in their order; single objectives are tested for the first."""
    job = archive.job
    ours = archive.task_scores(chosen, "report")
    by_index: dict[int, Comparison] = {}
    for index in rivals.values():
        if index not in by_index:
            theirs = archive.task_scores(index, "report")
            by_index[index] = compare(
                job.objectives, job.preference, ours, theirs, test_objectives=not by_index
            )
    return {label: by_index[index] for label, index in rivals.items()}
