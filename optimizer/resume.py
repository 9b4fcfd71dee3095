"""Checking a record: would this mergefront have proposed what the archive says?"""

from dataclasses import dataclass

import numpy as np

from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from optimizer.space import SearchSpace
from optimizer.strategies.registry import make_strategy


@dataclass(frozen=True, slots=True)
class ReplayMismatch:
    """A proposal that comes out differently when it is asked for again.

    ``largest_difference`` is the largest absolute difference of a gene; a value near 1e-16
    speaks of another BLAS, a large one of another version of the strategy.
    """

    candidate: int
    origin: str
    largest_difference: float


def verify_replay(archive: Archive, space: SearchSpace) -> list[ReplayMismatch]:
    """Ask for every recorded proposal of the strategy again, and compare.

    Before each ask the strategy has been told the outcomes that the record says it had seen,
    in their recorded order, and is given the proposals that were pending then.

    Returns:
        The proposals that differ, by index; empty when all are equal bit for bit.
    """
    strategy = make_strategy(archive.job, space)
    observations = [*archive.seeds(), *archive.observations()]
    candidates = archive.candidates()
    told = 0
    mismatches = []
    for candidate in candidates:
        while told < candidate.seen:
            strategy.tell(observations[told])
            told += 1
        if candidate.is_baseline or candidate.is_attribution:
            continue
        done = {seen.candidate.index for seen in observations[:told]}
        pending = [
            other
            for other in candidates[: candidate.index]
            if other.index not in done and not other.is_attribution
        ]
        again = strategy.ask(candidate.index, pending)
        if not again.same_proposal(candidate):
            mismatches.append(_mismatch(candidate, again))
    return mismatches


def _mismatch(recorded: Candidate, again: Candidate) -> ReplayMismatch:
    difference = float(np.abs(recorded.genotype - again.genotype).max())
    return ReplayMismatch(recorded.index, recorded.origin, difference)
