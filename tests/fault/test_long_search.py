"""A search of 5,000 outcomes through the real driver and archive: its costs stay bounded."""

import resource
import time
from collections.abc import Sequence
from unittest.mock import patch

import numpy as np
import pytest

from configs.schema import JobConfig
from optimizer.candidate import Candidate, Observation
from optimizer.events import Finished
from optimizer.space import SearchSpace
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.strategies.registry import STRATEGIES
from optimizer.strategies.surrogate import SurrogateStrategy
from tests.fault import scripted_search

OUTCOMES, EVERY = 5000, 50


class MostlyRandom:
    """Told everything as ``surrogate_cma`` is; asks it for one proposal in 50, others are random.

    5,000 of its own proposals would take a quarter of an hour.
    """

    def __init__(self, job: JobConfig, space: SearchSpace) -> None:
        self._surrogate, self._random = SurrogateStrategy(job, space), DirichletStrategy(job, space)

    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        strategy = self._random if index % EVERY else self._surrogate
        return strategy.ask(index, pending)

    def tell(self, observation: Observation) -> None:
        self._surrogate.tell(observation)
        self._random.tell(observation)

    def stop(self) -> dict[str, str]:
        return {}


@pytest.mark.campaign
def test_outcomes_cost_no_more_at_the_end_of_a_long_search_than_in_its_middle(tmp_path):
    times: list[float] = []
    memory_mb: list[float] = []

    def on_event(event):
        if isinstance(event, Finished) and event.outcome.key.split == "search":
            times.append(time.process_time())
            memory_mb.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)

    with patch.dict(STRATEGIES, mostly_random=MostlyRandom):
        scripted_search.run(
            tmp_path / "archive.sqlite",
            on_event=on_event,
            search={"strategy": "mostly_random"},
            budget={"evaluations": OUTCOMES},
            validation={"candidates": 2, "leave_one_out": False},
        )
    assert len(times) == OUTCOMES
    window = OUTCOMES // 5
    seconds = np.diff([times[0], *times[window - 1 :: window]])
    # The surrogate is at its largest from the second fifth on; the rest may grow with the search.
    assert seconds[-1] < 3.0 * seconds[1], seconds
    assert memory_mb[-1] - memory_mb[window] < 300, memory_mb[::window]
