"""Asking for part of an evaluation: what a race between candidates is made of.

The loop of a race: ask for a block, record its outcome, compare the candidates on the items that
they share (``evaluators.paired``), stop some, and ask for the next block of the others. A
candidate whose blocks hold a whole split has been scored on it like any other.
"""

from configs.evaluation import SplitName
from evaluators.blocks import WHOLE
from evaluators.scores import Items
from optimizer.archive import Archive
from workers.outcome import EvaluationKey, EvaluationRequest


def block_request(
    archive: Archive, candidate: int, split: SplitName, items: Items | None = None
) -> EvaluationRequest | None:
    """Ask for the items that a candidate was not scored on yet, and record which they are.

    Args:
        archive: Open for writing; what is in flight is not in it, and would be asked for again.
        candidate: Index of a recorded proposal.
        split: Where.
        items: What should be scored in the end; None is the whole split.

    Returns:
        The request, or None when nothing is left to score.

    Raises:
        ArchiveError: There is no such candidate, or an item is not in the split.
    """
    recipe = archive.candidate(candidate).recipe
    left = archive.remaining(candidate, split, items)
    if not left:
        return None
    name = archive.record_block(split, left)
    key = EvaluationKey(candidate, split, name)
    return EvaluationRequest(key, recipe, None if name == WHOLE else archive.block(split, name))
