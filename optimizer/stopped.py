"""What candidates that were stopped have cost, and what stopping them saved.

Start at :func:`savings_of`, which adds up; :func:`describe_savings` says it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, cast

from configs.errors import ConfigError
from optimizer.candidate import SAMPLED, Candidate, Observation
from optimizer.spending import num_items, spending_of

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive


@dataclass(frozen=True, slots=True)
class Savings:
    """The candidates that were stopped, by reason (``optimizer.archive.stops``).

    Attributes:
        stopped: Reason -> candidates. Of those that were ``screened`` or ``sampled`` nothing was
            saved: otherwise they would not have been looked at.
        scored: Reason -> items that they were scored on.
        references: Reason -> items whose companion alone they were asked for.
        reference_cost: What one of those costs, in scored items.
        full_items: Items of the whole search split.
        saved: Items that stopped candidates were not scored on, those left out.
    """

    stopped: dict[str, int]
    scored: dict[str, int]
    references: dict[str, int]
    reference_cost: float
    full_items: int
    saved: int


class EvaluationCount:
    """Counts the evaluations of a search: what was scored on everything, or amounts to that.

    Args:
        group_size: So many candidates of the strategy are screened together, and count as one.
        per_score: So many that are scored are one: as many samples as have the split's items.
        is_whole: Whether a finished candidate is one by itself, and no part.
    """

    def __init__(
        self, group_size: int, per_score: int, is_whole: Callable[[Candidate], bool]
    ) -> None:
        self._group_size, self._per_score = group_size, per_score
        self._is_whole = is_whole
        self._whole = self._parts = 0

    def add(self, seen: Observation) -> int:
        """Take in what was told; returns the evaluations by then."""
        if self._is_whole(seen.candidate):
            self._whole += 1
        else:
            self._parts += num_parts(seen.candidate, self._group_size)
        return self.count

    @property
    def count(self) -> int:
        """The evaluations so far."""
        return self._whole + self._parts // (self._group_size * self._per_score)


def num_parts(candidate: Candidate, group_size: int) -> int:
    """Return how many parts of a score a candidate is: alone a baseline, a group otherwise."""
    return group_size if candidate.is_baseline else 1


def is_whole(archive: "Archive", candidate: Candidate) -> bool:
    """Whether a candidate is a baseline that was scored, or has failed, on the whole split."""
    return candidate.is_baseline and archive.outcome(candidate.index, "search") is not None


def recorded_count(archive: "Archive") -> EvaluationCount:
    """Return what counts the evaluations of a search as its driver did, from none."""
    reasons = {found.stop.reason: found.stop for found in archive.stops().values()}
    group_size = archive.job.search.screening.candidates if "screened" in reasons else 1
    per_score = 1
    if (sampled := reasons.get(SAMPLED)) is not None:
        items, whole = (cast("int", sampled.numbers[name]) for name in ("items", "of"))
        per_score = round(whole / items)
    if archive.job.search.racing.sampling and not any(map(_is_told_by, archive.observations())):
        group_size, per_score = _planned_sizes(archive) or (group_size, per_score)
    return EvaluationCount(group_size, per_score, partial(is_whole, archive))


def _is_told_by(seen: Observation) -> bool:
    """Whether an outcome of the strategy tells how candidates are scored."""
    is_scored = seen.is_scored or seen.stopped == "racing"
    return is_scored and not seen.candidate.is_baseline


def _planned_sizes(archive: "Archive") -> tuple[int, int] | None:
    """Return group and samples of an evaluation, while the record has none to tell them by.

    None where the job's strategy is not installed here.
    """
    # Whoever only looks would load all strategies.
    from optimizer.dispatch_plan import planned

    try:
        plan = planned(archive.job, archive.manifest.items("search"))
    except ConfigError:
        return None
    return plan.group_size, plan.per_score


def num_evaluated(archive: "Archive") -> int:
    """Return how many evaluations of a search are over."""
    counted = recorded_count(archive)
    for seen in archive.observations():
        counted.add(seen)
    return counted.count


def savings_of(archive: "Archive") -> Savings:
    """Add up what stopped candidates have cost and saved; everything is 0 where there is none."""
    reasons = {index: found.stop.reason for index, found in archive.stops().items()}
    scored, references = Counter[str](), Counter[str]()
    for outcome in archive.evaluations("search"):
        if (reason := reasons.get(outcome.key.candidate)) is not None:
            of = scored if outcome.key.signal == "scores" else references
            of[reason] += num_items(archive, outcome)
    full_items = sum(map(len, archive.manifest.items("search").values()))
    stopped = Counter(reasons.values())
    looked_at = {"screened", SAMPLED}
    spared = {reason: count for reason, count in stopped.items() if reason not in looked_at}
    return Savings(
        stopped=dict(stopped),
        scored={reason: scored[reason] for reason in stopped},
        references={reason: references[reason] for reason in stopped},
        reference_cost=spending_of(archive).companion_share,
        full_items=full_items,
        saved=sum(count * full_items - scored[reason] for reason, count in spared.items()),
    )


def describe_savings(found: Savings) -> list[str]:
    """Say it in sentences, one per reason; none where nothing was stopped."""
    lines = []
    if count := found.stopped.get("racing"):
        lines.append(
            f"{count} had lost the race after {found.scored['racing']} of "
            f"{count * found.full_items} items"
        )
    if count := found.stopped.get(SAMPLED):
        items = found.scored[SAMPLED]
        lines.append(
            f"{count} were scored on samples, {items} items in all, as many as "
            f"{items / found.full_items:.1f} evaluations have"
        )
    if count := found.stopped.get("broken"):
        lines.append(
            f"{count} broke the model, which {found.references['broken']} references or "
            f"{found.scored['broken']} of {count * found.full_items} items showed"
        )
    if count := found.stopped.get("screened"):
        items = found.references["screened"]
        cost = items * found.reference_cost / found.full_items
        lines.append(
            f"{count} were looked at by {items} references, which cost as much as {cost:.1f} "
            "evaluations, and others were scored instead"
        )
    if found.saved:
        share = found.saved / found.full_items
        lines.append(f"not scored: {found.saved} items, as many as {share:.1f} evaluations have")
    return lines


def savings_record(found: Savings) -> dict[str, object]:
    """Return it as JSON."""
    return {
        "candidates": found.stopped,
        "items_scored": found.scored,
        "references": found.references,
        "reference_cost": found.reference_cost,
        "items_saved": found.saved,
    }
