"""Asking for part of an evaluation: what a race between candidates is made of.

The loop of a race: ask for a block, record its outcome, compare the candidates on the items that
they share (``evaluators.paired``), stop some, and ask for the next block of the others. A
candidate that failed on a block is stopped: there is one outcome per block, so what failed is not
tried again, and asking for it is an error. A candidate whose blocks hold a whole split has been
scored on it like any other. Blocks hold all items of a scorer that is not ``per_item``, or none.
"""

from configs.errors import ArchiveError
from configs.evaluation import SplitName
from evaluators.blocks import WHOLE, remaining
from evaluators.scores import Items
from optimizer.archive.archive import Archive
from workers.outcome import EvaluationKey, EvaluationRequest


def block_request(
    archive: Archive,
    candidate: int,
    split: SplitName,
    items: Items | None = None,
    known: Items | None = None,
) -> EvaluationRequest | None:
    """Ask for the items that a candidate was not scored on yet, and record which they are.

    Args:
        archive: Open for writing; what is in flight is not in it, and would be asked for again.
        candidate: Index of a recorded proposal.
        split: Where.
        items: What should be scored in the end; None is the whole split.
        known: Of which items the companions are known, and need not be computed again.

    Returns:
        The request, or None when nothing is left to score.

    Raises:
        ArchiveError: There is no such candidate, an item is not in the split, a scorer's items
            would be divided, or the candidate failed on just these items.
    """
    recipe = archive.candidate(candidate).recipe
    left = archive.remaining(candidate, split, items)
    if not left:
        return None
    name = archive.record_block(split, left)
    key = EvaluationKey(candidate, split, name)
    if failed := archive.outcome(candidate, split, name):
        raise ArchiveError(
            f"candidate {candidate} failed on these {sum(map(len, left.values()))} items of "
            f"`{split}` already ({failed.error_class}: {failed.message}); an outcome is never "
            "replaced, so stop this candidate, or ask for other items",
            candidate=candidate,
        )
    beside = remaining(left, known) if known else None
    return EvaluationRequest(
        key, recipe, None if name == WHOLE else archive.block(split, name), beside
    )
