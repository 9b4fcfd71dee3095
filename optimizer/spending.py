"""What a search has cost: items, model seconds and GPU hours, and when a budget is spent.

Items count as they were scored. One of which only the companion was asked for counts by its model
time relative to a scored one, as far as that was measured: a forward pass is not a generation.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from configs.schema import Budget
from optimizer.archive.archive import Archive
from optimizer.archive.records import RecordedOutcome
from workers.outcome import EvaluationRequest, Signal

# Stages of an evaluation in which the model does not run.
_OTHER_STAGES = frozenset({"materialize", "digest", "prepare", "score"})


@runtime_checkable
class ExpectsGain(Protocol):
    """What a strategy has beside ``ask`` and ``tell`` when it knows what is still to be won."""

    def expected_gain(self) -> float | None:
        """Return the hypervolume that the next candidate adds on average; None while unknown.

        Like ``ask`` it changes nothing that is asked, and is a function of what was told.
        """
        ...


def gain_expected_by(strategy: object) -> float | None:
    """Return the hypervolume that a strategy expects of the next candidate, if it can tell."""
    return strategy.expected_gain() if isinstance(strategy, ExpectsGain) else None


@dataclass(slots=True)
class Spending:
    """What evaluations have cost so far.

    Attributes:
        items: Signal -> items that were scored, or whose companion alone was asked for.
        model_s: Signal -> seconds in which a worker's model ran.
        worker_s: Seconds of workers, everything included, failures too.
    """

    items: dict[Signal, int] = field(default_factory=lambda: {"scores": 0, "companions": 0})
    model_s: dict[Signal, float] = field(default_factory=lambda: {"scores": 0.0, "companions": 0.0})
    worker_s: float = 0.0

    def add(self, outcome: RecordedOutcome, num_items: int) -> None:
        """Take in an outcome of a request for so many items; of a failure only time counts."""
        self.worker_s += sum(outcome.seconds.values())
        signal = outcome.key.signal
        if outcome.scores is not None:
            self.items[signal] += num_items
            self.model_s[signal] += sum(
                spent for stage, spent in outcome.seconds.items() if stage not in _OTHER_STAGES
            )

    @property
    def companion_share(self) -> float:
        """Model time of a companion alone relative to a scored item; 1 while not measured."""
        if not (self.items["scores"] and self.items["companions"] and self.model_s["scores"]):
            return 1.0
        scored = self.model_s["scores"] / self.items["scores"]
        return min(1.0, self.model_s["companions"] / self.items["companions"] / scored)

    @property
    def total_items(self) -> float:
        """Items, those whose companion alone was asked for by their relative model time."""
        return self.items["scores"] + self.companion_share * self.items["companions"]


def spending_of(archive: Archive, outcomes: Iterable[RecordedOutcome] | None = None) -> Spending:
    """Add up what outcomes of the search split have cost; None takes all of them."""
    spending = Spending()
    for outcome in archive.evaluations("search") if outcomes is None else outcomes:
        spending.add(outcome, num_items(archive, outcome))
    return spending


def num_items(archive: Archive, of: RecordedOutcome | EvaluationRequest) -> int:
    """Count the items that an evaluation is of."""
    return sum(map(len, archive.block(of.key.split, of.key.block).values()))


class Purse:
    """Says whether a search may go on, by its budget.

    Args:
        archive: Of the search.
        budget: The job's budget; ``evaluations`` are counted by whoever proposes.
        gpus: GPUs of each worker.
    """

    def __init__(self, archive: Archive, budget: Budget, gpus: float) -> None:
        self._archive = archive
        self._budget = budget
        self._gpus = gpus
        self._promised = 0.0
        self._refused = ""
        self.spending = spending_of(archive)

    def promise(self, request: EvaluationRequest) -> str:
        """Set aside what a request costs; returns why it may not be submitted, else nothing."""
        if reason := self.spent():
            return reason
        count = self._weight(request) * num_items(self._archive, request)
        limit = self._budget.items
        if limit is not None and self.spending.total_items + self._promised + count > limit:
            self._refused = f"budget of {limit} items spent"
            return self._refused
        self._promised += count
        return ""

    def settle(self, outcome: RecordedOutcome) -> None:
        """Take in the outcome of a request that was promised."""
        count = num_items(self._archive, outcome)
        self._promised = max(0.0, self._promised - self._weight(outcome) * count)
        self.spending.add(outcome, count)

    def spent(self) -> str:
        """Return why nothing more may be submitted; empty while it may."""
        if self._refused:
            return self._refused
        hours, gpu_hours = self._budget.hours, self._budget.gpu_hours
        if hours is not None and self._archive.elapsed_s >= hours * 3600:
            return f"budget of {hours} hours spent"
        if gpu_hours is not None and self.spending.worker_s * self._gpus >= gpu_hours * 3600:
            return f"budget of {gpu_hours} GPU hours spent"
        return ""

    def too_little_gain(self, strategy: object, num_scored: int) -> str:
        """Return why going on is not worth it, where the strategy can tell; else nothing."""
        least = self._budget.min_gain_per_hour
        if least is None or not num_scored:
            return ""
        gain, elapsed_s = gain_expected_by(strategy), self._archive.elapsed_s
        if gain is None or elapsed_s <= 0:
            return ""
        per_hour = gain * num_scored / (elapsed_s / 3600)
        if per_hour >= least:
            return ""
        return f"expected gain of {per_hour:.3g} hypervolume per hour is below {least:g}"

    def _weight(self, of: RecordedOutcome | EvaluationRequest) -> float:
        return 1.0 if of.key.signal == "scores" else self.spending.companion_share
