"""What an archive refuses to record: blocks and scores that do not fit its job."""

import numpy as np

from configs.errors import ArchiveError
from configs.evaluation import SplitName
from configs.schema import JobConfig
from evaluators.blocks import WHOLE, ordered
from evaluators.scores import Items, Scores, TaskScores, aggregate
from optimizer.archive.records import covered_objectives, same_items
from workers.outcome import Completed


def checked_block(
    items: Items, usual: Items, job: JobConfig, split: SplitName
) -> dict[str, tuple[str, ...]]:
    """Put the items of a block into the order of their split.

    Args:
        items: Task -> some of its items.
        usual: All items of the split.
        job: Says which scorers must not be divided.
        split: Name of the split, for messages.

    Raises:
        ArchiveError: The block is empty, an item of it is not in the split, or it divides the
            items of a scorer whose scores depend on each other.
    """
    try:
        content = ordered(items, usual)
    except ValueError as error:
        raise ArchiveError(f"a block of split `{split}` cannot be recorded: {error}") from error
    for task in sorted(job.undivided & content.keys()):
        if len(content[task]) < len(usual[task]):
            raise ArchiveError(
                f"a block of split `{split}` would hold {len(content[task])} of the "
                f"{len(usual[task])} items of scorer `{task}`, whose scores may depend on which "
                "items are scored together; put all of them into a block, or none, or say "
                "`per_item: true` in the job where an item scores the same in every company"
            )
    return content


def checked_scores(outcome: Completed, job: JobConfig, usual: Items) -> Scores:
    """Aggregate the per-item scores of an outcome by objective.

    Args:
        outcome: What a worker sent.
        job: Its objectives say which tasks must be there.
        usual: Items of the outcome's split, of which a subset will do, or of its block, which
            must all be there. Companions may be those of some of them.

    Returns:
        The score of every objective; of a block, those whose tasks it all holds; none where
        only companions were asked for.

    Raises:
        ArchiveError: A task is missing, or has no items, foreign ones, or a score that is not
            finite.
    """
    tasks = [spec.task for objective in job.objectives.values() for spec in objective.tasks]
    found, is_block = outcome.task_scores, outcome.key.block != WHOLE
    asked = outcome.key.signal == "scores"
    wanted = [task for task in tasks if asked and (task in usual or not is_block)]
    problems = [f"task `{task}` has no scores" for task in wanted if task not in found]
    parts = [(part, is_block) for part in found.values()]
    parts += [(part, False) for part in outcome.companions.values()]
    problems += [
        f"task `{part.task}` {problem}"
        for part, whole in parts
        if (problem := _problem_of(part, usual, "block" if is_block else "split", whole=whole))
    ]
    if problems:
        raise ArchiveError(
            f"scores of candidate {outcome.key.candidate} on split `{outcome.key.split}` cannot "
            f"be recorded: {'; '.join(problems)}. Record such an evaluation as failed",
            candidate=outcome.key.candidate,
            split=outcome.key.split,
        )
    return aggregate(covered_objectives(job.objectives, found), found)


def _problem_of(part: TaskScores, usual: Items, where: str, *, whole: bool) -> str:
    if part.values.size == 0:
        return "was scored on no item"
    if not np.isfinite(part.values).all():
        first = int(np.flatnonzero(~np.isfinite(part.values))[0])
        return f"has score {part.values[first]} on item `{part.item_ids[first]}`"
    if part.weights is not None and not (np.isfinite(part.weights) & (part.weights > 0)).all():
        return f"has weights from {part.weights.min()} to {part.weights.max()}; they are positive"
    if not same_items(part, usual) and (
        foreign := set(part.item_ids).difference(usual.get(part.task, ()))
    ):
        return f"was scored on `{min(foreign)}`, which is no item of it in this {where}"
    if whole and (missing := set(usual[part.task]).difference(part.item_ids)):
        return f"was not scored on `{min(missing)}`, which is in this block"
    return ""
