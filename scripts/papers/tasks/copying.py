"""The score of copying, called by lm-eval as ``!function copying.copy_results``."""

from collections.abc import Mapping, Sequence


def copy_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Score 1 if the first line of the response is ``doc["answer"]``, word by word."""
    line = results[0].split("\n", 1)[0]
    return {"exact_match": float(line.split() == doc["answer"].split())}
