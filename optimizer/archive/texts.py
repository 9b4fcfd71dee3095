"""Which generated texts an archive keeps: rows never go, so that is decided when they are told."""

from collections.abc import Sequence

import numpy as np

from configs.evaluation import SplitName
from evaluators.scores import FloatArray, Scores
from optimizer.archive.records import RecordedOutcome
from optimizer.candidate import Candidate
from optimizer.gates import repetitive_share
from optimizer.pareto import non_dominated
from optimizer.scalarize import score_matrix
from workers.outcome import Completed

Part = tuple[SplitName, str]
"""A split, and a block of it."""


class KeptTexts:
    """Decides, outcome by outcome.

    Kept are the texts of held-out evaluations, of baselines, and of rivals: candidates that none
    dominates of those scored on the same items before. Texts that only repeat themselves are kept
    too: they say why a candidate is stopped, and a driver that is started again asks them.
    """

    def __init__(self, repetition: float | None) -> None:
        """Begin.

        Args:
            repetition: From which share on texts that repeat themselves are kept; None: never.
        """
        self._repetition = repetition
        self._fronts: dict[Part, FloatArray] = {}
        self._num_seen = 0

    def keeps(
        self,
        outcome: Completed,
        candidate: Candidate,
        scores: Scores,
        recorded: Sequence[RecordedOutcome],
    ) -> bool:
        """Whether the texts of an outcome are kept.

        Args:
            outcome: Not recorded yet.
            candidate: Whose it is.
            scores: Its scores by objective.
            recorded: All outcomes before it; the same list each time, only longer.
        """
        key = outcome.key
        if not outcome.texts or key.split != "search" or candidate.is_baseline:
            return bool(outcome.texts)
        if self._repetition is not None and repetitive_share(outcome.texts) >= self._repetition:
            return True
        self._see(recorded)
        point = score_matrix([scores], tuple(scores))
        rivals = self._fronts.get((key.split, key.block), point[:0])
        return bool(scores) and bool(non_dominated(np.vstack([rivals, point]))[-1])

    def _see(self, recorded: Sequence[RecordedOutcome]) -> None:
        """Keep the fronts only: what one of them dominates, dominates nobody else."""
        new: dict[Part, list[Scores]] = {}
        for found in recorded[self._num_seen :]:
            if found.scores:
                new.setdefault((found.key.split, found.key.block), []).append(found.scores)
        self._num_seen = len(recorded)
        for part, scores in new.items():
            points = score_matrix(scores, tuple(scores[0]))
            if part in self._fronts:
                points = np.vstack([self._fronts[part], points])
            self._fronts[part] = points[non_dominated(points)]
