"""Gates: whether a merge broke the model, told from little before much is spent. Pure functions.

A model whose logits are not finite fails by itself. What these look for is one that still speaks:
references that no source finds so unlikely, and texts that only repeat themselves. Everything is
held against the sources of the search, so that a base that cannot answer yet breaks no gate.
"""

from collections.abc import Mapping, Sequence

from evaluators.scores import TaskScores
from optimizer.archive.stops import Stop

# A text shorter than this says nothing about repetition: many answers are a number.
_LEAST_CHARACTERS = 24
# So often must a unit come at the end of a text, and fill so much of it.
_LEAST_REPEATS = 4
_LEAST_SHARE = 0.5

# Bits per byte (of a multiple choice nats) that are far at any level: a byte is half as likely. A
# merge of models that are nearly certain may need twice their bits and answer everything.
_LEAST_GAP = 1.0

Companions = Mapping[str, TaskScores]


def likelihood_gate(found: Companions, sources: Sequence[Companions], factor: float) -> Stop | None:
    """Stop a model to which references are less likely than to every source, by far, in all tasks.

    Args:
        found: The candidate's companions, task by task, on some items.
        sources: Those of the base and of each checkpoint, at least on these items.
        factor: How many times the bits (or nats) of the worst source are too much, where that is
            one or more in addition.

    Returns:
        The stop, or None where a task is within the factor, or there is nothing to compare.
    """
    if not found or not sources:
        return None
    means: dict[str, float] = {}
    worst: dict[str, float] = {}
    for task, part in found.items():
        on_these = [mean_on(source[task], part.item_ids) for source in sources if task in source]
        if not on_these:
            return None
        means[task], worst[task] = part.mean, min(on_these)
        # Both are logarithms of probabilities, so negative.
        if means[task] > min(factor * worst[task], worst[task] - _LEAST_GAP):
            return None
    numbers = {"gate": "likelihood", "found": means, "worst source": worst, "factor": factor}
    return Stop(reason="broken", scores=None, numbers=numbers)


def repetition_gate(
    texts: Mapping[str, Sequence[str]],
    sources: Sequence[Mapping[str, Sequence[str]]],
    limit: float,
) -> Stop | None:
    """Stop a model whose texts end in repetitions, where those of the sources do not.

    Args:
        texts: Task -> what the candidate generated.
        sources: The same of the base and the checkpoints.
        limit: Share of the texts that is too much, of all tasks together.
    """
    share = repetitive_share(texts)
    usual = [repetitive_share(source) for source in sources]
    if not usual or share < limit or max(usual) >= limit:
        return None
    numbers = {"gate": "repetition", "share": share, "worst source": max(usual), "limit": limit}
    return Stop(reason="broken", scores=None, numbers=numbers)


def repetitive_share(texts: Mapping[str, Sequence[str]]) -> float:
    """Return which share of the texts ends in repetitions; 0 where there are none."""
    every = [text for part in texts.values() for text in part]
    return sum(map(is_repetitive, every)) / len(every) if every else 0.0


def is_repetitive(text: str) -> bool:
    """Whether half of a text or more is the same unit again and again, at its end.

    The text may break off in the middle of a unit, as its budget ends.
    """
    size = len(text)
    if size < _LEAST_CHARACTERS:
        return False
    for period in range(1, size // _LEAST_REPEATS + 1):
        reach = period
        while reach < size and text[size - 1 - reach] == text[size - 1 - reach + period]:
            reach += 1
        if reach >= _LEAST_REPEATS * period and reach >= _LEAST_SHARE * size:
            return True
    return False


def mean_on(part: TaskScores, item_ids: Sequence[str]) -> float:
    """Return the mean score of a task on some of its items."""
    wanted = set(item_ids)
    return part.restricted_to(wanted).mean
