"""What candidates that were stopped have cost, and what stopping them saved.

Start at :func:`savings_of`, which adds up; :func:`describe_savings` says it.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimizer.candidate import Observation
from optimizer.spending import num_items, spending_of

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive


@dataclass(frozen=True, slots=True)
class Savings:
    """The candidates that were stopped, by reason (``optimizer.archive.stops``).

    Attributes:
        stopped: Reason -> candidates. Of those that were ``screened`` nothing was saved: without
            screening they would not have been looked at.
        scored: Reason -> items that they were scored on.
        references: Reason -> items whose companion alone they were asked for.
        reference_cost: What one of those costs, in scored items.
        full_items: Items of the whole search split.
        saved: Items that stopped candidates were not scored on, ``screened`` ones left out.
    """

    stopped: dict[str, int]
    scored: dict[str, int]
    references: dict[str, int]
    reference_cost: float
    full_items: int
    saved: int


def num_evaluated(observations: Sequence[Observation], group_size: int) -> int:
    """Count the evaluations of a search: candidates that are screened together are one.

    Args:
        observations: What was told.
        group_size: How many candidates are screened for each that is scored; 1 without screening.
    """
    baselines = sum(seen.candidate.is_baseline for seen in observations)
    return baselines + (len(observations) - baselines) // group_size


def recorded_group_size(archive: "Archive") -> int:
    """Return how many candidates were screened for each that was scored: 1 where none was."""
    screened = any(found.stop.reason == "screened" for found in archive.stops().values())
    return archive.job.search.screening.candidates if screened else 1


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
    spared = {reason: count for reason, count in stopped.items() if reason != "screened"}
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
