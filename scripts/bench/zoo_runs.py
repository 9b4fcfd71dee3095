"""One search of the zoo by the project's driver, and what its front was worth along the way.

Start at :func:`run_search_of`. Cost is counted in items that a strategy's candidates were scored
on, remembered or not; held-out items cost nothing, since no strategy sees them.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np

from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import FloatArray
from optimizer.archive.archive import Archive
from optimizer.candidate import SAMPLED, Candidate, Observation
from optimizer.dispatch_plan import dispatch_plan
from optimizer.driver import run_search
from optimizer.pareto import non_dominated, spread_subset
from optimizer.scalarize import reference_point
from optimizer.space import SearchSpace
from optimizer.stopped import EvaluationCount
from optimizer.strategies.registry import STRATEGIES, can_choose, can_sample
from optimizer.strategies.strategy import Strategy
from optimizer.surrogate.surrogate import Surrogate, usable_observations
from scripts.bench.zoo_job import SKILLS, zoo_job
from scripts.bench.zoo_pool import RememberingPool, ZooLab
from workers.outcome import Failed

BUDGET = 200
"""Full evaluations of a search, baselines included."""
CHECKPOINTS = (15, 20, 25, 30, 40, 60, 100, 150, 200)
"""Costs, in full evaluations, at which the front is taken and scored on held-out items."""
EARLY_CHECKPOINTS = (6, 8, 10, 12)
"""The same besides, of searches that do not score every candidate in full."""
REFERENCE_SHARE = 0.9
FRONT_SIZE = 10
"""Most members of a returned front: those that spread best over it."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A rival: its ``search`` section, whether tasks have companions, and what is then scored.

    ``is_whole`` says that every candidate is scored in full, so that evaluations are the cost.
    """

    search: dict[str, object]
    companion: bool = False
    is_whole: bool = False


VARIANTS: dict[str, Variant] = {
    **{
        name: Variant({"strategy": name, "racing": {"enabled": False}}, is_whole=True)
        for name in STRATEGIES
    },
    "race": Variant({"strategy": "surrogate_cma", "racing": {"sampling": False}}),
    "sample": Variant({"strategy": "surrogate_cma"}),
    "companions": Variant({"strategy": "surrogate_cma"}, companion=True),
    "screen": Variant(
        {"strategy": "surrogate_cma", "screening": {"enabled": True}}, companion=True
    ),
}
"""Name of a rival -> what it is: every strategy without racing; the defaults of a job without
companions (``sample``) and of one with them (``companions``); samples of those that companions
choose (``screen``); and a race in place of samples (``race``)."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where a search stood when an observation was told: what had been paid by then."""

    observation: Observation
    generated: int
    likelihoods: int
    model_s: float

    def items(self, likelihood_cost: float) -> float:
        """Return the cost in items; a likelihood costs so many generated ones."""
        return self.generated + likelihood_cost * self.likelihoods


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The returned front at one cost.

    ``points`` are its members' held-out scores, ``(n, 3)``, by ``recipes``; the first member is
    the one with the best preferred mean. ``believed`` are those of the front that has stopped
    candidates, too, which were never scored in full; empty where none was stopped.
    """

    cost: float
    evaluations: int
    generated: int
    likelihoods: int
    model_s: float
    recipes: list[str] = field(default_factory=list)
    points: list[list[float]] = field(default_factory=list)
    believed: list[list[float]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Trace:
    """What one search left: its fronts along the way, and the merge that it chose.

    ``reference`` is the hypervolume's reference point, 0.9 times the base's held-out scores.
    ``chosen`` holds the held-out scores of the merge that the search chose on select items.
    ``told`` are the recipes that the strategy was told of, in that order, and ``stopped`` why not
    all of their items were scored. ``ask_ms`` is the median time of the last 50 asks.
    """

    pool: str
    rival: str
    seed: int
    checkpoints: list[Checkpoint]
    reference: list[float]
    chosen: list[float]
    ask_ms: float
    driver_s: float
    told: list[str] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Trace":
        """Read what ``to_json`` wrote."""
        parts = [Checkpoint(**part) for part in content["checkpoints"]]
        return cls(**{**content, "checkpoints": parts})


def run_search_of(
    lab: ZooLab, rival: str, seed: int, *, budget: int, likelihood_cost: float
) -> Trace:
    """Search a pool with one rival and seed, and score its fronts on held-out items.

    Args:
        lab: Of the pool.
        rival: One of ``VARIANTS``.
        seed: Of the search.
        budget: Full evaluations.
        likelihood_cost: Model time of a likelihood relative to that of a generated item.

    Raises:
        PausedError: The lab's time was over; a later call goes on where this one stopped.
    """
    variant = VARIANTS[rival]
    with tempfile.TemporaryDirectory(prefix="mergefront-bench-") as scratch:
        path = Path(scratch) / "archive.sqlite"
        job = zoo_job(
            lab.zoo,
            lab.pool,
            splits=lab.splits,
            companion=variant.companion,
            archive=str(path),
            seed=seed,
            search=variant.search,
            # Where not every candidate is scored in full, the cost ends the search.
            budget={"evaluations": budget if variant.is_whole else 10 * budget},
        )
        started, scored_s = time.perf_counter(), lab.scoring_s
        archive = Archive.create(
            path, job=job, job_path=None, sources=lab.sources, manifest=lab.manifest
        )
        with (
            archive,
            RememberingPool(lab, companion=variant.companion) as pool,
            _recorded(str(variant.search["strategy"]), lab, budget, likelihood_cost) as log,
        ):
            result = run_search(archive, pool, lab.space)
            chosen = archive.candidate(result.chosen).recipe
        driver_s = time.perf_counter() - started - (lab.scoring_s - scored_s)
    checkpoints = []
    for cost in CHECKPOINTS if variant.is_whole else (*EARLY_CHECKPOINTS, *CHECKPOINTS):
        known = [step for step in log.steps if step.items(likelihood_cost) <= cost * lab.full_items]
        if cost <= budget and known:
            checkpoints.append(_checkpoint(lab, job, cost, known))
    base = lab.space.recipe(np.zeros(lab.space.shape).tolist())
    return Trace(
        pool=lab.pool,
        rival=rival,
        seed=seed,
        checkpoints=checkpoints,
        reference=[REFERENCE_SHARE * score for score in held_out(lab, base)],
        chosen=held_out(lab, chosen),
        ask_ms=1000 * statistics.median(log.ask_s[-50:]) if log.ask_s else 0.0,
        driver_s=driver_s,
        told=[step.observation.candidate.recipe.recipe_id for step in log.steps],
        stopped=[step.observation.stopped for step in log.steps],
    )


def returned_front(
    job: JobConfig,
    space: SearchSpace,
    observations: Sequence[Observation],
    *,
    with_stopped: bool = False,
) -> list[Candidate]:
    """Return the front that a search would hand over: the same rule for every rival.

    By the posterior mean of the surrogate, which learns from whatever was scored or screened, the
    candidate with the best preferred mean, then the members that spread best over those that none
    dominates. Raw scores would put the lucky ones there. Baselines of other methods are left out,
    and so is what was not scored on all items, unless ``with_stopped``.
    """
    names = tuple(job.objectives)
    surrogate = Surrogate(space, names, observations)
    usable = usable_observations(space, observations)
    kept = [seen for seen in usable if with_stopped or seen.is_scored]
    points = surrogate.predict_recipes([seen.candidate.recipe for seen in kept]).mean
    front = np.flatnonzero(non_dominated(points))
    corner = reference_point(observations, names)
    chosen = [int(front[row]) for row in spread_subset(points[front], corner, FRONT_SIZE)]
    best = int(np.argmax(points @ np.array([job.preference[name] for name in names])))
    return [kept[row].candidate for row in dict.fromkeys([best, *chosen])]


def held_out(lab: ZooLab, recipe: MergeRecipe) -> list[float]:
    """Score a merge on the report items: one mean per skill."""
    scores = lab.scores(recipe, lab.manifest.items("report"))
    if isinstance(scores, Failed):
        return [0.0] * len(SKILLS)
    return [scores[f"zoo_{skill}"].mean for skill in SKILLS]


def _checkpoint(lab: ZooLab, job: JobConfig, cost: float, steps: Sequence[Step]) -> Checkpoint:
    told = [step.observation for step in steps]
    front = returned_front(job, lab.space, told)
    believed: list[Candidate] = []
    if any(seen.stopped for seen in told):
        believed = returned_front(job, lab.space, told, with_stopped=True)
    last = steps[-1]
    return Checkpoint(
        cost=cost,
        evaluations=_num_evaluated(lab, job, told),
        generated=last.generated,
        likelihoods=last.likelihoods,
        model_s=last.model_s,
        recipes=[candidate.recipe.recipe_id for candidate in front],
        points=[held_out(lab, candidate.recipe) for candidate in front],
        believed=[held_out(lab, candidate.recipe) for candidate in believed],
    )


def _num_evaluated(lab: ZooLab, job: JobConfig, told: Sequence[Observation]) -> int:
    name = job.search.strategy
    plan = dispatch_plan(
        job,
        lab.manifest.items("search"),
        can_choose=can_choose(name),
        can_sample=can_sample(name),
    )
    sampled = {seen.candidate.index for seen in told if seen.stopped == SAMPLED}
    counted = EvaluationCount(
        plan.group_size,
        plan.per_score,
        lambda one: one.is_baseline and one.index not in sampled,
    )
    for seen in told:
        counted.add(seen)
    return counted.count


@dataclass(slots=True)
class _Log:
    steps: list[Step] = field(default_factory=list)
    ask_s: list[float] = field(default_factory=list)


@contextmanager
def _recorded(name: str, lab: ZooLab, budget: int, likelihood_cost: float) -> Iterator[_Log]:
    """Record what the strategy of that name is told, and how long its asks take.

    It also ends the search when the items of so many full evaluations are spent.
    """
    log = _Log()
    factory = STRATEGIES[name]
    start = {kind: (cost.items, cost.seconds) for kind, cost in lab.paid.items()}

    def told(observation: Observation) -> None:
        paid = {
            kind: (cost.items - start[kind][0], cost.seconds - start[kind][1])
            for kind, cost in lab.paid.items()
        }
        # Rounded, since the order of a sum is seen in its last bits.
        seconds = round(sum(spent for _, spent in paid.values()), 6)
        log.steps.append(Step(observation, paid["generate"][0], paid["likelihood"][0], seconds))

    def stop() -> dict[str, str]:
        spent = log.steps[-1].items(likelihood_cost) if log.steps else 0.0
        return {"cost": "the items are spent"} if spent >= budget * lab.full_items else {}

    def build(job: JobConfig, space: SearchSpace) -> Strategy:
        strategy = factory(job, space)
        # Patched, not wrapped: a strategy may have more methods than the contract names.
        vars(strategy).update(
            ask=_timed(strategy.ask, log.ask_s), stop=stop, tell=_after(strategy.tell, told)
        )
        return strategy

    STRATEGIES[name] = build
    try:
        yield log
    finally:
        STRATEGIES[name] = factory


def _timed(
    ask: Callable[[int, Sequence[Candidate]], Candidate], seconds: list[float]
) -> Callable[[int, Sequence[Candidate]], Candidate]:
    @wraps(ask)
    def timed(index: int, pending: Sequence[Candidate]) -> Candidate:
        started = time.perf_counter()
        candidate = ask(index, pending)
        seconds.append(time.perf_counter() - started)
        return candidate

    return timed


def _after(
    tell: Callable[[Observation], None], told: Callable[[Observation], None]
) -> Callable[[Observation], None]:
    @wraps(tell)
    def recorded(observation: Observation) -> None:
        tell(observation)
        told(observation)

    return recorded


def points_of(front: Sequence[Sequence[float]]) -> FloatArray:
    """Return the held-out scores of a front, ``(n, 3)`` float64."""
    return np.array(front, dtype=np.float64).reshape(-1, len(SKILLS))
