"""Which parts of the search split are asked for, in which order: what a job's settings come to.

``optimizer.dispatch`` follows the plan; ``mergefront check`` shows it before anything runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import Items
from optimizer.space import SearchSpace
from optimizer.stages import first_items, stages
from optimizer.strategies.registry import can_choose, can_sample

# Fewer items of a task say nothing of it, and a block of them costs its worker more than it saves.
_LEAST_ITEMS = 8


@dataclass(frozen=True, slots=True)
class DispatchPlan:
    """What a candidate of the strategy is asked for.

    Attributes:
        stages: Nested items, the last the whole split; more than one where candidates race. Where
            they are scored on samples, one of them and the whole split.
        preview: Of which items the companions are asked for before any score; empty for none.
        group_size: How many candidates are screened for each that is scored; 1 screens none.
        samples: Whether candidates are scored on a sample of the items each.
        samples_baselines: Whether baselines are, too: those of :func:`may_be_sampled`.
    """

    stages: tuple[Items, ...]
    preview: Items
    group_size: int
    samples: bool = False
    samples_baselines: bool = False

    @property
    def races(self) -> bool:
        """Whether candidates are looked at before all of their items are scored."""
        return len(self.stages) > 1 and not self.samples

    @property
    def screens(self) -> bool:
        """Whether several candidates are looked at for each that is scored."""
        return self.group_size > 1

    @property
    def per_score(self) -> int:
        """How many candidates that are scored count as one evaluation."""
        return _samples_of(self.stages) if self.samples else 1


def dispatch_plan(
    job: JobConfig, items: Items, *, can_choose: bool, can_sample: bool = False
) -> DispatchPlan:
    """Lay out the way of a candidate through the search split.

    Args:
        job: The job.
        items: Task -> items of the search split.
        can_choose: Whether the strategy can choose by companions (``optimizer.screening``).
        can_sample: Whether the strategy learns from samples.
    """
    settings = job.search
    can_screen, screening = job.screens and can_choose, settings.screening
    sampling = settings.racing.sampling
    if sampling == "auto":
        sampling = screening.sampling or not can_screen
    found = stages_of(job, items)
    sampled = _with_sample(job, found)
    samples = sampling and can_sample and settings.racing.enabled and _samples_of(sampled) > 1
    # Searches from before did both only if they said so (`configs.racing.BEFORE`).
    screens = can_screen and not (samples and screening.sampling and screening.enabled == "auto")
    count = 0 if settings.gates.likelihood is None else settings.gates.items
    # The same of all who screen or sample: what one search has seen means something to the next.
    if screens or (samples and (screening.sampling or not count)):
        count = screening.items
    tasks = tasks_with_companions(job)
    preview: Items = {}
    if tasks and count:
        preview = first_items(
            {task: items[task] for task in tasks}, -(-count // len(tasks)), job.seed
        )
    group_size = screening.candidates if screens else 1
    return DispatchPlan(
        stages=sampled if samples else found,
        preview=preview,
        group_size=group_size,
        samples=samples,
        samples_baselines=samples and (screening.sampling or not screens),
    )


def may_be_sampled(place: int, recipe: MergeRecipe, space: SearchSpace) -> bool:
    """Whether a baseline may be scored on a sample where proposals are.

    Not the first of a search, which says how hard the items of a sample are, nor merges that the
    surrogate cannot judge: their scores stand for themselves.

    Args:
        place: Of the baseline, from 0.
        recipe: Its merge.
        space: Of the job.
    """
    return place > 0 and space.is_of_method(recipe)


def planned(job: JobConfig, items: Items) -> DispatchPlan:
    """Return the plan of a job by the name of its strategy.

    Raises:
        ConfigError: There is no strategy of that name.
    """
    strategy = job.search.strategy
    return dispatch_plan(
        job, items, can_choose=can_choose(strategy), can_sample=can_sample(strategy)
    )


def _with_sample(job: JobConfig, stages: Sequence[Items]) -> tuple[Items, Items]:
    """Return a sample, cut from the first block of a race, and the whole split.

    Of a large split that is a number of items, not a share: many merges on few items say more than
    few on many (``scripts/bench/results/search_closed_2cpu_2026-11-30.md``).
    """
    most, first = job.search.racing.sample_items, stages[0]
    if most is not None:
        most = max(most, least_items(job))
        first = {task: ids if task in job.undivided else ids[:most] for task, ids in first.items()}
    return first, stages[-1]


def _samples_of(stages: Sequence[Items]) -> int:
    """Return how many first stages have about as many items as the last one."""
    first, last = (sum(map(len, stage.values())) for stage in (stages[0], stages[-1]))
    return round(last / first)


def stages_of(
    job: JobConfig, items: Items, worth: Mapping[str, Mapping[str, float]] | None = None
) -> tuple[Items, ...]:
    """Return what is scored by the end of each block; just everything where nobody races.

    Args:
        job: The job.
        items: Task -> items of the search split.
        worth: Task -> item -> how much it tells candidates apart, once that is known.
    """
    if not job.search.racing.enabled:
        return (items,)
    found = stages(
        items,
        job.search.racing,
        job.seed,
        least_items=least_items(job),
        undivided=job.undivided,
        worth=worth,
    )
    return tuple(found)


def least_items(job: JobConfig) -> int:
    """Return how many items of a task are worth a block of their own.

    An accelerator takes as long for some rows of a batch as for all of them, so there a block is
    a batch at least: where a batch holds a task's items, nothing is divided.
    """
    if job.workers.device == "cpu":
        return _LEAST_ITEMS
    batch = job.evaluation.batch_size
    return max(_LEAST_ITEMS, batch if isinstance(batch, int) else 64)


def describe_plan(plan: DispatchPlan, *, by_gate: bool) -> list[str]:
    """Say in sentences what is asked of candidates besides all of their scores.

    Args:
        plan: Of a job.
        by_gate: Whether broken models are looked for by their companions.
    """
    lines = []
    looked_at = sum(map(len, plan.preview.values()))
    if plan.screens:
        lines.append(
            f"screening: of {plan.group_size} candidates, looked at by {looked_at} references "
            "each, one is scored"
        )
    elif plan.samples and plan.preview:
        lines.append(f"companions: of every candidate {looked_at} references are read")
    elif plan.preview:
        lines.append(f"gate: {looked_at} references are looked at before a candidate is scored")
    if (plan.screens or plan.samples) and plan.preview and by_gate:
        lines.append("gate: those references also tell broken models")
    if plan.samples:
        sizes = [sum(map(len, stage.values())) for stage in plan.stages]
        lines.append(
            f"sampling: a candidate is scored on {sizes[0]} of {sizes[-1]} items, others in turn"
        )
    if plan.races:
        ends = [sum(map(len, stage.values())) for stage in plan.stages]
        lines.append(
            f"racing: who has lost after {' or '.join(map(str, ends[:-1]))} of {ends[-1]} items "
            "is stopped"
        )
    return lines or ["every candidate is scored on all items"]


def tasks_with_companions(job: JobConfig) -> list[str]:
    """Return the tasks of the objectives that have a smooth signal beside their scores."""
    return [
        spec.task
        for objective in job.objectives.values()
        for spec in objective.lm_eval_tasks
        if spec.companion
    ]
