"""One search of a closed-form landscape, as the driver would run it.

Every strategy is told the same first: the base, the checkpoints alone, the uniform soup and three
scales of task arithmetic, which count as evaluations. Then so many candidates are under evaluation
at a time, told one by one in the order in which they were proposed. What is recorded along the way
is the true hypervolume of the front that would be returned, chosen for every method by the
posterior mean of a surrogate of all its evaluations: luck in noisy scores counts for nobody.

The variant ``sample`` scores every candidate but the very first, the base, on 16 of the 256 items
of an objective, as the default strategy does; sixteen count as one evaluation.

The variant ``screen`` looks at groups of candidates through the companions of a few items, as
``optimizer.dispatch`` does, and scores the one that the strategy promotes, on a sample, too;
sixteen groups are one evaluation, and their companions count in items.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from configs.racing import Racing, Screening
from optimizer.baselines import BaselinePlan
from optimizer.candidate import SAMPLED, Candidate, Observation
from optimizer.pareto import non_dominated
from optimizer.screening import Screens
from optimizer.strategies.registry import STRATEGIES, make_strategy
from optimizer.surrogate.surrogate import posterior_candidates
from scripts.bench.landscapes import (
    NUM_ITEMS,
    OBJECTIVES,
    Landscape,
    search_items,
)
from scripts.bench.search_rows import SearchRun, TracePoint

SCREEN, SAMPLE = "screen", "sample"
SAMPLED_VARIANTS = (SAMPLE, SCREEN)
"""Those whose candidates are scored on samples: what jobs get by default."""
VARIANTS = (*STRATEGIES, *SAMPLED_VARIANTS)
EARLY_CHECKPOINTS = (4, 6, 8, 10)
"""Of those, besides."""
CHECKPOINTS = (12, 16, 20, 25, 30, 36, 40, 50, 60, 75, 100, 150, 200, 300)
NUM_PENDING = 4
# Raised when a variant, a landscape or the loop changes what comes out; the others are at 1.
# Screening, 2: who is promoted is chosen by hyper-parameters from before its group was looked at;
# 3: whoever is scored is scored on samples.
# Samples, 2: the first merges are scored on samples, too; 3: of 16 items, no longer of a quarter.
_VERSIONS = {SCREEN: 3, SAMPLE: 3}
_SCREENING = Screening()
_PREVIEWED = _SCREENING.items // len(OBJECTIVES)
_SAMPLES = NUM_ITEMS // (Racing().sample_items or NUM_ITEMS)
"""So many samples are one evaluation."""


def run_search(
    landscape: Landscape, name: str, seed: int, evaluations: int, *, num_pending: int = NUM_PENDING
) -> SearchRun:
    """Search a landscape once; returns how far it was along the way.

    Args:
        landscape: With companions for :data:`SCREEN`.
        name: One of :data:`VARIANTS`, possibly with settings: ``strategy[key=value,...]``.
        seed: Of the search and of the noise.
        evaluations: Budget, baselines included; of a group that is screened together one counts.
        num_pending: How many candidates are under evaluation at a time.

    Raises:
        ValueError: Screening on a landscape without companions.
    """
    strategy_name, settings = _settings(name)
    screens = strategy_name == SCREEN
    if screens and not landscape.shape.companions:
        raise ValueError(f"landscape {landscape.name} has no companions to screen by")
    samples = strategy_name in SAMPLED_VARIANTS
    search = _Search(landscape, "surrogate_cma" if samples else strategy_name, seed, settings)
    search.previewed = _PREVIEWED if screens else NUM_ITEMS
    baselines = search.baselines()
    pending: list[Candidate] = []

    def proposed() -> Candidate:
        baseline = next(baselines, None)
        if baseline is not None:
            return baseline
        return search.screened(pending) if screens else search.ask(pending)

    trace: list[TracePoint] = []
    checkpoints = (*EARLY_CHECKPOINTS, *CHECKPOINTS) if samples else CHECKPOINTS
    for done in range(1, evaluations + 1):
        while len(pending) < num_pending and done + len(pending) <= evaluations:
            pending.append(proposed())
        if samples and done > 1:
            search.sample(pending.pop(0))
            for _ in range(_SAMPLES - 1):
                pending.append(proposed())
                search.sample(pending.pop(0))
        else:
            search.score(pending.pop(0))
        if done in checkpoints or done == evaluations:
            trace.append(search.trace_point(done))
    ask_ms = statistics.median(search.ask_s[-50:]) * 1e3 if search.ask_s else 0.0
    driver_s = sum(search.ask_s) + search.tell_s
    version = version_of(name)
    return SearchRun(landscape.name, name, seed, tuple(trace), ask_ms, driver_s, version)


def version_of(name: str) -> int:
    """Return which version of a variant this is: records of another one are of another search."""
    return _VERSIONS.get(_settings(name)[0], 1)


def _settings(name: str) -> tuple[str, dict[str, object]]:
    """Split ``strategy[key=value,...]`` into a strategy and its settings."""
    strategy, _, rest = name.partition("[")
    pairs = [pair.split("=") for pair in rest.rstrip("]").split(",") if pair]
    return strategy, {key: json.loads(value) for key, value in pairs}


class _Search:
    """A strategy on a landscape, with what was told and what it cost.

    ``ask_s`` holds processor seconds per ask, ``tell_s`` those of all tells.
    """

    def __init__(
        self, landscape: Landscape, name: str, seed: int, settings: dict[str, object]
    ) -> None:
        self.ask_s: list[float] = []
        self.tell_s = 0.0
        self.previewed = NUM_ITEMS
        self._landscape = landscape
        self._seed = seed
        self._job = landscape.job(name, seed=seed, **settings)
        self._space = landscape.space(self._job)
        self._strategy = make_strategy(self._job, self._space)
        self._observations: list[Observation] = []
        self._items = 0.0
        self._count = 0

    def baselines(self) -> Iterator[Candidate]:
        """Yield what every search is told first."""
        plan = BaselinePlan(self._space, list(self._job.models.checkpoints), self._job.preference)
        proposed: list[Candidate] = []
        # All the budget is left: the plan wants the others later.
        while (found := plan.next(proposed, [], left=10**6)) is not None:
            genotype = self._space.encode(found.recipe.weights, found.recipe.drop_ratios)
            proposed.append(
                Candidate(self._next_index(), genotype, found.recipe, found.origin, seen=0)
            )
            yield proposed[-1]

    def ask(self, pending: Sequence[Candidate]) -> Candidate:
        """Ask for the next candidate."""
        start = time.process_time()
        candidate = self._strategy.ask(self._next_index(), pending)
        self.ask_s.append(time.process_time() - start)
        return candidate

    def screened(self, pending: Sequence[Candidate]) -> Candidate:
        """Ask for a group, look at the companions of all, and return the one that goes on."""
        group: list[Candidate] = []
        for _ in range(_SCREENING.candidates):
            group.append(self.ask([*pending, *group]))
        seen = [self._observe(candidate, items=0) for candidate in group]
        if not isinstance(self._strategy, Screens):
            raise TypeError(f"strategy {self._job.search.strategy} promotes nobody")
        chosen = self._strategy.promote(group, seen)
        for observation in seen:
            if observation.candidate is not group[chosen]:
                self._tell(observation)
        return group[chosen]

    def score(self, candidate: Candidate) -> None:
        """Score a candidate on all items and tell the strategy."""
        self._tell(self._observe(candidate, items=NUM_ITEMS))

    def sample(self, candidate: Candidate) -> None:
        """Score a candidate on its share of the items and tell the strategy."""
        seen = self._observe(candidate, items=NUM_ITEMS // _SAMPLES)
        self._tell(replace(seen, stopped=SAMPLED))

    def trace_point(self, evaluations: int) -> TracePoint:
        """Return the true worth of the front that would be returned now."""
        candidates, posterior = posterior_candidates(self._space, OBJECTIVES, self._observations)
        front = np.flatnonzero(non_dominated(posterior.mean))
        truth = np.array([self._landscape.truth(candidates[row].recipe) for row in front])
        chosen = int(np.argmax(posterior.mean.mean(axis=1)))
        best = float(self._landscape.truth(candidates[chosen].recipe).mean())
        volume = self._landscape.relative_hypervolume(truth)
        return TracePoint(evaluations, self._items, volume, best)

    def _next_index(self) -> int:
        self._count += 1
        return self._count - 1

    def _observe(self, candidate: Candidate, *, items: int) -> Observation:
        # The noise of a candidate is the same whatever proposed it: drawn by seed and index, and
        # once per candidate, so that looking twice at a companion says nothing new.
        rng = np.random.default_rng([self._seed, candidate.index])
        return self._landscape.observe(candidate, rng, items=items, previewed=self.previewed)

    def _tell(self, observation: Observation) -> None:
        self._observations.append(observation)
        self._items += search_items(observation)
        start = time.process_time()
        self._strategy.tell(observation)
        self.tell_s += time.process_time() - start
