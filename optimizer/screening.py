"""Screening: several candidates are looked at by their companions, one of them is scored.

A group is so many proposals of the strategy in a row. Each is asked for its companions only, one
forward pass per item; when all of a group are known, the strategy says which goes on.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from optimizer.candidate import Candidate, Observation


@runtime_checkable
class Screens(Protocol):
    """What a strategy has beside ``ask`` and ``tell`` when it can choose by companions."""

    def promote(self, candidates: Sequence[Candidate], observations: Sequence[Observation]) -> int:
        """Choose the candidate that is scored.

        Like ``ask`` it changes nothing, and is a function of what was told.

        Args:
            candidates: Those of a group that did not fail, two or more, by index.
            observations: Theirs, with companions and without scores; they were not told.

        Returns:
            Position in ``candidates``.
        """
        ...


class Groups:
    """Which candidates of the strategy are screened together: every ``size`` in a row."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._rank: dict[int, int] = {}
        self._members: list[list[int]] = []

    def add(self, candidate: Candidate) -> None:
        """Take in a proposal; those are to come in the order of their index."""
        if candidate.is_baseline or candidate.index in self._rank:
            return
        if not self._members or len(self._members[-1]) == self.size:
            self._members.append([])
        self._rank[candidate.index] = len(self._members) - 1
        self._members[-1].append(candidate.index)

    def of(self, index: int) -> list[int]:
        """Return the group of a candidate: empty for a baseline, and while some are missing."""
        if index not in self._rank:
            return []
        members = self._members[self._rank[index]]
        return list(members) if len(members) == self.size else []
