"""What a search cannot find, and why: said before it where it is known, and after it.

A job with one checkpoint, with an objective that every merge scores alike, or with a budget that
baselines use up is no error: it runs to its end. But its front means less than it seems to.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from configs.schema import JobConfig
from optimizer.archive.archive import Archive
from optimizer.candidate import Observation
from optimizer.scalarize import score_matrix
from optimizer.space import SearchSpace
from workers.pool_warnings import identity_warnings


def findings_before(
    job: JobConfig, space: SearchSpace, for_baselines: int, *, per_score: int = 1
) -> list[str]:
    """Say what is known of a job before anything was evaluated.

    Args:
        job: The job.
        space: Its search space.
        for_baselines: How many evaluations baselines take, at the most.
        per_score: How many candidates are scored for one evaluation: samples, or one.
    """
    found = [*_pool_findings(job, space)]
    left = job.budget.evaluations - for_baselines
    if left <= 0:
        found.append(
            f"budget.evaluations is {job.budget.evaluations}, and baselines take up to "
            f"{for_baselines}: nothing may be left to search, and the best baseline is the answer"
        )
    elif per_score * left < space.size + 2:
        found.append(
            f"budget.evaluations leaves {per_score * left} proposals beside baselines, which take "
            f"up to {for_baselines}, for {space.size} genes: too few for a strategy to learn from, "
            "so that it is little more than its start design"
        )
    return found


def findings_after(archive: Archive, space: SearchSpace) -> list[str]:
    """Say what limited a search, from its record; empty where nothing was scored."""
    scored = [seen for seen in archive.observations() if seen.scores]
    if not scored:
        return []
    found = [*_pool_findings(archive.job, space), *identity_warnings(archive.sources)]
    found += _flat_findings(list(archive.job.objectives), scored)
    if all(seen.candidate.is_baseline for seen in scored):
        found.append(
            f"Only baselines were scored ({len(scored)} of budget.evaluations = "
            f"{archive.job.budget.evaluations}): nothing was searched; resume with more "
            "`--evaluations`"
        )
    return found


def _pool_findings(job: JobConfig, space: SearchSpace) -> Iterator[str]:
    names = list(job.models.checkpoints)
    if len(names) > 1:
        return
    if space.uses_task_vectors:
        what = "how much of its task vector to add" + (
            ", and how much to drop" if space.has_drops else ""
        )
        yield f"There is one checkpoint, {names[0]}: a search can only find {what}"
    else:
        yield (
            f"There is one checkpoint, {names[0]}, and no base: every merge is that checkpoint, "
            "and there is nothing to search"
        )


def _flat_findings(names: Sequence[str], scored: Sequence[Observation]) -> Iterator[str]:
    """Say which objectives are the same for all merges, where there are several merges."""
    count = len({seen.candidate.recipe.recipe_id for seen in scored})
    if count < 2:
        return
    points = score_matrix([seen.scores for seen in scored if seen.scores], names)
    flat = {
        name: float(column[0])
        for name, column in zip(names, points.T, strict=True)
        if not np.ptp(column)
    }
    for name, value in flat.items():
        yield _flat_finding(name, value, count)
    if len(flat) < len(names):
        return
    why = "No objective tells merges apart" if any(flat.values()) else "No merge solved any item"
    yield f"{why}, so the choice is the earliest of equals"


def _flat_finding(name: str, value: float, count: int) -> str:
    if value == 0.0:
        return (
            f"Objective {name} was 0 for all {count} merges: no merge solved an item of it, so "
            "it decided nothing; take an easier task or a finer metric, or give it `companion: "
            "true` (the likelihood of reference answers)"
        )
    return (
        f"Objective {name} was {value:.3f} for all {count} merges: it cannot tell merges "
        "apart and decided nothing; take a harder task, a finer metric or more items"
    )
