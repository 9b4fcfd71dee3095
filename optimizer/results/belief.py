"""What is believed of the merges that were scored: the surrogate's posterior beside raw scores.

The best of many noisy scores are partly lucky: raw fronts claim more than is there. The posterior
takes all that was learnt of a merge and of those like it: its search items, its select items where
it was validated, and the scores of its neighbours. Report items stay out of it: they choose
nothing. Merges of other methods than the job's, such as TIES, have no posterior; what stands for
it is their raw score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from evaluators.scores import ObjectiveScore, Scores
from optimizer.archive.recorded_space import recorded_space
from optimizer.candidate import Observation
from optimizer.results.front_view import ScoredCandidate, points_of, scored_candidates
from optimizer.scalarize import preferred_mean
from optimizer.space import SearchSpace

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

MIN_OBSERVATIONS = 12
"""With fewer merges of the job's method than this there is no model, and raw scores stand."""


def posterior_scores(
    observations: Sequence[Observation],
    space: SearchSpace,
    names: Sequence[str],
    select: Mapping[int, Scores] | None = None,
) -> dict[int, Scores]:
    """Return candidate -> posterior mean and standard deviation of every objective.

    Args:
        observations: Of the search, in their order; what failed or stopped may be among them.
        space: Of the job.
        names: The objectives.
        select: Scores on the select split, of those that have some; pooled with the others.

    Returns:
        Scores whose ``stderr`` is the posterior's standard deviation; empty with fewer than
        ``MIN_OBSERVATIONS`` scored merges of the job's method.
    """
    from optimizer.surrogate.surrogate import posterior_candidates

    known = select or {}
    pooled = [
        replace(seen, scores=_pool(seen.scores, known[seen.candidate.index]))
        if seen.scores and seen.candidate.index in known
        else seen
        for seen in observations
    ]
    usable = [s for s in pooled if s.scores and space.is_of_method(s.candidate.recipe)]
    if len(usable) < MIN_OBSERVATIONS:
        return {}
    counts = {s.candidate.index: s.scores for s in usable if s.scores}
    candidates, posterior = posterior_candidates(space, names, pooled)
    return {
        candidate.index: {
            name: ObjectiveScore(float(mean), float(deviation), counts[candidate.index][name].count)
            for name, mean, deviation in zip(names, means, deviations, strict=True)
        }
        for candidate, means, deviations in zip(
            candidates, posterior.mean, posterior.stderr, strict=True
        )
    }


def believed_candidates(archive: "Archive") -> list[ScoredCandidate]:
    """Return what was scored on the whole search split, with what is believed of it.

    Where there is no model yet, rows have no posterior, and raw scores are all there is.
    """
    rows = scored_candidates(archive, "search")
    if not rows:
        return []
    names = list(archive.job.objectives)
    select = archive.scores("select")
    known = [*archive.seeds(), *archive.observations()]
    found = posterior_scores(known, recorded_space(archive), names, select)
    if not found:
        return rows
    believed = []
    for row in rows:
        index = row.candidate.index
        scores = found.get(index)
        if scores is None:
            scores = _pool(row.scores, select[index]) if index in select else row.scores
        mean = preferred_mean(scores, archive.job.preference)
        believed.append(replace(row, posterior=scores, mean=mean))
    return believed


def knee_of(rows: Sequence[ScoredCandidate]) -> ScoredCandidate:
    """Return the knee of a front: the merge farthest from the plane through its ends.

    With every objective scaled to [0, 1] from its worst to its best value on the front, the plane
    through the ends is where the scaled objectives sum to one, so the knee has the largest sum
    (Das, "On characterizing the knee of the Pareto curve", Structural Optimization 18, 1999).

    Args:
        rows: A front, not empty.
    """
    points = points_of(rows)
    low, high = points.min(axis=0), points.max(axis=0)
    scaled = (points - low) / np.where(high > low, high - low, 1.0)
    return rows[int(np.argmax(scaled.sum(axis=1)))]


def chance_of(row: ScoredCandidate, floors: Mapping[str, float]) -> float:
    """Return how likely all floors hold for a merge, objectives taken as independent."""
    chance = 1.0
    for name, floor in floors.items():
        score = row.believed[name]
        if score.stderr > 0:
            chance *= NormalDist(score.value, score.stderr).cdf(2 * score.value - floor)
        else:
            chance *= float(score.value >= floor)
    return chance


def meets(row: ScoredCandidate, floors: Mapping[str, float]) -> bool:
    """Say whether what is believed of a merge is at or above every floor."""
    return all(row.believed[name].value >= floor for name, floor in floors.items())


def _pool(search: Scores, select: Scores) -> Scores:
    """Put the scores of two splits together; their items are different."""
    pooled = {}
    for name, score in search.items():
        other = select[name]
        total = score.count + other.count
        pooled[name] = ObjectiveScore(
            value=(score.count * score.value + other.count * other.value) / total,
            stderr=float(np.hypot(score.count * score.stderr, other.count * other.stderr)) / total,
            count=total,
        )
    return pooled
