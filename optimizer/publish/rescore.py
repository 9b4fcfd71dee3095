"""A recorded merge in another dtype: another recipe (D1), scored anew where that is asked for.

Its scores go into the exported directory, and the archive stays as it is: a candidate more would
count as a proposal of the search, which a resumed one would evaluate and tell its strategy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table

from configs.errors import CheckpointError, EvaluationError
from configs.evaluation import SplitName
from configs.recipe import MergeRecipe
from configs.schema import DtypeName, JobConfig
from evaluators.paired import PairedDifference, paired_difference
from evaluators.scores import Scores, TaskScores, aggregate
from optimizer.results.front_view import format_score, scores_record
from optimizer.results.select import Choice
from optimizer.results.tables import SUMMARY, plain_table
from optimizer.results.verdict_view import format_difference
from optimizer.scalarize import preferred_mean
from workers.outcome import Completed, EvaluationKey, EvaluationRequest
from workers.pool import LocalPool, WorkerPool

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

SPLIT: SplitName = "report"
"""What another dtype is scored on: items that chose nothing."""


@dataclass(frozen=True, slots=True)
class Rescored:
    """Scores of a merge in another dtype, beside those of the dtype that was searched.

    ``task_scores`` has them item by item. ``recorded`` are the scores of the searched dtype on the
    same items; ``differences`` maps each objective to other minus searched dtype, and
    ``mean_difference`` is that of the mean weighted by the job's preference.
    """

    weights_digest: str
    task_scores: dict[str, TaskScores]
    scores: Scores
    recorded: Scores
    differences: dict[str, PairedDifference]
    mean_difference: PairedDifference


@dataclass(frozen=True, slots=True)
class OtherDtype:
    """The recipe of a recorded merge in another dtype; ``rescored`` is None without scores."""

    recipe: MergeRecipe
    rescored: Rescored | None = None


def in_dtype(choice: Choice, dtype: DtypeName) -> OtherDtype | None:
    """Return a recorded merge in a dtype; None where that is the one that it has."""
    recipe = choice.candidate.recipe
    if recipe.dtype == dtype:
        return None
    return OtherDtype(recipe.model_copy(update={"dtype": dtype}))


def rescore(
    archive: "Archive",
    choice: Choice,
    other: OtherDtype,
    *,
    announce: Callable[[str], None] = lambda _: None,
) -> OtherDtype:
    """Score a merge in another dtype on the report items, with the job's tasks, in this process.

    Where the archive has no report scores of the merge as it was searched, that is scored too.

    Args:
        archive: The record of the search; not written to.
        choice: The recorded merge.
        other: From :func:`in_dtype`.
        announce: Called with a sentence before something that takes long.

    Raises:
        ConfigError: The job cannot run on this machine (no such device, no memory).
        CheckpointError: A source is gone or has changed, or this machine merges other bits than
            the one that searched.
        EvaluationError: The merge cannot be scored, in this dtype for example.
        JobChangedError: The tasks are not those of the search any more.
    """
    from optimizer.preflight.preflight import prepare
    from workers.job import JobRunner, WorkerSpec

    job = _job_here(archive.job, other.recipe.dtype)
    prepared = prepare(job, archive=archive, announce=announce)
    index = choice.candidate.index
    spec = WorkerSpec(job=job, sources=prepared.sources, manifest=archive.manifest)
    announce(f"scoring the merge in {other.recipe.dtype} on the {SPLIT} items")
    with LocalPool(JobRunner(spec, "export")) as pool:
        scored = _score(pool, index, other.recipe)
        if index in archive.scores(SPLIT):
            recorded = archive.task_scores(index, SPLIT)
        else:
            announce(
                f"and in {choice.candidate.recipe.dtype}, of which no such scores are recorded"
            )
            searched = _score(pool, index, choice.candidate.recipe)
            _check_bits(archive, index, searched)
            recorded = searched.task_scores
    return OtherDtype(other.recipe, _compared(archive, scored, recorded))


def rescored_record(other: OtherDtype) -> dict[str, object]:
    """Return the scores of another dtype as JSON, ``scored_beside`` the searched one's."""
    if (found := other.rescored) is None:
        return {}
    return {
        "scores": {SPLIT: scores_record(found.scores)},
        "scored_beside": {SPLIT: scores_record(found.recorded)},
        "differences": {name: _record(gap) for name, gap in found.differences.items()},
        "mean_difference": _record(found.mean_difference),
    }


def render_rescored(
    found: Rescored, dtype: DtypeName, searched: DtypeName, preference: Mapping[str, float]
) -> Table:
    """Lay the scores of another dtype out for a terminal, beside the searched one's."""
    table = plain_table()
    table.add_column(SPLIT)
    for title in (dtype, searched, "difference"):
        table.add_column(title, justify="right", no_wrap=True)
    for name, score in found.scores.items():
        gap = format_difference(found.differences[name])
        table.add_row(name, format_score(score), format_score(found.recorded[name]), gap)
    means = [f"{preferred_mean(s, preference):.3f}" for s in (found.scores, found.recorded)]
    table.add_row("mean", *means, format_difference(found.mean_difference), style=SUMMARY)
    return table


def _record(gap: PairedDifference) -> dict[str, float]:
    return {"mean": gap.mean, "stderr": gap.stderr}


def _job_here(job: JobConfig, dtype: DtypeName) -> JobConfig:
    """Return a job that merges in another dtype, with one worker on this machine."""
    return job.model_copy(
        update={
            "merge": job.merge.model_copy(update={"dtype": dtype}),
            "workers": job.workers.model_copy(update={"address": None, "count": 1}),
        }
    )


def _score(pool: WorkerPool, index: int, recipe: MergeRecipe) -> Completed:
    pool.submit(EvaluationRequest(EvaluationKey(index, SPLIT), recipe))
    outcome = pool.next_outcome()
    if isinstance(outcome, Completed):
        return outcome
    reason = "nothing came back" if outcome is None else f"{outcome.error_class}: {outcome.message}"
    raise EvaluationError(
        f"the merge cannot be scored in {recipe.dtype} ({reason}); nothing was exported. Choose "
        "another dtype, or leave --score out to export it without scores",
        dtype=recipe.dtype,
    )


def _check_bits(archive: "Archive", index: int, searched: Completed) -> None:
    """Refuse to compare with scores of weights that are not those of the search."""
    expected = archive.weights_digest(index)
    if searched.weights_digest != expected:
        raise CheckpointError(
            f"candidate {index} of {archive.place} merges to weights digest "
            f"{searched.weights_digest} here, but {expected} was scored; nothing was exported. "
            "Score on the kind of device and with the version of torch that searched (device "
            f"`{archive.job.workers.device}`)",
            expected=expected,
            found=searched.weights_digest,
        )


def _compared(archive: "Archive", scored: Completed, recorded: dict[str, TaskScores]) -> Rescored:
    objectives = archive.job.objectives

    def difference(preference: dict[str, float]) -> PairedDifference:
        return paired_difference(objectives, preference, scored.task_scores, recorded)

    return Rescored(
        weights_digest=scored.weights_digest,
        task_scores=dict(scored.task_scores),
        scores=aggregate(objectives, scored.task_scores),
        recorded=aggregate(objectives, recorded),
        differences={
            name: difference({other: float(other == name) for other in objectives})
            for name in objectives
        },
        mean_difference=difference(archive.job.preference),
    )
