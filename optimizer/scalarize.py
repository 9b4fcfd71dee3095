"""From scores of several objectives to arrays, reference points and one preferred number."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.scores import FloatArray, Scores
from optimizer.candidate import Observation


def score_matrix(scores: Sequence[Scores], names: Sequence[str]) -> FloatArray:
    """Return score values as an ``(n, m)`` float64 array, columns in the order of ``names``."""
    rows = [[score[name].value for name in names] for score in scores]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(names))


def preferred_mean(scores: Scores, preference: Mapping[str, float]) -> float:
    """Return the preference-weighted mean of the objectives; weights sum to one."""
    return sum(weight * scores[name].value for name, weight in preference.items())


def reference_point(observations: Sequence[Observation], names: Sequence[str]) -> FloatArray:
    """Place the hypervolume's reference point where a merge begins to be worth something.

    In each objective that is the base model's score less two items' worth, so that a merge
    that is no better than the base in one objective still counts for the others. Where the
    base was not scored, the lowest score of a baseline (or of anything) takes its place.

    Returns:
        ``(m,)`` float64; zeros when nothing was scored.
    """
    scored = [seen for seen in observations if seen.is_scored]
    if not scored:
        return np.zeros(len(names))
    base = [seen for seen in scored if seen.candidate.origin == "baseline:base"]
    baselines = [seen for seen in scored if seen.candidate.is_baseline]
    scores = [seen.scores for seen in base or baselines or scored if seen.scores]
    counts = np.array([scores[0][name].count for name in names], dtype=np.float64)
    reference: FloatArray = score_matrix(scores, names).min(axis=0) - 2.0 / counts
    return reference
