"""Racing: after each block of items, which candidates are worth the rest of theirs. Pure functions.

A candidate is stopped when with confidence it does nothing that its search would use: some member
of the front is at least as good in every objective, and the best by the preference is better.
Candidates are compared on the items that both were scored on (``evaluators.paired``), by means and
errors that count two items more than were seen: Agresti and Min, "Simple improved confidence
intervals for comparing matched proportions" (Statistics in Medicine 24, 2005). Without these, items
on which two candidates happen to agree would claim certainty.

Once ``FIRST_CHOICE`` candidates were scored on everything, the record of their items does more:
those that told them apart come first, and a candidate is compared by its whole split, of which
that record predicts what was not scored (``optimizer.item_record``).

A stopped candidate's scores are estimated for the whole split, too: until then by
:func:`whole_estimate`; of samples, by what samples told of the items (``optimizer.sample_record``).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import stdtr

from configs.evaluation import Objective
from configs.racing import Racing
from evaluators.paired import PairedDifference, Stratum, strata
from evaluators.scores import (
    FloatArray,
    ObjectiveScore,
    Scores,
    TaskScores,
    aggregate,
)
from optimizer.item_record import ItemRecord
from optimizer.sample_record import SampleRecord

FIRST_CHOICE = 12
"""So many candidates are scored on everything before their items are chosen among, and again
whenever there are twice as many."""

# What Agresti and Min add to the items of a comparison.
_PSEUDO_ITEMS = 2.0


def adjusted_difference(parts: Sequence[Stratum], spans: Sequence[float]) -> PairedDifference:
    """Estimate the weighted mean of the strata's means, with two items more in each.

    One of them is a tie, the other is half won and half lost, by the span of the scores.

    Args:
        parts: The comparison.
        spans: Largest possible difference of an item, per stratum.
    """
    mean, variance, spread = 0.0, 0.0, 0.0
    for part, span in zip(parts, spans, strict=True):
        weights = np.ones(part.differences.size) if part.weights is None else part.weights
        weights = weights / weights.mean()
        total = weights.size + _PSEUDO_ITEMS
        centre = float(weights @ part.differences) / total
        residuals = weights * (part.differences - centre)
        square = float(residuals @ residuals) + span**2 + _PSEUDO_ITEMS * centre**2
        own = part.share**2 * square / total**2
        mean += part.share * centre
        variance += own
        spread += own**2 / (total - 1)
    freedom = variance**2 / spread if spread else math.inf
    return PairedDifference(mean, math.sqrt(variance), freedom)


def doubt(lead: PairedDifference, margin: float = 0.0) -> float:
    """One-sided p-value of a lead of more than ``-margin``, by Student's t distribution."""
    if lead.stderr == 0.0:
        return 0.0 if lead.mean > -margin else 1.0
    return float(stdtr(lead.degrees_of_freedom, -(lead.mean + margin) / lead.stderr))


@dataclass(frozen=True, slots=True)
class _Rival:
    """A candidate that was scored on the whole split, and what it is compared by."""

    index: int
    point: FloatArray
    mean: float
    items: Mapping[str, TaskScores]


@dataclass(frozen=True, slots=True)
class Loss:
    """Why a candidate lost: to which member of the front, and how sure that is.

    ``leads`` maps objectives to the mean lead of the rival over the candidate, on the items that
    were scored. ``doubts`` are the p-values: one per objective, and ``preferred`` of the
    candidate ``best`` in the preferred mean.
    """

    rival: int
    best: int
    leads: dict[str, float]
    doubts: dict[str, float] = field(default_factory=dict)


class Race:
    """The candidates that were scored on the whole split, against which others are held.

    What it decides is a function of the candidates that were added, in their order.

    Args:
        objectives: The job's objectives.
        preference: Objective -> weight; the weights sum to one.
        settings: The job's settings of racing.
        num_looks: How often a candidate is looked at before its last block.
    """

    def __init__(
        self,
        objectives: Mapping[str, Objective],
        preference: Mapping[str, float],
        settings: Racing,
        num_looks: int,
    ) -> None:
        self._objectives = objectives
        self._preference = preference
        self._margin = settings.margin
        # Each look may err once: their errors add up to what the job allows (Bonferroni). The
        # objectives share one level, since all of them have to agree (Berger 1982).
        self._level = (1.0 - settings.confidence) / max(1, num_looks)
        self._front: list[_Rival] = []
        self._best: _Rival | None = None
        self._errors: list[list[float]] = []
        self._records: dict[str, ItemRecord] = {}
        self._samples: dict[str, SampleRecord] = {}
        # Samples from before anything was scored on the whole split.
        self._early: list[Mapping[str, TaskScores]] = []
        self.num_complete = 0

    def add(self, index: int, scores: Scores, items: Mapping[str, TaskScores]) -> None:
        """Take in a candidate that was scored on the whole split."""
        point = np.array([scores[name].value for name in self._objectives])
        mean = sum(weight * scores[name].value for name, weight in self._preference.items())
        rival = _Rival(index, point, mean, items)
        self._errors.append([scores[name].stderr for name in self._objectives])
        self.num_complete += 1
        for task, part in items.items():
            if task in self._records:
                self._records[task].add(part)
            else:
                self._records[task] = ItemRecord(part)
        if self._best is None or mean > self._best.mean:
            self._best = rival
        if not any((member.point >= point).all() for member in self._front):
            beaten = [(point >= member.point).all() for member in self._front]
            kept = [m for m, gone in zip(self._front, beaten, strict=True) if not gone]
            self._front = [*kept, rival]

    def learn(self, items: Mapping[str, TaskScores]) -> None:
        """Learn how easy items are, where candidates are scored on samples.

        Args:
            items: Task -> scores of a candidate, on a sample or on the whole split.
        """
        if not self.num_complete:
            self._early.append(items)
            return
        if not self._samples:
            self._samples = {task: SampleRecord(part) for task, part in items.items()}
            known = self._early
        else:
            known = [items]
        for each in known:
            for task, part in each.items():
                self._samples[task].add(part)

    def loss(self, items: Mapping[str, TaskScores]) -> Loss | None:
        """Say whether a candidate has lost, by its scores on part of the split.

        Args:
            items: Task -> scores so far; a task may be missing.

        Returns:
            To whom and how surely; None while it may still be of use.
        """
        wanted = [spec.task for part in self._objectives.values() for spec in part.tasks]
        if self._best is None or any(task not in items for task in wanted):
            return None
        preferred = doubt(self._lead(self._best, items, self._preference))
        if preferred > self._level:
            return None
        margins = self._margin * np.median(np.array(self._errors), axis=0)
        lost: list[tuple[float, Loss]] = []
        for member in self._front:
            leads = {name: self._lead(member, items, {name: 1.0}) for name in self._objectives}
            doubts = {
                name: doubt(lead, float(margin))
                for (name, lead), margin in zip(leads.items(), margins, strict=True)
            }
            worst = max(doubts.values())
            if worst <= self._level:
                means = {name: lead.mean for name, lead in leads.items()}
                doubts["preferred"] = preferred
                lost.append((worst, Loss(member.index, self._best.index, means, doubts)))
        return min(lost, key=lambda found: found[0])[1] if lost else None

    def estimate(self, items: Mapping[str, TaskScores]) -> Scores:
        """Estimate a stopped candidate's scores on the whole split.

        By what samples told of its items, by the record of whole candidates, or by
        ``whole_estimate`` while these are few. While nothing was scored on the whole split, they
        are what was found.
        """
        if not self.num_complete:
            return aggregate(self._objectives, items)
        parts = {}
        for task, part in items.items():
            known = self._records[task]
            if task in self._samples:
                parts[task] = self._samples[task].predict(part).score
            elif self._predicts:
                parts[task] = known.predict(part).score
            else:
                usual = replace(known.first, values=known.total / known.count)
                parts[task] = whole_estimate(part, usual, (known.low, known.high))
        scores: Scores = {}
        for name, objective in self._objectives.items():
            total = sum(spec.weight for spec in objective.tasks)
            shares = [(spec.weight / total, parts[spec.task]) for spec in objective.tasks]
            scores[name] = ObjectiveScore(
                value=sum(share * part.value for share, part in shares),
                stderr=math.hypot(*(share * part.stderr for share, part in shares)),
                count=sum(part.count for _, part in shares),
            )
        return scores

    def _lead(
        self, rival: _Rival, items: Mapping[str, TaskScores], preference: Mapping[str, float]
    ) -> PairedDifference:
        """Compare a rival with a candidate: on the whole split, or on the candidate's items."""
        if self._predicts:
            return self._predicted_lead(rival, items, preference)
        shared = {
            task: rival.items[task].restricted_to(set(part.item_ids))
            for task, part in items.items()
        }
        used = [
            spec.task
            for name, objective in self._objectives.items()
            for spec in objective.tasks
            if preference.get(name, 0.0) > 0.0
        ]
        spans = [self._records[task].span for task in used]
        return adjusted_difference(strata(self._objectives, preference, shared, items), spans)

    @property
    def _predicts(self) -> bool:
        """Whether enough is known of the items to predict what was not scored."""
        return self.num_complete >= FIRST_CHOICE

    def worth(self) -> dict[str, dict[str, float]]:
        """Return task -> item -> how much it told complete candidates apart."""
        return {task: record.worth() for task, record in self._records.items()}

    def _predicted_lead(
        self, rival: _Rival, items: Mapping[str, TaskScores], preference: Mapping[str, float]
    ) -> PairedDifference:
        """Compare a rival's whole split with what is predicted of a candidate's.

        One item counts as not known in addition, as of :func:`adjusted_difference`.
        """
        mean, variance, spread = 0.0, 0.0, 0.0
        for name, objective in self._objectives.items():
            total = sum(spec.weight for spec in objective.tasks)
            for spec in objective.tasks:
                if not (share := preference.get(name, 0.0) * spec.weight / total):
                    continue
                record, whole = self._records[spec.task], rival.items[spec.task]
                found = record.predict(items[spec.task])
                error = found.variance + (record.span / whole.values.size) ** 2
                mean += share * (whole.mean - found.mean)
                variance += share**2 * error
                spread += (share**2 * error) ** 2 / (found.count + 1.0)
        return PairedDifference(
            mean, math.sqrt(variance), variance**2 / spread if spread else math.inf
        )


def whole_estimate(
    part: TaskScores, usual: TaskScores, limits: tuple[float, float]
) -> ObjectiveScore:
    """Estimate the mean of a task over the whole split from some of its items.

    A block may happen to be easy. How easy is known from the candidates that were scored on all
    items: the estimate is the mean of the block plus b times what they got more on the whole split
    than on the block, where b is the slope of the candidate's scores over theirs, within [0, 1]:
    0 is the plain mean, 1 the difference estimator (Cochran, "Sampling Techniques", 1977, chapter
    7). The error has two parts, as in double sampling (equation 12.51 there, to first order): that
    of the items not scored, and that of the split itself, which every score of it has.

    Args:
        part: The candidate's scores, on some items of the task.
        usual: What other candidates got on all items of the task, on average.
        limits: The lowest and the highest score of an item; no mean is outside.
    """
    known = usual.restricted_to(set(part.item_ids)).values
    weights = np.ones(part.values.size) if part.weights is None else part.weights
    weights = weights / weights.sum()
    mean, centre = float(weights @ part.values), float(weights @ known)
    spread = float(weights @ (known - centre) ** 2)
    shared = float(weights @ ((known - centre) * (part.values - mean)))
    slope = min(1.0, max(0.0, shared / spread)) if spread > 0 else 0.0
    value = mean + slope * (usual.mean - centre)
    size, total = part.values.size, usual.values.size
    residuals = part.values - mean - slope * (known - centre)
    # Items that weigh more make the mean vary as fewer items would.
    effective = 1.0 / float(weights @ weights)
    own = float(weights @ (part.values - mean) ** 2) * size / max(1, size - 1)
    left = float(weights @ residuals**2) * size / max(1, size - 2)
    variance = left / effective * (1.0 - size / total) + own / effective * size / total
    low, high = min(limits[0], float(part.values.min())), max(limits[1], float(part.values.max()))
    return ObjectiveScore(min(high, max(low, value)), math.sqrt(variance), size)
