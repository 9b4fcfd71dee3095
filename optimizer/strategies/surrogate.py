"""The default search: a surrogate chooses, from a pool that CMA-ES and simple moves propose.

Thompson sampling (Bradford, Schweidtmann & Lapkin, "Efficient multiobjective optimization
employing Gaussian processes", J. Glob. Optim. 71, 2018, with another pool): each ask draws one
function per objective from the posterior, and takes the merge of the pool that would add most
hypervolume if that function were true; or, for the share of asks that the preference steers, the
merge with the best preferred mean. Different draws differ, so asks for many workers spread.
"""

import statistics
from collections.abc import Sequence

import numpy as np

from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation, without_nan
from optimizer.pareto import best_gain, gain_bounds, hypervolume_contributions, non_dominated
from optimizer.scalarize import reference_point
from optimizer.space import SearchSpace
from optimizer.strategies.cma import CmaStrategy
from optimizer.strategies.strategy import ask_generator
from optimizer.strategies.surrogate_gain import expected_gain
from optimizer.strategies.surrogate_pool import Belief, Parents, draw_children, draw_pool
from optimizer.strategies.surrogate_start import draw_merges, start_genotypes, start_size
from optimizer.surrogate.blas import with_one_thread
from optimizer.surrogate.narrowing import BLOCK
from optimizer.surrogate.surrogate import Surrogate, SurrogateMemory

ORIGIN = "strategy:surrogate_cma"

# Parents of local moves: this many of the front, and the best by the preferred mean.
_FRONT_PARENTS, _PREFERRED_PARENTS = 24, 6
# The pool's best are bred for so many generations on each drawn function.
_ELITE, _GENERATIONS = 20, 3
# Of the pool's last, so many with the largest bounds have their hypervolume gain computed.
_EXACT = 64
# A belief may lack the last outcomes: as many as this share of the merges under evaluation, and of
# what was told. They count as under evaluation until it is renewed, which takes as long as an ask.
_LATE_OF_PENDING, _LATE_OF_TOLD = 1 / 8, 1 / 32
# What is expected of the next candidate is estimated again with so many outcomes more, or with
# this share of them; single estimates jump, so these many count.
_GAIN_STEP, _GAIN_STEP_SHARE, _GAIN_LOOKS = 4, 1 / 32, 3
# Beside the seed and a count, so that its draws are those of no ask.
_GAIN_DRAWS = 1
# Each function lies this much of a Thompson sample's way from the posterior's mean, drawn
# uniformly: in many dimensions a full sample is best where least is known.
_SPREAD = (0.5, 1.0)


class SurrogateStrategy:
    """Gaussian processes, Thompson samples, hypervolume-ranked CMA-ES among the proposers."""

    learns_from_samples = True

    def __init__(self, job: JobConfig, space: SearchSpace) -> None:
        self._space = space
        self._seed = job.seed
        self._names = tuple(job.objectives)
        self._preference = np.array([job.preference[name] for name in self._names])
        self._preference_share = job.search.preference_share
        self._start = [space.decode(genotype) for genotype in start_genotypes(space)]
        self._start_size = start_size(space)
        self._cma = CmaStrategy(job, space, origin=ORIGIN)
        self._told: list[Observation] = []
        self._memory = SurrogateMemory(space, self._names)
        self._belief: tuple[int, Belief] | None = None
        # A number of observations by which the start is known to be complete, whatever is pending.
        self._started_by: int | None = None
        # By the number of observations.
        self._gains: dict[int, float] = {}

    @with_one_thread
    def ask(self, index: int, pending: Sequence[Candidate]) -> Candidate:
        """Propose by the start's plan, then by a Thompson sample."""
        rng = ask_generator(self._seed, index)
        genotype = self._next_start(rng, pending)
        if genotype is None:
            genotype = self._choose(rng, pending)
        recipe = self._space.decode(genotype)
        return Candidate(index, genotype, recipe, ORIGIN, seen=len(self._told))

    def tell(self, observation: Observation) -> None:
        """Remember an observation."""
        observation = without_nan(observation)
        self._told.append(observation)
        self._cma.tell(observation)

    @with_one_thread
    def promote(self, candidates: Sequence[Candidate], observations: Sequence[Observation]) -> int:
        """Choose whom the posterior with the companions puts furthest beyond the front.

        For the share of groups that the preference steers, and where none is beyond it, that is
        the one with the best preferred mean.
        """
        if not any(seen.scores for seen in self._memory.usable(self._told)):
            return 0
        # What was fitted when the group was asked for: a freed worker waits for this.
        seen = candidates[-1].seen
        surrogate = Surrogate(
            self._space,
            self._names,
            self._told,
            memory=self._memory,
            untold=observations,
            fitted_to=seen - int(seen * _LATE_OF_TOLD),
        )
        expected = surrogate.predict_recipes([one.recipe for one in candidates]).mean
        best = int(np.argmax(expected @ self._preference))
        rng = ask_generator(self._seed, candidates[-1].index)
        if rng.random() < self._preference_share:
            return best
        known = surrogate.observed_middle()[: surrogate.num_told]
        front = known[non_dominated(known)]
        row, gain = best_gain(expected, front, reference_point(self._told, self._names))
        return row if gain > 0 else best

    @with_one_thread
    def expected_gain(self) -> float | None:
        """Return what the next candidate scored adds to the hypervolume of the front, as expected.

        In the product of the objectives' units (``surrogate_gain``): the mean of the last few
        estimates, which are made every few outcomes. It is a function of the seed and of what was
        told; None during the start.
        """
        looks: list[int] = []
        while len(looks) < _GAIN_LOOKS and self._is_started(look := _look(looks, len(self._told))):
            looks.append(look)
        self._gains = {
            look: self._gains[look] if look in self._gains else self._gain_at(look)
            for look in looks
        }
        return statistics.mean(self._gains.values()) if looks else None

    def _gain_at(self, count: int) -> float:
        """Estimate what was to be gained after so many observations."""
        # An older belief is of no use to asks, which keep the newest.
        newest = count == len(self._told)
        belief = self._believe(count) if newest else self._learn(self._told[:count])
        rng = np.random.default_rng([self._seed, count, _GAIN_DRAWS])
        return expected_gain(self._space, belief, rng)

    def stop(self) -> dict[str, str]:
        """Nothing but the budget ends a search on noisy scores."""
        return {}

    def _next_start(
        self, rng: np.random.Generator, pending: Sequence[Candidate]
    ) -> FloatArray | None:
        """Return the next genotype of the start; None when it is complete and something scored.

        A candidate that failed is not replaced, as long as the start has any scores.
        """
        if self._is_started(len(self._told), len(pending)):
            return None
        known = {seen.candidate.recipe.recipe_id for seen in self._told}
        known.update(candidate.recipe.recipe_id for candidate in pending)
        for recipe in self._start:
            if recipe.recipe_id not in known:
                return self._space.encode(recipe.weights, recipe.drop_ratios)
        drawn: FloatArray = draw_merges(self._space, 1, rng)[0]
        return drawn

    def _is_started(self, count: int, num_pending: int = 0) -> bool:
        """Whether the start is complete after so many observations, and something scored."""
        if self._started_by is not None and count >= self._started_by:
            return True
        told = self._told[:count]
        usable = self._memory.usable(told)
        num_failed = sum(seen.scores is None for seen in told)
        reached = len(usable) + num_failed + num_pending >= self._start_size
        started = reached and any(seen.scores for seen in usable)
        if started and not num_pending:
            self._started_by = count
        return started

    def _choose(self, rng: np.random.Generator, pending: Sequence[Candidate]) -> FloatArray:
        """Search one function drawn from the posterior for what is best if it were true."""
        count = self._num_believed(len(pending))
        belief = self._believe(count)
        surrogate = belief.surrogate
        steered = rng.random() < self._preference_share
        unknown = [*(seen.candidate for seen in self._told[count:]), *pending]
        if len(unknown) > BLOCK:
            # In an order in which whoever is proposed next comes last: see `Narrowing`.
            unknown.sort(key=lambda candidate: candidate.index)
        running = [one.recipe for one in unknown if self._space.is_of_method(one.recipe)]
        narrowing = surrogate.features_of_recipes(running) if running else None
        drawn = surrogate.path(rng, narrowing, spread=float(rng.uniform(*_SPREAD)))
        pool = draw_pool(self._space, belief.parents, self._cma, rng)
        scores = drawn(surrogate.features_of_genotypes(pool))
        for _ in range(_GENERATIONS):
            worth = self._worth(scores, belief, steered=steered)
            best = np.argsort(-worth, kind="stable")[:_ELITE]
            children = draw_children(self._space, pool[best], rng)
            pool = np.concatenate([pool, children])
            more = drawn(surrogate.features_of_genotypes(children))
            scores = np.concatenate([scores, more])
        if steered:
            row = int(np.argmax(scores @ self._preference))
        else:
            bounds = gain_bounds(scores, belief.front, belief.reference)
            likely = np.argsort(-bounds, kind="stable")[:_EXACT]
            place, gain = best_gain(scores[likely], belief.front, belief.reference)
            row = int(likely[place]) if gain > 0 else int(np.argmax(scores @ self._preference))
        chosen: FloatArray = pool[row]
        return chosen

    def _worth(self, scores: FloatArray, belief: Belief, *, steered: bool) -> FloatArray:
        """Order candidates, ``(n,)``: by preference, or by a bound on the hypervolume they add."""
        preferred = scores @ self._preference
        if steered:
            return np.asarray(preferred)
        bound = gain_bounds(scores, belief.front, belief.reference)
        # Those that add nothing come after all that do, in the order of the preference.
        return np.where(bound > 0, bound, preferred - preferred.max() - 1.0)

    def _num_believed(self, num_pending: int) -> int:
        """Return how many of the observations an ask believes in: with few workers all.

        Where many workers end at once, a belief serves several asks.
        """
        told = len(self._told)
        step = max(1, int(min(num_pending * _LATE_OF_PENDING, told * _LATE_OF_TOLD)))
        count = told // step * step
        known = self._memory.usable(self._told[:count])
        return count if any(seen.scores for seen in known) else told

    def _believe(self, count: int) -> Belief:
        """Return the belief after the first ``count`` observations; the last one is kept."""
        if self._belief is None or self._belief[0] != count:
            self._belief = (count, self._learn(self._told[:count]))
        return self._belief[1]

    def _learn(self, told: Sequence[Observation]) -> Belief:
        surrogate = Surrogate(self._space, self._names, told, memory=self._memory)
        mean = surrogate.observed_middle()
        reference = reference_point(told, self._names)
        front = np.flatnonzero(non_dominated(mean))
        worth = hypervolume_contributions(mean[front], reference)
        spread = front[np.argsort(-worth, kind="stable")[:_FRONT_PARENTS]].tolist()
        preferred = np.argsort(-(mean @ self._preference), kind="stable")[:_PREFERRED_PARENTS]
        known = np.array([seen.candidate.genotype for seen in surrogate.observations])
        rows = list(dict.fromkeys([*spread, *preferred.tolist()]))
        return Belief(surrogate, mean[front], reference, Parents(known[rows], known))


def _look(looks: Sequence[int], told: int) -> int:
    """Return the count of observations of the estimate before some; of none, of the newest."""
    count = looks[-1] - 1 if looks else told
    step = max(_GAIN_STEP, int(count * _GAIN_STEP_SHARE))
    return count // step * step
