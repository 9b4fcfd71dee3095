"""Rows of an archive as Python values, and back; every float survives bit for bit."""

import json
import zlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from configs.evaluation import Objective
from configs.racing import BEFORE
from configs.schema import JobConfig
from evaluators.scores import FloatArray, Items, Scores, TaskScores
from optimizer.candidate import Candidate
from workers.outcome import Completed, EvaluationKey, Failed, Outcome, Stage

if TYPE_CHECKING:
    from workers.sources import Sources

Row = dict[str, object]
Rows = list[Row]

_FLOAT64 = np.dtype("<f8")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedOutcome:
    """An outcome as the archive holds it; per-item scores and texts are read on request.

    ``sequence`` counts all outcomes of a search from 0 in finishing order. ``scores`` is None,
    and ``stage``, ``error_class`` and ``message`` are not, when the evaluation failed.
    ``finished_at`` is UTC, ISO-8601.
    """

    sequence: int
    key: EvaluationKey
    attempt: int
    worker: str
    seconds: dict[str, float]
    finished_at: str
    scores: Scores | None = None
    weights_digest: str | None = None
    stage: Stage | None = None
    error_class: str | None = None
    message: str | None = None

    @property
    def status(self) -> Literal["completed", "failed"]:
        """Whether there are scores or an error."""
        return "failed" if self.scores is None else "completed"


def floats_to_blob(values: FloatArray) -> bytes:
    """Encode an ``(n,)`` float64 array as 8 n little-endian bytes."""
    return values.astype(_FLOAT64).tobytes()


def blob_to_floats(blob: bytes) -> FloatArray:
    """Decode what ``floats_to_blob`` wrote; the result owns its memory."""
    return np.frombuffer(blob, dtype=_FLOAT64).astype(np.float64)


def scores_to_blob(values: FloatArray) -> bytes:
    """Compress an ``(n,)`` float64 array without loss.

    Bytes of equal significance stand together, so that what scores have in common (all of an
    exact match but one bit) is next to nothing.
    """
    planes = values.astype(_FLOAT64).view(np.uint8).reshape(-1, _FLOAT64.itemsize).T
    return zlib.compress(planes.tobytes(), level=9)


def blob_to_scores(blob: bytes) -> FloatArray:
    """Read what ``scores_to_blob`` wrote."""
    planes = np.frombuffer(zlib.decompress(blob), dtype=np.uint8).reshape(_FLOAT64.itemsize, -1)
    return np.ascontiguousarray(planes.T).view(_FLOAT64).ravel().astype(np.float64)


def texts_to_blob(texts: Sequence[str]) -> bytes:
    """Compress generated texts; any text survives, unpaired surrogates included."""
    return zlib.compress(json.dumps(list(texts)).encode("ascii"))


def blob_to_texts(blob: bytes) -> tuple[str, ...]:
    """Read what ``texts_to_blob`` wrote."""
    return tuple(json.loads(zlib.decompress(blob)))


def storable(text: str) -> str:
    """Escape what no database stores as text: NUL and unpaired surrogates."""
    return text.replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def job_to_json(job: JobConfig) -> str:
    """Encode a job; the order of checkpoints, groups and objectives is kept."""
    return json.dumps(job.model_dump(mode="json"), allow_nan=False)


def json_to_job(text: str) -> JobConfig:
    """Read what ``job_to_json`` wrote; a search goes on without what there was not when it began.

    Such settings count as not set (``optimizer.job_changes.continued``).
    """
    content = json.loads(text)
    search = content["search"]
    missing = {name: before.keys() - search[name].keys() for name, before in BEFORE.items()}
    search |= {name: before | search[name] for name, before in BEFORE.items()}
    job = JobConfig.model_validate(content)
    for name, keys in missing.items():
        getattr(job.search, name).model_fields_set.difference_update(keys)
    return job


def sources_to_json(sources: "Sources") -> str:
    """Encode where every checkpoint lies, and the digest of its tensors."""
    base, *checkpoints = (
        source
        and {"name": source.name, "directory": str(source.directory), "digest": source.digest}
        for source in (sources.base, *sources.checkpoints)
    )
    return json.dumps({"base": base, "checkpoints": checkpoints})


def json_to_sources(text: str) -> "Sources":
    """Read what ``sources_to_json`` wrote."""
    from workers.sources import ResolvedSource, Sources

    content = json.loads(text)
    base, *checkpoints = (
        source and ResolvedSource(source["name"], Path(source["directory"]), source["digest"])
        for source in (content["base"], *content["checkpoints"])
    )
    return Sources(base=base, checkpoints=tuple(checkpoints))


def proposal_row(candidate: Candidate, pending: Sequence[int], proposed_at: str) -> Row:
    """Encode a proposal; Python's JSON writes every float so that it reads back bit for bit."""
    return {
        "candidate": candidate.index,
        "origin": candidate.origin,
        "genotype_f64": floats_to_blob(candidate.genotype),
        "recipe": json.dumps(candidate.recipe.model_dump(mode="json"), allow_nan=False),
        "recipe_id": candidate.recipe.recipe_id,
        "seen": candidate.seen,
        "pending": json.dumps(list(pending)),
        "proposed_at": proposed_at,
    }


def decode_outcome(row: Mapping[Any, Any], scores: Scores, job: JobConfig) -> RecordedOutcome:
    """Build an outcome from its row and its scores, which take the order of the job."""
    in_order = {name: scores[name] for name in job.objectives if name in scores}
    return RecordedOutcome(
        sequence=row["sequence"],
        key=decode_key(row),
        attempt=row["attempt"],
        worker=row["worker"],
        seconds=json.loads(row["seconds"]),
        finished_at=row["finished_at"],
        scores=None if row["status"] == "failed" else in_order,
        weights_digest=row["weights_digest"],
        stage=None if row["stage"] is None else Stage(row["stage"]),
        error_class=row["error_class"],
        message=row["message"],
    )


def whole_outcome(parts: Sequence[RecordedOutcome], scores: Scores) -> RecordedOutcome:
    """Build the outcome of a split that was scored block by block.

    Args:
        parts: Its completed blocks in finishing order; the last one names worker and time.
        scores: Over the items of all of them.
    """
    last = parts[-1]
    seconds: dict[str, float] = {}
    for part in parts:
        for stage, spent in part.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    key = EvaluationKey(last.key.candidate, last.key.split)
    return replace(last, key=key, seconds=seconds, scores=scores)


def outcome_row(outcome: Outcome, *, sequence: int, finished_at: str) -> Row:
    """Encode all of an outcome but its scores and texts."""
    completed = outcome if isinstance(outcome, Completed) else None
    failed = outcome if isinstance(outcome, Failed) else None
    return {
        **key_columns(outcome.key),
        "sequence": sequence,
        "status": "completed" if completed else "failed",
        "attempt": outcome.attempt,
        "worker": outcome.worker,
        "weights_digest": completed and completed.weights_digest,
        "seconds": json.dumps(dict(outcome.seconds)),
        "stage": failed and str(failed.stage),
        "error_class": failed and failed.error_class,
        "message": failed and storable(failed.message),
        "finished_at": finished_at,
    }


def objective_rows(key: EvaluationKey, scores: Scores) -> Rows:
    """Encode the score of every objective."""
    columns = key_columns(key)
    return [
        {
            **columns,
            "objective": name,
            "value": score.value,
            "stderr": score.stderr,
            "count": score.count,
        }
        for name, score in scores.items()
    ]


def item_rows(key: EvaluationKey, parts: Mapping[str, TaskScores], usual: Items) -> Rows:
    """Encode per-item scores task by task; ids are stored only where they are not the usual."""
    return [
        {
            **key_columns(key),
            "task": task,
            "values_zlib": scores_to_blob(part.values),
            "weights_zlib": None if part.weights is None else scores_to_blob(part.weights),
            "item_ids": None if same_items(part, usual) else json.dumps(part.item_ids),
        }
        for task, part in parts.items()
    ]


def decode_items(row: Mapping[str, Any], usual: Items) -> TaskScores:
    """Build the per-item scores of a task from their row."""
    task, ids, weights = row["task"], row["item_ids"], row["weights_zlib"]
    return TaskScores(
        task=task,
        item_ids=tuple(usual[task] if ids is None else json.loads(ids)),
        values=blob_to_scores(row["values_zlib"]),
        weights=None if weights is None else blob_to_scores(weights),
    )


def block_to_json(items: Items) -> str:
    """Encode the items of a block."""
    return json.dumps({task: list(ids) for task, ids in items.items()}, separators=(",", ":"))


def json_to_block(text: str) -> dict[str, tuple[str, ...]]:
    """Read what ``block_to_json`` wrote."""
    return {task: tuple(ids) for task, ids in json.loads(text).items()}


def text_rows(outcome: Completed) -> Rows:
    """Encode the generated texts task by task."""
    return [
        {**key_columns(outcome.key), "task": task, "texts_zlib": texts_to_blob(part)}
        for task, part in outcome.texts.items()
    ]


def covered_objectives(
    objectives: Mapping[str, Objective], tasks: Container[str]
) -> dict[str, Objective]:
    """Return the objectives whose tasks are all among ``tasks``."""
    return {
        name: objective
        for name, objective in objectives.items()
        if all(spec.task in tasks for spec in objective.tasks)
    }


def same_items(part: TaskScores, usual: Items) -> bool:
    """Whether a task was scored on its usual items, in their usual order."""
    return tuple(usual.get(part.task, ())) == part.item_ids


def key_columns(key: EvaluationKey) -> Row:
    """Encode which evaluation a row is of."""
    return {
        "candidate": key.candidate,
        "split": key.split,
        "block": key.block,
        "signal": key.signal,
    }


def decode_key(row: Mapping[Any, Any]) -> EvaluationKey:
    """Read what ``key_columns`` wrote."""
    return EvaluationKey(row["candidate"], row["split"], row["block"], row["signal"])
