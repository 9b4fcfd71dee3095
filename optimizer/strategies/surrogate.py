"""The default search: a surrogate chooses, from a pool that CMA-ES and simple moves propose.

Thompson sampling (Bradford, Schweidtmann & Lapkin, "Efficient multiobjective optimization
employing Gaussian processes", J. Glob. Optim. 71, 2018, with another pool): each ask draws one
function per objective from the posterior, and takes the merge of the pool that would add most
hypervolume if that function were true; or, for the share of asks that the preference steers, the
merge with the best preferred mean. Different draws differ, so asks for many workers spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.candidate import Candidate, Observation, without_nan
from optimizer.pareto import best_gain, gain_bounds, hypervolume_contributions, non_dominated
from optimizer.scalarize import reference_point
from optimizer.space import SearchSpace
from optimizer.strategies.cma import CmaStrategy
from optimizer.strategies.strategy import ask_generator
from optimizer.strategies.surrogate_pool import Parents, draw_children, draw_pool
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
# Each function lies this much of a Thompson sample's way from the posterior's mean, drawn
# uniformly: in many dimensions a full sample is best where least is known.
_SPREAD = (0.5, 1.0)


@dataclass(frozen=True, slots=True)
class _Belief:
    """What the observations told so far mean; a function of them alone."""

    surrogate: Surrogate
    front: FloatArray
    reference: FloatArray
    parents: Parents


class SurrogateStrategy:
    """Gaussian processes, Thompson samples, hypervolume-ranked CMA-ES among the proposers."""

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
        self._num_failed = 0
        self._memory = SurrogateMemory(space, self._names)
        self._belief: tuple[int, _Belief] | None = None

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
        self._num_failed += observation.scores is None
        self._cma.tell(observation)

    @with_one_thread
    def promote(self, candidates: Sequence[Candidate], observations: Sequence[Observation]) -> int:
        """Choose whom the posterior with the companions puts furthest beyond the front.

        For the share of groups that the preference steers, and where none is beyond it, that is
        the one with the best preferred mean.
        """
        known = [*self._told, *observations]
        if not any(seen.scores for seen in self._memory.usable(self._told)):
            return 0
        surrogate = Surrogate(self._space, self._names, known)
        expected = surrogate.predict_recipes([seen.recipe for seen in candidates]).mean
        best = int(np.argmax(expected @ self._preference))
        rng = ask_generator(self._seed, candidates[-1].index)
        if rng.random() < self._preference_share:
            return best
        belief = self._believe(len(self._told))
        row, gain = best_gain(expected, belief.front, belief.reference)
        return row if gain > 0 else best

    def stop(self) -> dict[str, str]:
        """Nothing but the budget ends a search on noisy scores."""
        return {}

    def _next_start(
        self, rng: np.random.Generator, pending: Sequence[Candidate]
    ) -> FloatArray | None:
        """Return the next genotype of the start; None when it is complete and something scored.

        A candidate that failed is not replaced, as long as the start has any scores.
        """
        usable = self._memory.usable(self._told)
        reached = len(usable) + self._num_failed + len(pending)
        if reached >= self._start_size and any(seen.scores for seen in usable):
            return None
        known = {seen.candidate.recipe.recipe_id for seen in self._told}
        known.update(candidate.recipe.recipe_id for candidate in pending)
        for recipe in self._start:
            if recipe.recipe_id not in known:
                return self._space.encode(recipe.weights, recipe.drop_ratios)
        drawn: FloatArray = draw_merges(self._space, 1, rng)[0]
        return drawn

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

    def _worth(self, scores: FloatArray, belief: _Belief, *, steered: bool) -> FloatArray:
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

    def _believe(self, count: int) -> _Belief:
        """Return the belief after the first ``count`` observations; the last one is kept."""
        if self._belief is None or self._belief[0] != count:
            self._belief = (count, self._learn(self._told[:count]))
        return self._belief[1]

    def _learn(self, told: Sequence[Observation]) -> _Belief:
        surrogate = Surrogate(self._space, self._names, told, memory=self._memory)
        mean = surrogate.observed_middle()
        reference = reference_point(told, self._names)
        front = np.flatnonzero(non_dominated(mean))
        worth = hypervolume_contributions(mean[front], reference)
        spread = front[np.argsort(-worth, kind="stable")[:_FRONT_PARENTS]].tolist()
        preferred = np.argsort(-(mean @ self._preference), kind="stable")[:_PREFERRED_PARENTS]
        known = np.array([seen.candidate.genotype for seen in surrogate.observations])
        rows = list(dict.fromkeys([*spread, *preferred.tolist()]))
        return _Belief(surrogate, mean[front], reference, Parents(known[rows], known))
