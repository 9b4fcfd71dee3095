"""What the calls of a strategy cost the driver, by how many outcomes it knows.

Times are those of this process's processors: run with one thread (``OMP_NUM_THREADS=1``) to see
what one core takes.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from configs.racing import Screening
from optimizer.candidate import Candidate
from optimizer.screening import Screens
from optimizer.spending import ExpectsGain
from optimizer.strategies.dirichlet import DirichletStrategy
from optimizer.strategies.registry import make_strategy
from scripts.bench.landscapes import Landscape

T = TypeVar("T")

NUM_PENDING = 8
_PROMOTIONS, _LEAST_NEWS = 3, 8


@dataclass(frozen=True, slots=True)
class AskTimes:
    """Median processor milliseconds of one call, per outcomes known.

    Attributes:
        landscape: Name of the landscape.
        ask_ms_at: Of an ask.
        tell_ms_at: Of the tell before it.
        promote_ms_at: Of choosing one of a group, which a freed worker waits for; where there are
            companions.
        expected_gain_ms_at: Of saying what the next candidate adds, where that is estimated anew
            (after every few outcomes); the largest, not the median.
    """

    landscape: str
    ask_ms_at: dict[str, float] = field(default_factory=dict)
    tell_ms_at: dict[str, float] = field(default_factory=dict)
    promote_ms_at: dict[str, float] = field(default_factory=dict)
    expected_gain_ms_at: dict[str, float] = field(default_factory=dict)


def measure_asks(
    landscape: Landscape, outcomes: Sequence[int], name: str = "surrogate_cma", asks: int = 9
) -> AskTimes:
    """Measure an ask after so many outcomes, each with news and 8 candidates pending.

    Outcomes are those of random search; between asks one more is told, so that nothing is answered
    from what the last ask computed.

    Args:
        landscape: With companions, promotions are measured, too.
        outcomes: How many are known when it is measured.
        name: Of the strategy.
        asks: How many asks the median is of.
    """
    job = landscape.job(name)
    space = landscape.space(job)
    strategy = make_strategy(job, space)
    random = DirichletStrategy(job, space)
    rng = np.random.default_rng(0)
    found = AskTimes(landscape.name)
    told = 0
    for count in sorted(outcomes):
        # The last ones one by one, as a search has them: what is fitted now and then is fitted.
        for index in range(told, count):
            strategy.tell(landscape.observe(random.ask(index, []), rng))
            if index % 10 == 0 and count - index < count / 8:
                strategy.ask(index, [])
        if isinstance(strategy, ExpectsGain):
            strategy.expected_gain()
        told = count + asks
        pending = [random.ask(10**6 + i, []) for i in range(NUM_PENDING)]
        ask_s, tell_s = [], []
        for index in range(count, told):
            spent_s, candidate = _timed(strategy.ask, index, pending)
            ask_s.append(spent_s)
            pending.append(candidate)
            tell_s.append(_timed(strategy.tell, landscape.observe(pending.pop(0), rng))[0])
        found.ask_ms_at[str(count)] = _ms(statistics.median(ask_s))
        found.tell_ms_at[str(count)] = _ms(statistics.median(tell_s))
        if isinstance(strategy, Screens) and landscape.shape.companions:
            group = _group(random, told)
            seen = [landscape.observe(one, rng, items=0) for one in group]
            promote_s = [_timed(strategy.promote, group, seen)[0] for _ in range(_PROMOTIONS)]
            found.promote_ms_at[str(count)] = _ms(statistics.median(promote_s))
        if isinstance(strategy, ExpectsGain):
            # Most calls answer with the last estimate: the longest of so many makes one anew, of
            # a belief that it shares with the ask.
            expect_s = []
            for index in range(told, told + max(_LEAST_NEWS, told // 16)):
                strategy.tell(landscape.observe(random.ask(index, []), rng))
                strategy.ask(index, [])
                expect_s.append(_timed(strategy.expected_gain)[0])
            told += len(expect_s)
            found.expected_gain_ms_at[str(count)] = _ms(max(expect_s))
    return found


def _timed(call: Callable[..., T], *arguments: object) -> tuple[float, T]:
    """Return the processor seconds of a call, and its result."""
    start = time.process_time()
    result = call(*arguments)
    return time.process_time() - start, result


def _group(random: DirichletStrategy, told: int) -> list[Candidate]:
    """Return candidates that were asked for when so many outcomes were known."""
    drawn = [random.ask(2 * 10**6 + place, []) for place in range(Screening().candidates)]
    return [replace(one, seen=told) for one in drawn]


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 2)
