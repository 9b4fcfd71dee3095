"""Stops: candidates that were not scored on all search items, and what decided that."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evaluators.scores import ObjectiveScore, Scores
from optimizer.archive.records import Row

Numbers = Mapping[str, object]
"""What decided a stop, for people: JSON values under names of their own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """Why a candidate is not scored any further, and what its strategy is told of it.

    Attributes:
        reason: ``racing``, ``sampled``, ``screened`` or ``broken``.
        scores: Estimates for the whole split; empty when only companions are known, None when
            the candidate counts as failed.
        numbers: What decided.
    """

    reason: str
    scores: Scores | None
    numbers: Numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedStop:
    """A stop as the archive holds it.

    ``number`` counts the stops of a search from 0; ``sequence`` is that of the last outcome
    before it. ``stopped_at`` is UTC, ISO-8601.
    """

    candidate: int
    number: int
    sequence: int
    stop: Stop
    stopped_at: str


def stop_row(candidate: int, number: int, sequence: int, stop: Stop, stopped_at: str) -> Row:
    """Encode a stop; Python's JSON writes every float so that it reads back bit for bit."""
    scores = None
    if stop.scores is not None:
        scores = {name: asdict(score) for name, score in stop.scores.items()}
    return {
        "candidate": candidate,
        "stop": number,
        "sequence": sequence,
        "reason": stop.reason,
        "scores": None if scores is None else json.dumps(scores, allow_nan=False),
        "numbers": json.dumps(dict(stop.numbers), allow_nan=False),
        "stopped_at": stopped_at,
    }


def decode_stop(row: Mapping[str, Any]) -> RecordedStop:
    """Read what ``stop_row`` wrote."""
    found = None if row["scores"] is None else json.loads(row["scores"])
    scores = None
    if found is not None:
        scores = {name: ObjectiveScore(**score) for name, score in found.items()}
    return RecordedStop(
        candidate=row["candidate"],
        number=row["stop"],
        sequence=row["sequence"],
        stop=Stop(
            reason=row["reason"],
            scores=scores,
            numbers=json.loads(row["numbers"]),
        ),
        stopped_at=row["stopped_at"],
    )
