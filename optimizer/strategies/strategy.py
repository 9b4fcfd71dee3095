"""What proposes candidates: the contract. ``registry`` beside it names those there are."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from configs.schema import JobConfig
from optimizer.candidate import Candidate, Observation
from optimizer.space import SearchSpace


class Strategy(Protocol):
    """Proposes candidates, learns from observations in any finishing order.

    In ``optimizer.strategies``, or a class of a package as an entry point of
    ``mergefront.strategies``.

    A strategy's state is a function of the observations that it was told, in their order:
    ``ask`` never changes it, and draws only from a generator made of (seed, index). So a search
    is resumed by telling a fresh strategy the recorded observations in the recorded order,
    and ``ask`` can be checked against the record at any point.
    """

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Propose the candidate of a given index.

        Args:
            index: Its number among all proposals of the search.
            pending: Proposed candidates whose outcome was not told yet, by index.
        """
        ...

    def tell(self, observation: Observation) -> None:
        """Learn from a candidate, its own or a baseline, scored or failed."""
        ...

    def stop(self) -> dict[str, str]:
        """Reasons to end the search before the budget is spent: name -> explanation."""
        ...


def learns_from_samples(strategy: Strategy | Callable[..., Strategy]) -> bool:
    """Whether a strategy, or what builds it, learns as much from many samples as from few scores.

    It says so by ``learns_from_samples``.
    """
    return bool(getattr(strategy, "learns_from_samples", False))


StrategyFactory = Callable[[JobConfig, SearchSpace], Strategy]


def ask_generator(seed: int, index: int) -> np.random.Generator:
    """Return the generator of one ask: the same for the same (seed, index), wherever it runs."""
    return np.random.default_rng([seed, index])
