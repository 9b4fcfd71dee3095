"""A small search to record: one job, its items, and outcomes that are a function of their key."""

import dataclasses
from pathlib import Path

import numpy as np

from configs.evaluation import SPLITS, SplitName
from configs.recipe import Group, MergeRecipe, Source
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import Items, TaskScores
from optimizer.archive.archive import Archive
from optimizer.candidate import Candidate
from workers.outcome import Completed, EvaluationKey, Failed, Stage
from workers.sources import ResolvedSource, Sources

# Not in alphabetical order, so that an order lost on the way shows.
CHECKPOINTS = ("math", "code", "zebra", "instruct")
TASKS = ("gsm8k", "mbpp", "humaneval", "ifeval")
ITEMS_PER_TASK = 7


def example_job() -> JobConfig:
    return JobConfig.model_validate(
        {
            "name": "example",
            "seed": 2**62 + 1,
            "models": {
                "base": "/zoo/base",
                "checkpoints": {name: f"/zoo/{name}" for name in CHECKPOINTS},
            },
            "merge": {"weight": {"low": -0.1, "high": 1 / 3}},
            "objectives": {
                "math": ["gsm8k"],
                "code": [{"task": "mbpp", "weight": 2.0}, "humaneval"],
                "instruct": ["ifeval"],
            },
            "archive": "/runs/example.sqlite",
        }
    )


def example_sources() -> Sources:
    base, *checkpoints = (
        ResolvedSource(name, Path("/zoo") / name, digest=f"{index:02x}" * 16)
        for index, name in enumerate(("base", *CHECKPOINTS))
    )
    return Sources(base, tuple(checkpoints))


def example_manifest() -> Manifest:
    return Manifest(
        {split: {task: item_ids(split, task) for task in TASKS} for split in SPLITS},
        {task: task[::-1] for task in TASKS},
    )


def example_archive(path: Path | str, job_path: Path | None = None) -> Archive:
    """The archive of a search that was just begun, open for writing."""
    return Archive.create(
        path,
        job=example_job(),
        job_path=job_path,
        sources=example_sources(),
        manifest=example_manifest(),
    )


def item_ids(split: SplitName, task: str) -> tuple[str, ...]:
    return tuple(f"{split}-{task}-{number}" for number in range(ITEMS_PER_TASK))


def example_candidate(index: int, *, seen: int = 0, origin: str = "strategy:cma") -> Candidate:
    rng = np.random.default_rng([7, index])
    count = len(CHECKPOINTS)
    sources = example_sources()
    recipe = MergeRecipe(
        method="dare_linear",
        base=Source(name="base", digest=sources.base.digest),
        checkpoints=tuple(
            Source(name=source.name, digest=source.digest) for source in sources.checkpoints
        ),
        groups=(Group(name="all", patterns=(".*",)),),
        weights=tuple((float(weight),) for weight in rng.normal(size=count)),
        drop_ratios=tuple((float(ratio),) for ratio in rng.random(count)),
        dtype="float32",
    )
    return Candidate(index, rng.random(2 * count), recipe, origin, seen)


def example_values(candidate: int, split: SplitName, task: str) -> np.ndarray:
    seed = [candidate, SPLITS.index(split), TASKS.index(task)]
    return np.random.default_rng(seed).normal(size=ITEMS_PER_TASK)


def completed(candidate: int, split: SplitName = "search", *, attempt: int = 1) -> Completed:
    return Completed(
        key=EvaluationKey(candidate, split),
        attempt=attempt,
        worker=f"worker-{candidate % 3}",
        weights_digest=f"{candidate:064x}",
        task_scores={
            task: TaskScores(task, item_ids(split, task), example_values(candidate, split, task))
            for task in TASKS
        },
        texts={"gsm8k": tuple(f"answer {candidate} of item {n}" for n in range(ITEMS_PER_TASK))},
        seconds={"materialize": 0.1, "forward": 1 / 3},
    )


def with_companion(outcome: Completed) -> Completed:
    scores = outcome.task_scores["gsm8k"]
    companion = TaskScores("gsm8k", scores.item_ids, -np.exp(scores.values))
    return dataclasses.replace(outcome, companions={"gsm8k": companion})


def completed_block(candidate: int, block: str, items: Items) -> Completed:
    """What ``completed`` is on these items of the search split, and on no others."""
    whole = completed(candidate)
    rows = {
        task: [item_ids("search", task).index(item) for item in ids] for task, ids in items.items()
    }
    return dataclasses.replace(
        whole,
        key=EvaluationKey(candidate, "search", block),
        task_scores={
            task: TaskScores(task, tuple(items[task]), whole.task_scores[task].values[rows[task]])
            for task in items
        },
        texts={"gsm8k": tuple(whole.texts["gsm8k"][row] for row in rows["gsm8k"])}
        if "gsm8k" in rows
        else {},
    )


def failed(candidate: int, split: SplitName = "search", *, attempt: int = 1) -> Failed:
    return Failed(
        key=EvaluationKey(candidate, split),
        attempt=attempt,
        worker="worker-0",
        stage=Stage.EVALUATE,
        error_class="EvaluationError",
        message="logits are not finite",
        seconds={"materialize": 0.25},
    )
