"""Did the search win? The chosen merge against every baseline, item by item, on report items."""

from dataclasses import dataclass

from evaluators.paired import PairedDifference, paired_difference
from optimizer.archive import Archive
from optimizer.driver import baseline_labels
from optimizer.scalarize import preferred_mean
from optimizer.space import SearchSpace

WIN_SIGMAS = 2.0
"""How many standard errors of the paired difference a win takes."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The chosen merge against the baselines, on the preferred mean over the report split.

    ``differences`` maps a baseline's label to chosen minus baseline, strongest baseline first.
    ``means`` maps every label, and ``chosen``, to its preferred mean. ``chosen_baseline`` is
    the label of the chosen merge when that is a baseline itself.
    """

    chosen: int
    chosen_baseline: str | None
    means: dict[str, float]
    differences: dict[str, PairedDifference]

    @property
    def strongest(self) -> str | None:
        """Label of the baseline with the best mean; None when none was scored."""
        return next(iter(self.differences), None)

    @property
    def won(self) -> bool:
        """Whether the chosen merge beats every baseline by more than two standard errors."""
        if self.chosen_baseline is not None or not self.differences:
            return False
        return all(difference.sigmas > WIN_SIGMAS for difference in self.differences.values())

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
        gap = self.differences[self.strongest]
        numbers = f"{gap.mean:+.3f} ± {gap.stderr:.3f} on the mean of the objectives"
        if self.won:
            return (
                f"The chosen merge beats every baseline by more than {WIN_SIGMAS:.0f} standard "
                f"errors; against the strongest, {self.strongest}, {numbers}."
            )
        if gap.mean > 0:
            return (
                f"The search did not win clearly: against the strongest baseline, "
                f"{self.strongest}, {numbers}."
            )
        return f"The search did not win: against {self.strongest}, {numbers}."


def verdict(archive: Archive, space: SearchSpace) -> Verdict | None:
    """Compare the archive's choice with its baselines; None before the report split is scored."""
    chosen = archive.choice()
    scores = archive.scores("report")
    if chosen is None or chosen not in scores:
        return None
    preference = archive.job.preference
    ours = archive.task_scores(chosen, "report")
    every = baseline_labels(archive, space)
    labels = {label: index for label, index in every.items() if index in scores and index != chosen}
    chosen_baseline = next((label for label, index in every.items() if index == chosen), None)
    means = {label: preferred_mean(scores[index], preference) for label, index in labels.items()}
    differences = {
        label: paired_difference(
            archive.job.objectives, preference, ours, archive.task_scores(labels[label], "report")
        )
        for label in sorted(labels, key=lambda name: -means[name])
    }
    means["chosen"] = preferred_mean(scores[chosen], preference)
    return Verdict(chosen, chosen_baseline, means, differences)
