"""Held-out validation: which candidates are scored again, and which one is chosen.

Scores of the search split are biased upwards for whatever the search picked (the winner's
curse). So some points of the front are scored on the select split, the choice is made there,
and only what was chosen, with the baselines, is scored on the report split.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.scores import Scores
from optimizer.candidate import Observation
from optimizer.pareto import non_dominated, spread_subset
from optimizer.results.belief import posterior_scores
from optimizer.scalarize import preferred_mean, reference_point, score_matrix
from optimizer.space import SearchSpace


def validation_candidates(
    observations: Sequence[Observation],
    preference: Mapping[str, float],
    size: int,
    *,
    space: SearchSpace | None = None,
    seeds: Sequence[Observation] = (),
) -> list[int]:
    """Choose the candidates to score on the select split.

    Half of them are the best by the preferred mean, so that the choice is made among several that
    may be the best; the rest spread over the front, each adding the most hypervolume. Both go by
    the posterior mean (``optimizer.results.belief``), since the best of many raw scores are
    lucky.

    Args:
        observations: All observations of the search, failures included. What lost a race is
            left out: its scores are estimates, of what was seen to be worse.
        preference: Objective -> weight.
        size: How many to choose at the most.
        space: Of the job; without it, raw scores decide.
        seeds: What the search knew before its first proposal.

    Returns:
        Candidate indices, ascending, without repetition.
    """
    scored = [seen for seen in observations if seen.is_scored]
    if not scored:
        return []
    names = tuple(preference)
    known = [*seeds, *observations]
    believed = {} if space is None else posterior_scores(known, space, names)
    scores = [believed.get(seen.candidate.index, seen.scores) for seen in scored]
    points = score_matrix([found for found in scores if found is not None], names)
    means = points @ np.array([preference[name] for name in names])
    chosen = list(np.argsort(-means, kind="stable")[: (size + 1) // 2])
    front = np.flatnonzero(non_dominated(points))
    spread = spread_subset(points[front], reference_point(observations, names), size)
    for row in front[spread]:
        if len(chosen) < size and row not in chosen:
            chosen.append(row)
    return sorted(scored[row].candidate.index for row in chosen)


def choose_preferred(scores: Mapping[int, Scores], preference: Mapping[str, float]) -> int | None:
    """Return the candidate with the best preferred mean; the earliest of equals, None of none."""
    if not scores:
        return None
    return max(scores, key=lambda index: (preferred_mean(scores[index], preference), -index))
