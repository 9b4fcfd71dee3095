"""A search without models: checkpoints that are not there, and scores that are a formula.

What an evaluation gives depends on its recipe and its items only, so whatever happens to a search,
its record can be held against this. Scores are item scores of a smooth landscape with fixed noise
per item, and a fixed share of recipes fails. Companions follow the landscape; fixed shares of
recipes with drops find every reference unlikely, or only repeat themselves.
"""

import hashlib
from pathlib import Path

import numpy as np

from configs.evaluation import SPLITS, TaskSpec
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import TaskScores
from workers.outcome import Completed, EvaluationRequest, Failed, Outcome, Stage
from workers.sources import ResolvedSource, Sources

NAMES = ("instruct", "code", "math")
COMPANIONS = {name: [{"task": f"zoo_{name}", "companion": True}] for name in NAMES}
IN_FULL = {"racing": {"enabled": False}}
# Few items are seldom enough for the default confidence.
OFTEN = {"racing": {"confidence": 0.8, "sampling": False}}


def make_job(archive: Path, **changes: object) -> JobConfig:
    """Return the job of a search in an archive; ``changes`` replace whole sections."""
    content: dict[str, object] = {
        "seed": 3,
        "models": {"base": "zoo/base", "checkpoints": {name: f"zoo/{name}" for name in NAMES}},
        "objectives": {name: f"zoo_{name}" for name in NAMES},
        # The default strategy computes for most of a test's time; where it matters, a test says so.
        "search": {"strategy": "cma", "population_size": 6, **IN_FULL},
        "budget": {"evaluations": 60},
        "validation": {"candidates": 6},
        "archive": str(archive),
    }
    return JobConfig.model_validate(content | changes)


def make_sources() -> Sources:
    """Return the checkpoints of the job, as if they had been found."""

    def resolved(name: str) -> ResolvedSource:
        return ResolvedSource(name, Path("zoo") / name, digest=name * 4)

    return Sources(resolved("base"), tuple(resolved(name) for name in NAMES))


def make_manifest() -> Manifest:
    """Return 24 items of every task and split."""
    splits = {
        split: {
            f"zoo_{name}": tuple(f"{split}-{name}-{item}" for item in range(24)) for name in NAMES
        }
        for split in SPLITS
    }
    return Manifest(splits, {f"zoo_{name}": "0" * 16 for name in NAMES})


def unit(*parts: object) -> float:
    """Return a number in [0, 1) that is a function of the parts."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def scripted_outcome(job: JobConfig, manifest: Manifest, request: EvaluationRequest) -> Outcome:
    """Return what comes of an evaluation, as its first attempt."""
    recipe = request.recipe
    if unit("fail", recipe.recipe_id) < 0.06:
        return Failed(
            key=request.key, attempt=1, worker="scripted", stage=Stage.EVALUATE,
            error_class="EvaluationError", message="logits are not finite",
        )  # fmt: skip
    weights = np.array(recipe.weights)[:, 0]
    # The best merge is no equal weighting, so that a search has something to win.
    quality = np.exp(-3 * ((weights - [0.3, 0.7, 1.2]) ** 2).sum()) * (
        1 - 0.2 * np.array(recipe.drop_ratios).mean()
    )
    task_scores, companions = {}, {}
    broken = np.max(recipe.drop_ratios) > 0 and unit("broken", recipe.recipe_id) < 0.2
    repeats = np.max(recipe.drop_ratios) > 0 and unit("repeats", recipe.recipe_id) < 0.15
    tasks = list(manifest.items(request.key.split))
    asked = manifest.items(request.key.split) if request.items is None else request.items
    specs = [spec for objective in job.objectives.values() for spec in objective.tasks]
    with_companion = {spec.task for spec in specs if isinstance(spec, TaskSpec) and spec.companion}
    beside = asked if request.companions is None else request.companions
    if request.key.signal == "companions":
        asked, beside = {}, asked
    for task, items in beside.items():
        if task in with_companion:
            level = 20.0 if broken else 2.0 - quality
            values = [-level * (0.5 + unit("bits", task, item)) for item in items]
            companions[task] = TaskScores(task, tuple(items), np.array(values))
    for task, items in asked.items():
        own = 0.6 * quality + 0.4 * min(1.0, weights[tasks.index(task) % len(weights)])
        values = [float(unit(task, item) < own) for item in items]
        task_scores[task] = TaskScores(task, tuple(items), np.array(values))
    return Completed(
        key=request.key, attempt=1, worker="scripted", weights_digest=recipe.recipe_id[:32],
        task_scores=task_scores, companions=companions,
        texts={task: ("!" * 40 if repeats else "fine",) * len(asked[task]) for task in asked},
    )  # fmt: skip
