"""LoRAHub's setting: adapters composed for an unseen task from five examples, without gradients."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pandas import DataFrame

from configs.evaluation import SplitSizes
from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import Items, ObjectiveScore
from optimizer.candidate import Observation
from optimizer.strategies.scalar_cma import ScalarCmaStrategy, l1_penalty
from scripts.bench.zoo_job import COMPANION, METRICS, ROOT
from scripts.papers.bench import Bench, Lab
from scripts.papers.lora_pool import (
    ALPHA,
    FAST_STEPS,
    PARTS,
    RANK,
    SCHEDULE,
    TARGETS,
    UNSEEN,
    write_pool,
)
from scripts.papers.study import Claim, Record, Study, Table, mean_of
from scripts.zoo.item import Skill
from workers.outcome import Failed

SHOTS = 5
DRAWS, FAST_DRAWS = 3, 1
EVALUATIONS, FAST_EVALUATIONS = 40, 27
BOUND, L1 = 1.5, 0.05
"""LoRAHub's: weights in [-1.5, 1.5], and what a mean absolute weight of 1 costs."""

COMPOSED, NO_L1 = "composed", "composed, no L1"
BASE, MEAN, SINGLE = "base", "mean of all", "best single"
_NUM_ITEMS = 512


def measure(bench: Bench) -> list[Record]:
    """Compose the adapters for each unseen part, from several draws of five examples."""
    steps = FAST_STEPS if bench.fast else SCHEDULE.steps
    sizes = (steps, RANK, ALPHA, TARGETS, _NUM_ITEMS)
    settings = (PARTS, UNSEEN, SCHEDULE, *sizes, bench.digest("base"))
    pool = bench.made(
        "lora",
        settings,
        lambda out: write_pool(
            bench.zoo / "base",
            out,
            seed=bench.seed,
            num_items=_NUM_ITEMS,
            steps=steps,
        ),
    )
    records: list[Record] = []
    splits = SplitSizes(search=SHOTS * DRAWS, select=1, report=bench.splits.report)
    for skill in UNSEEN:
        jobs = {
            l1: _job(bench, pool, skill, splits=splits, metric=METRICS[skill], l1=l1)
            for l1 in (L1, 0.0)
        }
        likelihood = _job(bench, pool, skill, splits=splits, metric=COMPANION, l1=L1)
        with Lab({"generate": jobs[L1], "likelihood": likelihood}, bench.store) as lab:
            records += _of_skill(lab, jobs, skill, fast=bench.fast)
    return records


def _job(
    bench: Bench, pool: Path, skill: Skill, *, splits: SplitSizes, metric: str, l1: float
) -> JobConfig:
    """Return the job of composing all adapters for one skill's unseen part."""
    return bench.job(
        {part: pool / "models" / part for part in PARTS},
        skills=(skill,),
        objectives={skill: [{"task": f"zoo_{skill}", "metric": metric}]},
        merge={"method": "task_arithmetic", "weight": {"low": -BOUND, "high": BOUND}},
        search={"strategy": "scalar_cma", "l1": l1},
        evaluation={
            "include_path": [str(ROOT / "evaluators/tasks/zoo")],
            "data_dir": str(pool),
            "splits": splits,
            "allow_code_execution": True,
        },
    )


def _of_skill(lab: Lab, jobs: dict[float, JobConfig], skill: Skill, *, fast: bool) -> list[Record]:
    task = f"zoo_{skill}"
    records: list[Record] = []

    def report(how: str, draw: int, recipe: MergeRecipe, **numbers: float) -> None:
        score = lab.mean_scores(recipe)[task]
        records.append({"task": UNSEEN[skill], "how": how, "draw": draw, "score": score, **numbers})

    singles = {part: lab.recipe({part: 1.0}) for part in PARTS}
    known = lab.manifest.items("search")[task]
    for draw in range(FAST_DRAWS if fast else DRAWS):
        shots = {task: known[draw * SHOTS : (draw + 1) * SHOTS]}
        report(BASE, draw, lab.recipe({}))
        report(MEAN, draw, lab.recipe(dict.fromkeys(PARTS, 1.0 / len(PARTS))))
        report(SINGLE, draw, max(singles.values(), key=lambda one: fit(lab, one, shots)))
        for how, l1 in ((COMPOSED, L1), (NO_L1, 0.0))[: 1 if fast else 2]:
            job = jobs[l1].model_copy(update={"seed": jobs[l1].seed * DRAWS + draw})
            count = FAST_EVALUATIONS if fast else EVALUATIONS
            found = compose(lab, job, shots, evaluations=count)
            numbers = {"size": mean_weight(found), "negative": negative_share(found)}
            report(how, draw, found, **numbers)
    return records


def fit(lab: Lab, recipe: MergeRecipe, items: Items) -> float:
    """Return minus the bits per byte of the reference answers; -infinity for a failed merge."""
    found = lab.scores(recipe, items, "likelihood")
    if isinstance(found, Failed):
        return -math.inf
    return float(np.mean([scores.mean for scores in found.values()]))


def compose(lab: Lab, job: JobConfig, items: Items, *, evaluations: int) -> MergeRecipe:
    """Find weights of both signs for a few examples, by likelihood and without gradients.

    LoRAHub (arXiv:2307.13269, Compose and Adapt) minimizes L(w) + alpha sum_i |w_i| / N over its
    weights w in [-1.5, 1.5]^N, where the composed adapter has the factors A = sum_i w_i A_i and
    B = sum_i w_i B_i, so that its update is the product of the sums, cross terms w_i w_j B_i A_j
    included. Here the updates themselves are added: W = W_0 + sum_i w_i s B_i A_i, s = alpha / r of
    the adapters; one adapter of weight w counts w times here, and w^2 times there.

    Args:
        lab: Of the adapters merged onto their base.
        job: Says bounds, penalty and seed.
        items: The examples.
        evaluations: Merges to score; nothing is held out.

    Returns:
        The best merge by what is maximized, the penalty included.
    """
    strategy = ScalarCmaStrategy(job, lab.space)
    (name,) = job.objectives
    best, best_value = lab.recipe({}), -math.inf
    for index in range(evaluations):
        candidate = strategy.ask(index, [])
        value = fit(lab, candidate.recipe, items)
        is_scored = math.isfinite(value)
        scores = {name: ObjectiveScore(value, 0.0, SHOTS)} if is_scored else None
        strategy.tell(Observation(candidate, scores))
        penalized = value - l1_penalty(job.search.l1, candidate.recipe)
        if penalized > best_value:
            best, best_value = candidate.recipe, penalized
    return best


def mean_weight(recipe: MergeRecipe) -> float:
    """Return the mean absolute weight."""
    return float(np.abs(np.array(recipe.weights)).mean())


def negative_share(recipe: MergeRecipe) -> float:
    """Return the share of the weights that are below zero."""
    return float((np.array(recipe.weights) < 0.0).mean())


def _difference(records: DataFrame, first: str, second: str) -> float:
    return mean_of(records, how=first) - mean_of(records, how=second)


def _notes(records: DataFrame) -> Sequence[str]:
    lines = [
        f"`{how}`: mean absolute weight {mean_of(records, 'size', how=how):.2f}, "
        f"{100 * mean_of(records, 'negative', how=how):.0f} % of the weights below zero."
        for how in (COMPOSED, NO_L1)
        if (records["how"] == how).any()
    ]
    parts = records[records["how"] == COMPOSED].groupby("task", sort=False)["draw"].nunique()
    return [*lines, f"Draws of {SHOTS} examples per seed and task: {int(parts.min())}."]


LORA = Study(
    name="lora",
    title="LoRAHub: adapters composed from five examples",
    papers=("Huang et al., LoraHub, arXiv:2307.13269",),
    how=f"""
Six LoRA adapters of the base (rank {RANK}, alpha {ALPHA}, all linear layers, {SCHEDULE.steps} steps
({FAST_STEPS} with `--fast`) of {SCHEDULE.batch} items, three in ten of them easy items of
everything), each for a part of a skill: instructions on the order of words, or on their look;
stories in which things come, or go; functions of numbers, or of texts. The unseen tasks are what no
adapter was trained on: one constraint of each kind, one thing coming and one going, functions of
lists. (The base has seen some of all in its own training.) For {SHOTS} examples of a task,
`scalar_cma` finds a weight in [-{BOUND}, {BOUND}] per adapter ({EVALUATIONS} evaluations,
{FAST_EVALUATIONS} with `--fast`; start 1/N) that maximizes minus the bits per byte of the reference
answers less {L1} times the mean absolute weight, and without that penalty. Beside them the base,
equal weights 1/N, and the one adapter that fits the same examples best. LoRAHub takes the loss in
nats per token, starts from zero, and adds the adapters' factors A and B each; this project adds
their products. Shown are scores of generated answers on report items.""",
    measure=measure,
    checkpoints=(),
    claims=(
        Claim(
            key="composed_beats_base",
            text="""Adapters that are composed from a few examples do better on an unseen task than
            the model without (the authors' overview: superior to zero-shot learning).""",
            measured="mean score, composed minus base",
            value=lambda r: _difference(r, COMPOSED, BASE),
        ),
        Claim(
            key="composed_beats_mean",
            text="""This study: weights that are fitted to the examples do better than equal ones,
            which is what LoRAHub's Adapt stage is for.""",
            measured="mean score, composed minus equal weights",
            value=lambda r: _difference(r, COMPOSED, MEAN),
        ),
        Claim(
            key="composed_beats_single",
            text="""This study: several adapters together do more on an unseen task than the one
            that suits it best.""",
            measured="mean score, composed minus the adapter that fits the examples best",
            value=lambda r: _difference(r, COMPOSED, SINGLE),
        ),
        Claim(
            key="l1_shrinks",
            full_only=True,
            text="This study: the L1 penalty keeps weights small.",
            measured="mean absolute weight, without the penalty minus with it",
            value=lambda r: mean_of(r, "size", how=NO_L1) - mean_of(r, "size", how=COMPOSED),
        ),
        Claim(
            key="l1_keeps_scores",
            full_only=True,
            text="This study: the penalty costs no score.",
            measured="mean score, composed with the penalty minus without; -0.02 counts as none",
            value=lambda r: _difference(r, COMPOSED, NO_L1),
            margin=-0.02,
        ),
    ),
    tables=(Table("Scores on unseen tasks", ("how",), "task", "score"),),
    notes=_notes,
)
