"""Encoders: classifiers whose heads are not merged, as in DARE, and embedding models (CoDiEmb)."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from pandas import DataFrame
from safetensors import safe_open

from configs.evaluation import SplitSizes
from configs.recipe import MergeRecipe
from scripts.papers.bench import Bench, Lab
from scripts.papers.dare import MASKS, delta_range, kept, write_zeros
from scripts.papers.encoders_merges import (
    EMBEDDED,
    POOLS,
    classifier_lab,
    classifier_merges,
    embedders,
    embedding_lab,
    fusions,
    single_lab,
    with_dare,
)
from scripts.papers.encoders_texts import TASKS
from scripts.papers.encoders_training import EncoderPlan, make_encoders
from scripts.papers.searching import search
from scripts.papers.study import Claim, Figure, Record, Study, Table, mean_of

PLAN = EncoderPlan(base_steps=1500, class_steps=300, embed_steps=300, tuned_rate=5e-4)
FAST_PLAN = EncoderPlan(
    base_steps=320,
    class_steps=80,
    embed_steps=60,
    splits=SplitSizes(search=48, select=16, report=128),
)
DROPS = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99)
FAST_DROPS = (0.0, 0.1, 0.5, 0.9)
_BUDGET, _FAST_BUDGET = 40, 14
_AS_GOOD = -0.02
_BEST, _SEARCHED = "the best of these by search items", "search"


def measure(bench: Bench) -> list[Record]:
    """Train the encoders of a seed, once, and score what is dropped of them and merged of them."""
    plan = FAST_PLAN if bench.fast else PLAN
    made = bench.made(
        "encoders", plan.digest, lambda out: make_encoders(out, plan, seed=bench.seed)
    )
    records: list[Record] = []
    for task in TASKS:
        records += _drops(bench, made, plan, task)
    records += _merges(bench, made, plan)
    records += _fused(bench, made, plan)
    return records


def _drops(bench: Bench, made: Path, plan: EncoderPlan, task: str) -> Iterator[Record]:
    """Score one classifier with a share of its deltas dropped, or of its weights."""
    drops = FAST_DROPS if bench.fast else DROPS
    zeros = bench.made("encoders-zeros", plan.digest, lambda out: write_zeros(made / "base", out))
    fixed: Record = {
        "checkpoint": task,
        "parameters": _num_parameters(made / task),
        **delta_range(made, task),
    }
    with single_lab(bench, made, plan, task) as lab:
        fixed["base"] = lab.mean_scores(lab.recipe({}))[task]
        fixed["tuned"] = lab.mean_scores(lab.recipe({task: 1.0}))[task]
        for how in ("rescaled", "not rescaled"):
            for drop in drops:
                yield {
                    **fixed,
                    "how": how,
                    "p": drop,
                    "score": _dropped(lab, task, how, drop, fast=bench.fast),
                }
    with single_lab(bench, made, plan, task, base=zeros) as lab:
        for drop in drops:
            score = _dropped(lab, task, "rescaled", drop, fast=bench.fast)
            yield {**fixed, "how": "weights dropped", "p": drop, "score": score}


def _merges(bench: Bench, made: Path, plan: EncoderPlan) -> Iterator[Record]:
    """Score every way to merge the three bodies, each task with its own head."""

    def rows(name: str, recipe: MergeRecipe) -> Iterator[Record]:
        for task, score in lab.report(recipe, masks=1 if bench.fast else MASKS).items():
            yield {"merge": name, "task": task, "accuracy": score}

    budget = _FAST_BUDGET if bench.fast else _BUDGET
    with classifier_lab(bench, made, plan, budget=budget) as lab:
        yield from rows("base", lab.recipe({}))
        for task in TASKS:
            yield from rows(f"{task} alone", lab.recipe({task: 1.0}))
        for name, recipes in classifier_merges(lab, fast=bench.fast).items():
            chosen = lab.best(recipes)
            yield from rows(name, chosen)
            sparse = lab.best(with_dare(lab, name, chosen, fast=bench.fast))
            yield from rows(f"{name}, DARE", sparse)
        yield from rows(_SEARCHED, search(lab).chosen)


def _fused(bench: Bench, made: Path, plan: EncoderPlan) -> Iterator[Record]:
    """Score the embedding models and every fusion of them on both objectives."""

    def rows(name: str, recipe: MergeRecipe) -> Iterator[Record]:
        for objective, score in lab.mean_scores(recipe).items():
            yield {"fusion": name, "objective": objective, "fused": score}

    with embedding_lab(bench, made, plan, embedders()) as lab:
        yield from rows("base", lab.recipe({}))
        for name in embedders():
            yield from rows(f"{name} alone", lab.recipe({name: 1.0}))
        ways = {name: lab.best(some) for name, some in fusions(lab, fast=bench.fast).items()}
        for name, recipe in ways.items():
            yield from rows(name, recipe)
        yield from rows(_BEST, lab.best(list(ways.values())))
    pool = POOLS["of both and the joint one"]
    budget = _FAST_BUDGET if bench.fast else _BUDGET
    with embedding_lab(bench, made, plan, pool, budget=budget) as lab:
        yield from rows(_SEARCHED, search(lab).chosen)


def _dropped(lab: Lab, name: str, how: str, drop: float, *, fast: bool) -> float:
    """Return the score of a checkpoint with a share of its task vector dropped at random."""
    recipe = lab.dropped(name, drop, rescale=how != "not rescaled")
    return lab.report(recipe, masks=1 if fast else MASKS)[name]


def _num_parameters(model: Path) -> int:
    with safe_open(model / "model.safetensors", framework="pt") as file:
        # What `safe_open` gives is no mapping: it has `keys`, and cannot be iterated.
        return sum(int(np.prod(file.get_slice(key).get_shape())) for key in file.keys())  # noqa: SIM118


def _drop_score(records: DataFrame, how: str, p: float) -> float:
    return mean_of(records, how=how, p=p)


def _accuracy(records: DataFrame, merge: str) -> float:
    return mean_of(records, "accuracy", merge=merge)


def _gain_of_dare(records: DataFrame, merge: str) -> float:
    return _accuracy(records, f"{merge}, DARE") - _accuracy(records, merge)


def _best_merge(records: DataFrame) -> float:
    ways = ("average", "task arithmetic", "TIES")
    return max(_accuracy(records, way + dare) for way in ways for dare in ("", ", DARE"))


def _score(records: DataFrame, fusion: str, objective: str) -> float:
    return mean_of(records, "fused", fusion=fusion, objective=objective)


def _above_joint(records: DataFrame) -> float:
    return min(_score(records, _BEST, o) - _score(records, "joint alone", o) for o in EMBEDDED)


def _above_each(records: DataFrame) -> float:
    return min(_score(records, _BEST, o) - _score(records, f"{o} alone", o) for o in EMBEDDED)


def _delta_guided_gain(records: DataFrame) -> float:
    scaled = "of both, scaled"
    return float(
        mean_of(records, "fused", fusion=f"delta-guided {scaled}")
        - mean_of(records, "fused", fusion=f"average {scaled}")
    )


def _notes(records: DataFrame) -> Sequence[str]:
    lines = []
    for task, part in records.groupby("checkpoint"):
        lines.append(
            f"`{task}`: deltas of median {part['delta_median'].mean():.5f} and 99th percentile "
            f"{part['delta_p99'].mean():.4f}; accuracy {part['tuned'].mean():.3f}, "
            f"{part['base'].mean():.3f} with the base's body."
        )
    lines.append(
        f"Of the gain, {kept(records, how='rescaled', p=0.9):.2f} is left at p = 0.9, of encoders "
        f"of {records['parameters'].mean() / 1e6:.2f} million parameters. Whether decoders "
        "tolerate more cannot be told here: ours differ in size, training and tasks."
    )
    lines.append(
        f"Three classifiers: the search scores {_accuracy(records, _SEARCHED):.3f} in the mean of "
        f"the tasks, the best other merge by these items {_best_merge(records):.3f}. Embedding "
        f"models: the search {mean_of(records, 'fused', fusion=_SEARCHED):.3f} in the mean of "
        "both objectives, the fusion chosen on search items "
        f"{mean_of(records, 'fused', fusion=_BEST):.3f}."
    )
    return lines


ENCODERS = Study(
    name="encoders",
    title="Encoders: merged bodies with heads of their own, and embedding models",
    papers=(
        "Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099",
        "Zhang et al., CoDiEmb, arXiv:2508.11442",
    ),
    how=f"""
A BERT of {PLAN.layers} layers and width {PLAN.hidden} is trained to guess masked words of generated
stories. Three classifiers are tuned from it (is the last change a gain, how many changes are there,
is anything seen before the first of them), each with a linear head on the pooler that is not
merged: a merged body is scored with every task's own head. Scales, drop ratios and trims are chosen
on search items. Then embedding models (mean pooling) are tuned from the same base: towards
retrieval (a question's story among all others, nDCG at 10), towards similarity (how alike the
changes of two stories are, Spearman's correlation), and towards both, with batches of either in
turns and as many of each. They and their states half way are fused by averages and by delta-guided
fusion, base + sum_i a_i (tuned_i - base) with a_i = |d_i| / sum_j |d_j| per element; this formula
is ours, since the paper's was not at hand. All scores come from Python scorers. Learning rates and
tasks were chosen on a zoo of seed 0, before any other was looked at. The search is the product's
default, {_BUDGET} evaluations of a job with these scorers.""",
    measure=measure,
    checkpoints=(),
    claims=(
        Claim(
            key="encoders_small_drops_kept",
            text="This study: encoders lose hardly anything when few of their deltas are dropped.",
            measured="share of the gain kept at p = 0.1, rescaled; 0.95 counts as hardly",
            value=lambda r: kept(r, how="rescaled", p=0.1),
            margin=0.95,
            fast_above=0.93,
        ),
        Claim(
            key="encoders_p90_kept",
            text="""DARE can eliminate 90 % of the deltas of fine-tuned models, encoders among them
            (abstract).""",
            measured="share of the gain kept at p = 0.9, rescaled; 0.9 counts as possible",
            value=lambda r: kept(r, how="rescaled", p=0.9),
            margin=0.9,
        ),
        Claim(
            key="encoders_rescaling_needed",
            text="What is kept has to be rescaled (DARE rescales by 1/(1-p), abstract).",
            measured="accuracy at p = 0.5, rescaled minus not rescaled",
            value=lambda r: _drop_score(r, "rescaled", 0.5) - _drop_score(r, "not rescaled", 0.5),
            fast_above=0.0,
        ),
        Claim(
            key="encoders_weights_collapse",
            text="""Removing 10 % of the tuned weights instead of deltas can lower scores
            drastically (abstract of version 1).""",
            measured="""accuracy at p = 0.1, deltas dropped minus weights dropped, both rescaled;
            drastic is 0.1""",
            margin=0.1,
            value=lambda r: (
                _drop_score(r, "rescaled", 0.1) - _drop_score(r, "weights dropped", 0.1)
            ),
        ),
        Claim(
            key="encoders_merge_is_diverse",
            text="Task-specific models can be merged into one with all their abilities (abstract).",
            measured="""mean accuracy over the tasks, task arithmetic minus the best classifier with
            every head""",
            value=lambda r: (
                _accuracy(r, "task arithmetic") - max(_accuracy(r, f"{t} alone") for t in TASKS)
            ),
        ),
        *(
            Claim(
                key=f"encoders_dare_helps_{key}",
                text=f"DARE before merging lessens interference (abstract): {way}.",
                measured=f"mean accuracy over the tasks, {way} with DARE minus without",
                value=partial(_gain_of_dare, merge=way),
            )
            for key, way in (
                ("average", "average"),
                ("arithmetic", "task arithmetic"),
                ("ties", "TIES"),
            )
        ),
        Claim(
            key="joint_training_trades_off",
            text="Training one encoder jointly for retrieval and similarity trades off (abstract).",
            measured="mean over the objectives, the model of that objective minus the joint one",
            value=lambda r: float(
                np.mean(
                    [_score(r, f"{o} alone", o) - _score(r, "joint alone", o) for o in EMBEDDED]
                )
            ),
        ),
        Claim(
            key="fused_as_good_as_joint",
            text="""This study: a fusion is at least as good as joint training on both objectives;
            one of the joint run with its own half-way state may be chosen.""",
            measured="""the smaller difference of both objectives, the fusion chosen on search items
            minus the joint model""",
            value=_above_joint,
            fast_below=0.0,
        ),
        Claim(
            key="fused_specialists_as_good_as_joint",
            text="... and so is one of the two specialists alone, without the joint run.",
            measured="""the smaller difference of both objectives, minus the joint model, of that
            fusion of the specialists where it is largest by report items (which favours them)""",
            value=lambda r: max(
                min(_score(r, fusion, o) - _score(r, "joint alone", o) for o in EMBEDDED)
                for fusion in r["fusion"].dropna().unique()
                if " of both" in fusion and "joint" not in fusion
            ),
            fast_below=0.0,
        ),
        Claim(
            key="fused_as_good_as_each",
            text="... and a fusion is nearly as good as the model of each objective on its own.",
            measured="""the smaller difference of both objectives, the fusion chosen on search items
            minus the model of that objective; -0.02 counts as nearly""",
            value=_above_each,
            margin=_AS_GOOD,
            fast_below=_AS_GOOD,
        ),
        Claim(
            key="delta_guided_beats_soup",
            text="Delta-guided fusion is more effective than model soups (abstract).",
            measured="""mean of both objectives, delta-guided (our formula) minus average of both
            models, each with a scale that was tuned: sizes differ otherwise""",
            value=_delta_guided_gain,
        ),
    ),
    tables=(
        Table("Accuracy of single classifiers by drop ratio", ("checkpoint", "how"), "p", "score"),
        Table(
            "Accuracy of merged classifiers, each task with its own head",
            ("merge",),
            "task",
            "accuracy",
        ),
        Table("Embedding models and their fusions", ("fusion",), "objective", "fused"),
    ),
    figures=(
        Figure(
            name="encoders",
            title="A share p of a classifier's task vector dropped",
            x="p",
            value="score",
            series="how",
            panel="checkpoint",
            label="accuracy",
        ),
    ),
    notes=_notes,
)
