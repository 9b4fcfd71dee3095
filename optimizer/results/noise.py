"""How much noise the items leave: what a search can see with them, and how many it needs.

From the baselines' item scores alone, before (or after) a search. Notation of one task: s2 is the
variance of an item's score within one baseline, d2 that of the difference of two baselines on
the same item, n the number of items; both variances are means over baselines and over pairs.

- standard error of a score: sqrt(s2 / n);
- of a paired difference: sqrt(d2 / n), where d2 = 2 s2 (1 - r) for scores that correlate with r
  (Miller, "Adding Error Bars to Evals", arXiv:2411.00640, on paired differences);
- two standard errors see a difference of 2 sqrt(d2 / n), so that n = d2 (2 / difference)^2;
- a test at level alpha with power 1 - beta needs (z(1 - alpha / 2) + z(1 - beta)) standard errors
  in place of two (the same paper, on power analysis).

Objectives with several tasks, and the preferred mean, add the tasks' variances with the squares
of their weights, since their items are different.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from configs.errors import ArchiveError, JobChangedError, Problem
from configs.evaluation import SPLITS, SplitName
from configs.schema import JobConfig
from evaluators.scores import FloatArray, TaskScores, standard_error
from optimizer.archive.archive import Archive
from optimizer.baselines import label_of
from optimizer.results.verdict import WIN_SIGMAS

ALPHA = 0.05
POWER = 0.8
MEAN = "mean"
"""Name of the row for the preferred mean of the objectives."""

# What of a task does not change what an item scores.
KEYS_BESIDE_SCORES = {"weight", "companion", "dry_run", "per_item"}
# The same of the settings: how many items there are is the question.
SETTINGS_BESIDE_SCORES = {"splits", "batch_size", "backend", "allow_code_execution", "sandbox"}
_POWER_SIGMAS = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)


@dataclass(frozen=True, slots=True)
class TaskNoise:
    """Variances of one item's score: within a baseline, and of the difference of two.

    ``num_items`` counts the items that they were estimated from, ``is_paired`` says whether
    there were two baselines to compare; without, items are taken as if they had nothing in
    common, which is the worst case short of baselines that contradict each other.
    """

    task: str
    variance: float
    paired_variance: float
    num_items: int
    is_paired: bool

    @property
    def correlation(self) -> float | None:
        """How much of an item's score is the item's, whoever answers; None where unknown."""
        if not self.is_paired or self.variance == 0.0:
            return None
        return 1.0 - self.paired_variance / (2.0 * self.variance)


@dataclass(frozen=True, slots=True)
class SplitNoise:
    """What the items of one split leave uncertain of an objective, or of the preferred mean.

    ``items`` counts those of all its tasks. ``stderr`` is that of a score, ``paired_stderr``
    that of the difference of two candidates. ``needed`` is the number of items per task with
    which two standard errors are the stated difference; None where no item told two
    baselines apart.
    """

    name: str
    split: SplitName
    items: int
    stderr: float
    paired_stderr: float
    needed: int | None

    @property
    def visible(self) -> float:
        """The smallest difference that is two standard errors."""
        return WIN_SIGMAS * self.paired_stderr

    @property
    def detectable(self) -> float:
        """The smallest difference that a test at ``ALPHA`` finds with probability ``POWER``."""
        return _POWER_SIGMAS * self.paired_stderr


@dataclass(frozen=True, slots=True)
class NoiseReport:
    """The noise of a job's objectives, estimated from the baselines that ``labels`` names."""

    difference: float
    labels: tuple[str, ...]
    sizes: dict[SplitName, int]
    tasks: dict[str, TaskNoise]
    rows: list[SplitNoise]


def noise_of(archive: Archive, job: JobConfig, difference: float) -> NoiseReport:
    """Estimate the noise from the baselines of an archive, search and report items together.

    Args:
        archive: Where at least one baseline was scored.
        job: Its objectives must be the archive's; its split sizes may be other ones.
        difference: What one wants to see, in units of the scores, > 0.

    Raises:
        ArchiveError: No baseline was scored.
        JobChangedError: The archive scored other tasks than the job, or in another way.
    """
    _check_same_scores(archive, job)
    found = {
        label_of(candidate): _every_item(archive, candidate.index)
        for candidate in archive.candidates()
        if candidate.is_baseline
    }
    scored = {label: tasks for label, tasks in found.items() if tasks}
    if not scored:
        raise ArchiveError(
            f"no baseline was scored in archive {archive.place} yet; `mergefront noise JOB.yaml "
            "--run` scores base and checkpoints, or go on with "
            f"`mergefront resume {archive.place}`",
            path=str(archive.place),
        )
    names = [spec.task for objective in job.objectives.values() for spec in objective.tasks]
    tasks = {
        name: task_noise(
            name, *_columns([parts[name] for parts in scored.values() if name in parts])
        )
        for name in names
    }
    sizes = job.evaluation.splits.model_dump()
    return NoiseReport(
        difference=difference,
        labels=tuple(scored),
        sizes={split: sizes[split] for split in SPLITS},
        tasks=tasks,
        rows=list(_rows(job, tasks, difference)),
    )


def task_noise(
    task: str,
    baselines: Sequence[Mapping[str, float]],
    weights: Mapping[str, float] | None = None,
) -> TaskNoise:
    """Estimate the variances of a task.

    Args:
        task: Its name.
        baselines: Per baseline, item id -> score; pairs are compared on the items they share.
        weights: Item id -> how much it counts; None where all count alike. A variance is then
            n times that of the weighted mean.
    """
    items = sorted({item for scores in baselines for item in scores})
    table = np.array([[scores.get(item, math.nan) for item in items] for scores in baselines])
    counts = None if weights is None else np.array([weights[item] for item in items])
    within = [_variance(row, counts) for row in table]
    between = [_variance(a - b, counts) for a, b in itertools.combinations(table, 2)]
    paired = [value for value in between if value is not None]
    variance = float(np.mean([value for value in within if value is not None] or [0.0]))
    return TaskNoise(
        task=task,
        variance=variance,
        paired_variance=float(np.mean(paired)) if paired else 2.0 * variance,
        num_items=len(items),
        is_paired=bool(paired),
    )


def items_needed(terms: Sequence[tuple[float, float]], difference: float) -> int | None:
    """Return how many items per task make a difference two standard errors.

    Args:
        terms: Per task its weight in the objective and its paired variance.
        difference: What is to be seen, > 0.

    Returns:
        At least 1; None when all variances are zero, which no number of items can be read from.
    """
    variance = sum(weight**2 * paired for weight, paired in terms)
    if variance == 0.0:
        return None
    # Rounded first: 0.25 (2 / 0.1)^2 is 100, in floating point a little more.
    return max(1, math.ceil(round(variance * (WIN_SIGMAS / difference) ** 2, 9)))


def _variance(values: FloatArray, weights: FloatArray | None) -> float | None:
    known = ~np.isnan(values)
    if known.sum() < 2:
        return None
    error = standard_error(values[known], None if weights is None else weights[known])
    return float(known.sum()) * error**2


def _rows(
    job: JobConfig, tasks: Mapping[str, TaskNoise], difference: float
) -> Iterator[SplitNoise]:
    sizes = job.evaluation.splits.model_dump()
    shares = {
        name: {
            spec.task: spec.weight / sum(other.weight for other in objective.tasks)
            for spec in objective.tasks
        }
        for name, objective in job.objectives.items()
    }
    if len(shares) > 1:
        shares[MEAN] = {
            task: job.preference[name] * share
            for name in job.objectives
            for task, share in shares[name].items()
        }
    for split in SPLITS:
        size = sizes[split]
        for name, weights in shares.items():
            terms = [(weight, tasks[task].paired_variance) for task, weight in weights.items()]
            own = sum(weight**2 * tasks[task].variance for task, weight in weights.items())
            yield SplitNoise(
                name=name,
                split=split,
                items=size * len(weights),
                stderr=math.sqrt(own / size),
                paired_stderr=math.sqrt(sum(w**2 * paired for w, paired in terms) / size),
                needed=items_needed(terms, difference),
            )


def _every_item(archive: Archive, candidate: int) -> dict[str, list[TaskScores]]:
    """Return task -> scores, split by split, of all splits on which a candidate was scored."""
    found: dict[str, list[TaskScores]] = {}
    for split in SPLITS:
        for task, scores in archive.scored_items(candidate, split).items():
            found.setdefault(task, []).append(scores)
    return found


def _columns(
    baselines: Sequence[Sequence[TaskScores]],
) -> tuple[list[dict[str, float]], dict[str, float] | None]:
    """Return item -> score per baseline, and item -> weight where items count differently."""
    values = [
        {
            item: value
            for part in parts
            for item, value in zip(part.item_ids, part.values.tolist(), strict=True)
        }
        for parts in baselines
    ]
    weights = {
        item: weight
        for parts in baselines
        for part in parts
        if part.weights is not None
        for item, weight in zip(part.item_ids, part.weights.tolist(), strict=True)
    }
    ids = {item for scores in values for item in scores}
    return values, {item: weights.get(item, 1.0) for item in ids} if weights else None


def _check_same_scores(archive: Archive, job: JobConfig) -> None:
    """Refuse to judge a job by the scores of other tasks.

    Raises:
        JobChangedError: A task, its metric, or a setting that scores depend on is another one.
    """
    before, now = (
        {
            spec.task: spec.model_dump(exclude=KEYS_BESIDE_SCORES)
            for objective in each.objectives.values()
            for spec in objective.tasks
        }
        for each in (archive.job, job)
    )
    problems = [
        Problem("objectives", f"task `{task}` differs")
        for task in {**before, **now}
        if before.get(task) != now.get(task)
    ]
    old, new = (
        each.evaluation.model_dump(exclude=SETTINGS_BESIDE_SCORES) for each in (archive.job, job)
    )
    problems += [
        Problem(f"evaluation.{key}", f"{old[key]} -> {new[key]}")
        for key in new
        if old[key] != new[key]
    ]
    if problems:
        raise JobChangedError(
            f"the job does not score what {archive.place} was scored on; name another `archive` "
            "and score its baselines with --run",
            problems,
        )
