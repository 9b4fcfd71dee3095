"""What the study of encoders makes of its checkpoints: labs, single drops, merges, fusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path

from configs.recipe import MergeRecipe
from scripts.papers.bench import Bench, Lab
from scripts.papers.encoders_texts import TASKS
from scripts.papers.encoders_training import EMBEDDERS, HALF, EncoderPlan

_SCORERS = "scripts.papers.encoders_scorers"
EMBEDDED = {"retrieval": "ndcg", "similarity": "spearman"}
"""Objective of the embedding models -> its scorer."""

POOLS = {
    "of both": ("retrieval", "similarity"),
    "of both, two stages": (
        "retrieval" + HALF, "retrieval", "similarity" + HALF, "similarity",
    ),
    "of the joint one, two stages": ("joint" + HALF, "joint"),
    "of both and the joint one": ("retrieval", "similarity", "joint"),
}  # fmt: skip
"""What is fused: pools of checkpoints of the embedding models."""

Made = Mapping[str, Sequence[MergeRecipe]]
"""Name of a way to merge -> the merges that it offers, one of which is chosen on search items."""


def classifier_lab(bench: Bench, made: Path, plan: EncoderPlan, *, budget: int) -> Lab:
    """Return a lab of the classifiers' bodies, each task scored with its own head."""
    objectives = {
        task: [
            {
                "scorer": f"{_SCORERS}:accuracy",
                "name": task,
                "items": f"{task}.jsonl",
                "options": {"head": str(made / "items" / f"{task}.safetensors")},
                "per_item": True,
            }
        ]
        for task in TASKS
    }
    return _lab(bench, made, plan, names=tuple(TASKS), objectives=objectives, budget=budget)


def single_lab(
    bench: Bench, made: Path, plan: EncoderPlan, task: str, *, base: Path | None = None
) -> Lab:
    """Return a lab of one classifier on its own task; ``base`` is what deltas are taken from."""
    head = str(made / "items" / f"{task}.safetensors")
    spec = {
        "scorer": f"{_SCORERS}:accuracy",
        "name": task,
        "items": f"{task}.jsonl",
        "options": {"head": head},
        "per_item": True,
    }
    return _lab(bench, made, plan, names=(task,), objectives={task: [spec]}, budget=1, base=base)


def embedding_lab(
    bench: Bench, made: Path, plan: EncoderPlan, names: tuple[str, ...], *, budget: int = 1
) -> Lab:
    """Return a lab of embedding models, scored by nDCG and by Spearman's correlation."""
    corpus = {"corpus": str(made / "items" / "corpus.json")}
    objectives = {
        name: [
            {
                "scorer": f"{_SCORERS}:{scorer}",
                "name": name,
                "items": f"{name}.jsonl",
                "options": corpus if scorer == "ndcg" else {},
                "per_item": scorer == "ndcg",
            }
        ]
        for name, scorer in EMBEDDED.items()
    }
    return _lab(bench, made, plan, names=names, objectives=objectives, budget=budget)


def _lab(
    bench: Bench,
    made: Path,
    plan: EncoderPlan,
    *,
    names: tuple[str, ...],
    objectives: Mapping[str, object],
    budget: int,
    base: Path | None = None,
) -> Lab:
    return bench.lab(
        {name: made / name for name in names},
        base=base or made / "base",
        objectives=objectives,
        evaluation={"data_dir": str(made / "items"), "splits": plan.splits, "batch_size": 64},
        budget={"evaluations": budget},
    )


def classifier_merges(lab: Lab, *, fast: bool) -> Made:
    """Return the merges of the three bodies; of several, one is chosen on search items."""
    scales = (0.3, 0.5, 0.8) if fast else (0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    trims = (0.5,) if fast else (0.3, 0.5, 0.8)
    ties_scales = (0.8, 1.2) if fast else (0.6, 0.8, 1.0, 1.3, 1.6)
    return {
        "average": [lab.recipe(_equal(1 / len(TASKS)))],
        "task arithmetic": [lab.recipe(_equal(scale)) for scale in scales],
        "TIES": [
            lab.recipe(_equal(1.0), method="ties", drop_ratio=trim, options={"scale": scale})
            for trim, scale in product(trims, ties_scales)
        ],
    }


def with_dare(lab: Lab, name: str, chosen: MergeRecipe, *, fast: bool) -> list[MergeRecipe]:
    """Return a chosen merge with a share p of every task vector dropped first, for some p."""
    drops = (0.1, 0.5, 0.8) if fast else (0.1, 0.3, 0.5, 0.7, 0.9)
    weight = chosen.weights[0][0]
    method = "dare_ties" if name == "TIES" else "dare_linear"
    options = {"scale": chosen.options["scale"]} if name == "TIES" else {}
    return [
        lab.recipe(_equal(weight), method=method, drop_ratio=drop, options=options)
        for drop in drops
    ]


def _equal(weight: float) -> dict[str, float]:
    return dict.fromkeys(TASKS, weight)


def fusions(lab: Lab, *, fast: bool) -> Made:
    """Return the fusions of embedding models: averages, and delta-guided ones (power 1)."""
    shares = (0.3, 0.5, 0.7) if fast else (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
    scales = (1.0, 1.5) if fast else (1.0, 1.25, 1.5, 1.75, 2.0)
    both = POOLS["of both"]
    made: dict[str, list[MergeRecipe]] = {
        "weighted average of both": [
            lab.recipe({both[0]: share, both[1]: 1.0 - share}, method="linear") for share in shares
        ],
        "average of both, scaled": [
            lab.recipe(dict.fromkeys(both, scale / 2), method="task_arithmetic") for scale in scales
        ],
        "delta-guided of both, scaled": [
            lab.recipe(dict.fromkeys(both, 1.0), method="delta_guided", options={"scale": scale})
            for scale in scales
        ],
    }
    for pool, names in POOLS.items():
        made[f"average {pool}"] = [
            lab.recipe(dict.fromkeys(names, 1 / len(names)), method="linear")
        ]
        made[f"delta-guided {pool}"] = [
            lab.recipe(dict.fromkeys(names, 1.0), method="delta_guided")
        ]
    return made


def embedders() -> tuple[str, ...]:
    """Return the names of all checkpoints of embedding models."""
    return tuple(name + half for name in EMBEDDERS for half in (HALF, ""))
