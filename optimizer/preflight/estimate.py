"""What a search will cost, from sizes, counts, and the speed of memory and disks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from configs.evaluation import SPLITS, SplitName
from configs.schema import JobConfig
from optimizer.baselines import Baseline, BaselinePlan
from optimizer.dispatch_plan import DispatchPlan, may_be_sampled
from optimizer.space import SearchSpace
from workers.compat import PoolReport
from workers.tiers import ASSUMED_RATES, Machine, TierPlan, plan_tiers

if TYPE_CHECKING:
    from evaluators.evaluator import TaskDescription
    from evaluators.manifest import Manifest

RUNTIME_BYTES = 500_000_000
"""Memory of a worker's process without a model: Python, torch, transformers, lm-eval."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Sizes in bytes, and counts.

    ``moved_bytes`` is what one candidate moves through memory: every source read once, the result
    written once. ``worker_bytes`` leaves out what the forward passes need. ``num_baselines``, the
    ``baseline_evaluations`` that they take, ``num_variants`` and ``evaluations`` are upper bounds:
    the greedy soup may end early, and of the chosen merge only what takes part can be left out; so
    is ``num_merges``, of all splits, where several candidates are one evaluation. ``generations``
    and ``new_tokens`` are those of one candidate, the latter at the most. ``tiers`` says where the
    moved bytes come from.
    """

    num_genes: int
    model_bytes: int
    moved_bytes: int
    worker_bytes: int
    num_baselines: int
    baseline_evaluations: int
    num_variants: int
    evaluations: dict[SplitName, int]
    num_merges: int
    requests: dict[SplitName, int]
    generations: dict[SplitName, int]
    new_tokens: dict[SplitName, int]
    tiers: TierPlan

    @property
    def total_moved_bytes(self) -> int:
        """What the whole search moves for merging, validation included."""
        return self.moved_bytes * self.num_merges

    @property
    def total_generations(self) -> int:
        """Generated answers of the whole search, validation included."""
        return sum(self.generations[split] * self.evaluations[split] for split in SPLITS)


def estimate(
    job: JobConfig,
    pool: PoolReport,
    space: SearchSpace,
    manifest: "Manifest",
    tasks: Sequence["TaskDescription"],
    *,
    machine: Machine,
    given: Sequence[Baseline] = (),
    plan: DispatchPlan | None = None,
) -> Estimate:
    """Count what the job will do.

    Args:
        job: Budget, validation and workers.
        pool: Sizes of the checkpoints.
        space: Number of genes and baselines.
        manifest: Items of every split.
        tasks: Which tasks generate, and how long.
        machine: What the workers run on.
        given: The baselines that the job names.
        plan: What candidates are asked for; None is for all items of each.
    """
    per_score, group_size = (1, 1) if plan is None else (plan.per_score, plan.group_size)
    num_baselines, num_sampled = _num_baselines(job, space, given)
    if plan is None or not plan.samples_baselines:
        num_sampled = 0
    num_whole = num_baselines - num_sampled
    num_variants = _num_variants(job, space)
    num_search = job.budget.evaluations
    generating = {task.task: task for task in tasks if task.output_type == "generate_until"}
    counts = {split: _counts(manifest.items(split)) for split in SPLITS}
    worker_bytes = pool.bytes_written + RUNTIME_BYTES
    evaluations: dict[SplitName, int] = {
        "search": num_search,
        "select": min(job.validation.candidates, num_search),
        "report": 1 + min(num_baselines, num_search) + num_variants,
    }
    baseline_evaluations = num_whole + -(-num_sampled // per_score)
    more = (per_score - 1) * max(0, num_search - num_whole)
    more += per_score * (group_size - 1) * max(0, num_search - baseline_evaluations)
    return Estimate(
        num_genes=space.size,
        model_bytes=pool.bytes_written,
        moved_bytes=pool.bytes_read + pool.bytes_written,
        worker_bytes=worker_bytes,
        num_baselines=num_baselines,
        baseline_evaluations=baseline_evaluations,
        num_variants=num_variants,
        evaluations=evaluations,
        num_merges=sum(evaluations.values()) + more,
        requests={split: sum(count.values()) for split, count in counts.items()},
        generations={
            split: sum(count[task] for task in generating) for split, count in counts.items()
        },
        new_tokens={
            split: sum(count[name] * task.max_new_tokens for name, task in generating.items())
            for split, count in counts.items()
        },
        tiers=plan_tiers(
            job.workers,
            machine,
            bytes_read=pool.bytes_read,
            bytes_written=pool.bytes_written,
            worker_bytes=worker_bytes,
        ),
    )


def _counts(items: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {task: len(ids) for task, ids in items.items()}


def _num_baselines(
    job: JobConfig, space: SearchSpace, given: Sequence[Baseline]
) -> tuple[int, int]:
    """Return how many baselines there are at the most, and how many of them may be sampled."""
    names = tuple(job.models.checkpoints)
    plan = BaselinePlan(space, names, job.preference, given)
    recipes = [baseline.recipe for baseline in plan.fixed]
    # The greedy soup begins with a single checkpoint, which is scored anyway; what it tries is of
    # the same method.
    recipes += recipes[:1] * (len(names) - 1)
    sampled = [may_be_sampled(place, recipe, space) for place, recipe in enumerate(recipes)]
    return len(recipes), sum(sampled)


def _num_variants(job: JobConfig, space: SearchSpace) -> int:
    """Return how many variants of the chosen merge are scored, at the most."""
    if not job.validation.leave_one_out:
        return 0
    count = len(job.models.checkpoints)
    undropped = 0 if not space.has_drops else 1 + (count if count > 1 else 0)
    return count + undropped


def digest_seconds(size_bytes: float) -> float:
    """Return about how long reading checkpoints once for their digests takes, from disk."""
    return size_bytes / 1e9 / ASSUMED_RATES["disk"]


def format_bytes(size: float) -> str:
    """Write a size with three digits: ``3.76 MB``, ``14.5 GB``; decimal units."""
    if size < 1000:
        return f"{size:.0f} B"
    power = min(5, int(math.log10(size)) // 3)
    return f"{size / 1000**power:.3g} {'BkMGTP'[power]}B"


def format_count(count: float) -> str:
    """Write a count with three digits: ``1234`` -> ``1.23 thousand``, as far as billions."""
    for limit, name in ((1e9, "billion"), (1e6, "million"), (1e4, "thousand")):
        if count >= limit:
            divisor = 1e3 if name == "thousand" else limit
            return f"{count / divisor:.3g} {name}"
    return f"{count:.0f}"


def format_seconds(seconds: float) -> str:
    """Write a time with two or three digits: ``0.31 ms``, ``42 s``, ``28 min``, ``3.1 h``."""
    for limit, divisor, unit in ((1, 1e-3, "ms"), (120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / divisor:.3g} {unit}"
    return f"{seconds / 3600:.3g} h"
