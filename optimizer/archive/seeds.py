"""What a search knew before its first proposal, from another archive: rows, and back."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, select

from configs.recipe import MergeRecipe
from evaluators.scores import ObjectiveScore, Scores
from optimizer.archive.records import Row, Rows, blob_to_floats, floats_to_blob
from optimizer.archive.schema import seeds, warm_starts
from optimizer.candidate import Candidate, Observation


@dataclass(frozen=True, slots=True)
class Seed:
    """An outcome of another archive, as it is told.

    ``source`` is its candidate there. ``is_exact`` says whether it is of the same tensors on the
    same items, so that its scores are what an evaluation here would give.
    """

    observation: Observation
    source: int
    is_exact: bool


@dataclass(frozen=True, slots=True)
class WarmStart:
    """Where a search was started from.

    ``left_out`` maps reasons to the number of outcomes that were not taken because of them.
    """

    archive: str
    seeds: tuple[Seed, ...]
    left_out: Mapping[str, int]


def warm_start_row(start: WarmStart, recorded_at: str) -> Row:
    """Encode all of a warm start but its seeds."""
    return {
        "archive": json.dumps(start.archive),
        "left_out": json.dumps(dict(start.left_out)),
        "recorded_at": recorded_at,
    }


def seed_rows(start: WarmStart) -> Rows:
    """Encode seeds in the order of telling."""
    return [
        {
            "seed": number,
            "source": seed.source,
            "origin": seed.observation.candidate.origin,
            "genotype_f64": floats_to_blob(seed.observation.candidate.genotype),
            "recipe": seed.observation.candidate.recipe.model_dump_json(),
            "scores": json.dumps(_encoded(seed.observation), allow_nan=False),
            "is_exact": int(seed.is_exact),
        }
        for number, seed in enumerate(start.seeds)
    ]


def _encoded(seen: Observation) -> dict[str, dict[str, Any]]:
    """Return objective -> its score, and its companion beside it; either may be missing."""
    found = {name: asdict(score) for name, score in (seen.scores or {}).items()}
    for name, score in seen.companions.items():
        found.setdefault(name, {})["companion"] = asdict(score)
    return found


def read_warm_start(connection: Connection, search_id: int) -> WarmStart | None:
    """Read what ``warm_start_row`` and ``seed_rows`` wrote; None where nothing was."""
    query = select(warm_starts).where(warm_starts.c.search_id == search_id)
    row = connection.execute(query).first()
    if row is None:
        return None
    found = connection.execute(
        select(seeds).where(seeds.c.search_id == search_id).order_by(seeds.c.seed)
    )
    return WarmStart(
        archive=json.loads(row.archive),
        seeds=tuple(_seed(part._asdict()) for part in found),
        left_out=json.loads(row.left_out),
    )


def _seed(row: Mapping[str, Any]) -> Seed:
    scores: Scores = {}
    companions: Scores = {}
    for name, found in json.loads(row["scores"]).items():
        if companion := found.pop("companion", None):
            companions[name] = ObjectiveScore(**companion)
        if found:
            scores[name] = ObjectiveScore(**found)
    candidate = Candidate(
        index=-1 - row["seed"],
        genotype=blob_to_floats(row["genotype_f64"]),
        recipe=MergeRecipe.model_validate_json(row["recipe"]),
        origin=row["origin"],
        seen=0,
    )
    return Seed(Observation(candidate, scores, companions), row["source"], bool(row["is_exact"]))
