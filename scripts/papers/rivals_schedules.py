"""The searches of mergekit-evolve and mergenetic, on this project's merges and scores.

What follows are their schedules, read from mergekit 0.1.4 (``mergekit/evo``,
``mergekit/scripts/evolve.py``) and mergenetic (its command line, ``end2end_multiobjective.py`` and
``end2end.py``); all that merges and scores is this project's, so that only schedules differ:

- masks of DARE are functions of the element, and what is kept is divided by 1 - p, where mergekit
  restores the L1 norm of the task vector (:func:`l1_rescaling` says how far that is from it);
- nothing is rounded to bfloat16 or 4 bits;
- a density below 0.01 is 0.01, since dropping everything leaves nothing to rescale.

The tools themselves do not run beside this project on a machine without a GPU, by their packages'
metadata and source: mergekit 0.1.4 wants safetensors ~=0.5.2, accelerate ~=1.6.0 and pydantic
~=2.10.6, where this environment has 0.8.0, 1.15.0 and 2.14.3 (pip: ResolutionImpossible); 0.1.5
installs; in both every evaluation of ``mergekit/evo`` is a Ray task or actor with ``num_gpus=1``.
mergenetic 0.1.1 wants accelerate 1.3.0, transformers 4.45.2, lm-eval[vllm] 0.4.8, mergekit 0.0.6
and pymoo 0.6.1.3 (ResolutionImpossible), and imports lm-eval's VLLM wherever it scores.

:func:`mergekit_evolve`: CMA-ES (pycma, its default population; its rules are in
``optimizer.strategies.cma``) on the sum of scores; a weight and a
density per checkpoint, whose absolute values count, from 1/N and 1 with step 1/6.
:func:`mergenetic`: pymoo's NSGA-II on all objectives (``optimizer.strategies.nsga2``), or its GA on
their mean, which survives by that alone; weights and densities in [0, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.algorithms.soo.nonconvex.ga import GA
from pymoo.core.evaluator import Evaluator
from pymoo.core.problem import Problem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from pymoo.problems.static import StaticProblem

from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import FloatArray, Items, ObjectiveScore
from optimizer.candidate import Observation
from optimizer.pareto import non_dominated, spread_subset
from optimizer.space import SearchSpace
from optimizer.strategies.scalar_cma import ScalarCmaStrategy
from scripts.papers.bench import Bench, Lab

Score = Callable[[MergeRecipe], FloatArray]
"""Returns the mean score of each skill, ``(skills,)``, on the items that a tool looks at."""

Algorithm = Literal["NSGA-II", "GA"]

POPULATION = 10
"""What mergenetic's command line proposes, as its number of generations."""
SAMPLES = 20
"""Items per task that mergenetic draws for a search of several objectives, if nothing is said."""
FRONT_SIZE = 10
_LEAST_DENSITY = 0.01


@dataclass(frozen=True, slots=True)
class Tried:
    """A merge that a tool scored: its means per skill, ``(skills,)``, on the tool's own items."""

    recipe: MergeRecipe
    scores: FloatArray


@dataclass(frozen=True, slots=True)
class Found:
    """What a tool tried, and which of it by its own rule it hands over, best mean first."""

    tried: Sequence[Tried]
    handed: Sequence[Tried]

    @property
    def chosen(self) -> Tried:
        """The merge with the best mean among those that are handed over."""
        return self.handed[0]


def scorer(lab: Lab, items: Items) -> Score:
    """Return what scores a merge on some items; a merge that fails has zeros."""

    def score(recipe: MergeRecipe) -> FloatArray:
        return np.array([values.mean() for values in lab.item_scores(recipe, items).values()])

    return score


def sample_items(items: Items, count: int, seed: int) -> dict[str, tuple[str, ...]]:
    """Draw so many items of each task, once for a whole search, all alike (mergenetic's "mean").

    Its IRT estimators (p-IRT, mp-IRT, gmp-IRT) need parameters of every item, fitted to answers of
    hundreds of models. It ships none, and fetches those of tinyBenchmarks for six public
    benchmarks; its search of several objectives takes the mean whatever the task.
    """
    rng = np.random.default_rng([seed, count])
    return {
        task: tuple(ids[row] for row in rng.choice(len(ids), count, replace=False))
        for task, ids in items.items()
    }


def mergekit_job(bench: Bench, checkpoints: tuple[str, ...], *, normalize: bool) -> JobConfig:
    """Return the job of mergekit-evolve's genome: one slice of all layers, DARE-TIES.

    Args:
        bench: The zoo.
        checkpoints: What is merged.
        normalize: What mergekit-evolve does with DARE-TIES if nothing is said; its documented
            example says no.
    """
    return bench.job(
        checkpoints,
        search={"strategy": "scalar_cma"},
        merge={
            "method": "dare_ties",
            "options": {"normalize": normalize},
            "weight": {"low": 0.0, "high": 10.0},
            "drop_ratio": {"low": 0.0, "high": 1.0 - _LEAST_DENSITY},
        },
    )


def mergekit_evolve(job: JobConfig, space: SearchSpace, score: Score, *, evaluations: int) -> Found:
    """Search as mergekit-evolve does, and hand over the best of its own scores.

    pycma would finish its last population; here it ends at its budget.

    Args:
        job: Of :func:`mergekit_job`; its seed is that of the draws.
        space: Of that job.
        score: Scores a merge on all items that it has; nothing is held out.
        evaluations: Merges to score (its ``--max-fevals``, 100 by default).
    """
    strategy = ScalarCmaStrategy(job, space)
    tried: list[Tried] = []
    for index in range(evaluations):
        candidate = strategy.ask(index, [])
        tried.append(Tried(candidate.recipe, score(candidate.recipe)))
        values = zip(job.objectives, tried[-1].scores.tolist(), strict=True)
        scores = {name: ObjectiveScore(value, 0.0, 1) for name, value in values}
        strategy.tell(Observation(candidate, scores))
    return Found(tried, [max(tried, key=_mean)])


def mergenetic(
    space: SearchSpace,
    score: Score,
    *,
    algorithm: Algorithm,
    generations: int,
    seed: int,
    num_skills: int = 3,
) -> Found:
    """Search as mergenetic does with pymoo: simulated binary crossover, polynomial mutation.

    NSGA-II hands over what none dominates in its last population, and no rule to choose among it;
    GA, here on the mean of the scores, its best. GA draws integers of [0, 10] first, which are
    tenths, as the script does that ships.

    Args:
        space: Of the checkpoints.
        score: Scores a merge on the items that were drawn.
        algorithm: Of pymoo.
        generations: Of ``POPULATION`` merges each, the first one at random.
        seed: Of pymoo's draws.
        num_skills: Length of a score.
    """
    is_ga = algorithm == "GA"
    problem = _problem(2 * space.shape[0], 1 if is_ga else num_skills, 10.0 if is_ga else 1.0)
    search = _algorithm(algorithm)
    search.setup(problem, termination=("n_gen", generations), seed=seed, verbose=False)
    tried: dict[bytes, Tried] = {}
    while search.has_next():
        newborn = search.ask()
        values = []
        for genome in newborn.get("X").astype(np.float64):
            recipe = genome_recipe(space, genome / problem.xu)
            tried[genome.tobytes()] = Tried(recipe, score(recipe))
            values.append(tried[genome.tobytes()].scores)
        points = -np.array(values)
        losses = points.mean(axis=1, keepdims=True) if is_ga else points
        Evaluator().eval(StaticProblem(problem, F=losses), newborn)
        search.tell(infills=newborn)
    best = search.opt.get("X").astype(np.float64)
    handed = [tried[genome.tobytes()] for genome in best]
    return Found(list(tried.values()), sorted(handed, key=_mean, reverse=True))


def genome_recipe(space: SearchSpace, genome: FloatArray) -> MergeRecipe:
    """Decode mergenetic's genome for DARE-TIES: weights, then densities, ``(2 checkpoints,)``."""
    weights, densities = np.split(genome, 2)
    drops = 1.0 - np.maximum(densities, _LEAST_DENSITY)
    return space.recipe(
        weights[:, None].tolist(),
        drops[:, None].tolist(),
        method="dare_ties",
        options={"normalize": False},  # mergekit's default for this method
    )


def front_of(found: Found, corner: FloatArray, size: int = FRONT_SIZE) -> list[Tried]:
    """Return what none dominates among all that was tried, on the tool's own items.

    Args:
        found: What was tried.
        corner: Reference point of the hypervolume, ``(skills,)``.
        size: Of more members than that those are taken that cover most above the corner.
    """
    points = np.array([one.scores for one in found.tried])
    rows = np.flatnonzero(non_dominated(points))
    chosen = rows[spread_subset(points[rows], corner, size)]
    return [found.tried[int(row)] for row in chosen]


def l1_rescaling(delta: FloatArray, kept: FloatArray, drop_ratio: float) -> float:
    """Return mergekit's factor for what is kept over DARE's, (1 - p) sum |d| / sum |kept d|.

    Args:
        delta: Task vector, any shape.
        kept: 1 where it is kept, else 0.
        drop_ratio: p in [0, 1).
    """
    before, after = np.abs(delta).sum(), np.abs(delta * kept).sum()
    return float((1.0 - drop_ratio) * before / after)


# pymoo has no types.
def _problem(size: int, num_objectives: int, high: float) -> Any:  # noqa: ANN401

    return Problem(n_var=size, n_obj=num_objectives, xl=0.0, xu=high)


# pymoo has no types.
def _algorithm(name: Algorithm) -> Any:  # noqa: ANN401

    if name == "NSGA-II":
        return NSGA2(pop_size=POPULATION, eliminate_duplicates=True)
    return GA(
        pop_size=POPULATION,
        sampling=IntegerRandomSampling(),
        crossover=SBX(),
        mutation=PM(),
        eliminate_duplicates=True,
    )


def _mean(tried: Tried) -> float:
    return float(tried.scores.mean())
