"""Per-item scores of the zoo's three tasks, called by lm-eval as ``!function scoring.<name>``.

Each ``*_results`` function takes a row of the data file and the list with the one generated
text, and returns ``{metric: score}`` with a score in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from evaluators.sandbox import shared_sandbox

_ANSWER = re.compile(r"####\s*(-?\d+)")
_TIMEOUT_S = 3.0


def math_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Score 1 if the first number after ``####`` is the story's, ``doc["target"]``."""
    found = _ANSWER.search(results[0])
    return {"exact_match": float(found is not None and int(found[1]) == int(doc["target"]))}


def code_program(doc: Mapping[str, str], response: str) -> str:
    """Return the function with the response as its body, and the asserts of ``doc["tests"]``.

    Only the first line of the response counts, as in generation, which stops there.
    """
    line = response.split("\n", 1)[0].strip()
    return f"{doc['prompt']} {line}\n\n\n{doc['tests']}\n"


def code_results(doc: Mapping[str, str], results: Sequence[str]) -> dict[str, float]:
    """Score 1 if the completed function passes every assert, run in this process's sandbox."""
    (result,) = shared_sandbox().run([code_program(doc, results[0])], timeout_s=_TIMEOUT_S)
    return {"pass_at_1": float(result.status == "passed")}


def is_satisfied(constraint: str, words: Sequence[str], response: str) -> bool:
    """Tell whether a response meets one constraint of an instruction.

    Args:
        constraint: ``reverse``, ``upper``, ``commas``, ``stars``, or ``begin:WORD``, ``end:WORD``.
        words: The words of the instruction, in its order. A response that lacks one of them
            meets nothing: an empty answer between stars is no answer.
        response: One line, without white space at its ends.

    Raises:
        ValueError: The constraint is of no known kind.
    """
    said = response.strip("*").replace(",", " ").lower().split()
    if not set(words) <= set(said):
        return False
    kind, _, extra = constraint.partition(":")
    backwards, width = list(reversed(words)), len(words)
    holds = {
        "upper": response == response.upper(),
        "commas": len(response.strip("* ").split(", ")) == len(said),
        "stars": len(response) > 1 and response[0] == response[-1] == "*",
        "begin": said[0] == extra,
        "end": said[-1] == extra,
        "reverse": any(said[i : i + width] == backwards for i in range(len(said))),
    }
    if kind not in holds:
        raise ValueError(f"unknown constraint {constraint!r} in the data file")
    return holds[kind]


def instruct_results(doc: Mapping[str, Sequence[str]], results: Sequence[str]) -> dict[str, float]:
    """Score the share of ``doc["constraints"]`` that the response satisfies."""
    response = results[0].split("\n", 1)[0].strip()
    held = [is_satisfied(text, doc["words"], response) for text in doc["constraints"]]
    return {"constraint_acc": sum(held) / len(held)}
