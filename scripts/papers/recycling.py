"""Recycling: a linear merge of many generalist checkpoints, some bad, with searched weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from pandas import DataFrame

from configs.recipe import MergeRecipe
from optimizer.results.attribution import variants_of
from scripts.bench.zoo_job import SKILLS
from scripts.papers.bench import Bench
from scripts.papers.recycling_pool import make_pool, members_of
from scripts.papers.recycling_soups import (
    COPY,
    COPY_WORDS,
    Labs,
    copying_lab,
    num_evaluations,
    search_soup,
    tuned_scale,
    weights_of,
    write_copies,
)
from scripts.papers.study import Claim, Record, Study, Table, mean_of

CMA, SURROGATE = "scalar_cma", "surrogate_cma"
TASKS: dict[str, tuple[str, ...]] = {"two": ("code", "math"), "three": SKILLS}
"""How many tasks a search maximizes the mean of -> which."""
NUM_BAD = 3
WITHOUT_BAD = f"{CMA}, worst left out before"
_NONZERO = 0.01
# What is less is an error of rounding.
_TINY = 1e-9


def measure(bench: Bench) -> list[Record]:
    """Train the pool, search it for two tasks (and three), and score what comes of it."""
    paths = make_pool(bench)
    copies = bench.made("copying", COPY_WORDS, lambda out: write_copies(out, bench.seed))
    with ExitStack() as stack:
        labs = Labs(
            skills=stack.enter_context(bench.lab(paths)),
            copies=stack.enter_context(copying_lab(bench, paths, copies)),
        )
        records = list(_of_singles(bench, labs))
        for tasks in ("two",) if bench.fast else TASKS:
            records += _of_tasks(bench, labs, paths, tasks)
    return records


def _of_singles(bench: Bench, labs: Labs) -> Iterator[Record]:
    for member in members_of(fast=bench.fast):
        reported = labs.reported(_single(labs, member.name))
        for task, value in reported.items():
            yield {"checkpoint": member.name, "stage": member.stage, "task": task, "alone": value}


def _single(labs: Labs, name: str) -> MergeRecipe:
    return labs.soup({name: 1.0})


def _of_tasks(bench: Bench, labs: Labs, paths: Mapping[str, Path], tasks: str) -> Iterator[Record]:
    """Search for some tasks; yield scores of every merge, weights, and what is lost without."""
    skills = TASKS[tasks]
    singles = {name: _single(labs, name) for name in paths}
    order = sorted(paths, key=lambda name: labs.mean(singles[name], skills, "search"))
    bad = order[: 1 if bench.fast else NUM_BAD]
    found = {how: search_soup(bench, paths, skills, how) for how in (CMA, SURROGATE)}
    good = {name: path for name, path in paths.items() if name not in bad}
    # As a recipe of the whole pool, with weights of zero, so that the same labs score it.
    rest = weights_of(search_soup(bench, good, skills, CMA).chosen)
    merges = {
        "best single": max(
            singles.values(), key=lambda recipe: labs.mean(recipe, skills, "select")
        ),
        "uniform soup": labs.soup(dict.fromkeys(paths, 1.0 / len(paths))),
        "greedy soup": found[CMA].greedy,
        "one tuned scale": tuned_scale(labs, tuple(paths), skills),
        **{how: one.chosen for how, one in found.items()},
        WITHOUT_BAD: labs.soup(rest),
    }
    for merge, recipe in merges.items():
        reported = labs.reported(recipe)
        mean = float(np.mean([reported[skill] for skill in skills]))
        fixed: Record = {"tasks": tasks, "merge": merge, "evaluations": num_evaluations(bench)}
        yield {**fixed, "of": "searched tasks", "score": mean}
        yield from ({**fixed, "of": task, "score": value} for task, value in reported.items())
    for how, one in found.items():
        where: Record = {"search": f"{tasks} tasks, {how}"}
        for name, weight in weights_of(one.chosen).items():
            yield {**where, "checkpoint": name, "weight": weight}
        yield from ({**where, **record} for record in _left_out(labs, one.chosen, bad, skills))


def _left_out(
    labs: Labs, recipe: MergeRecipe, bad: Sequence[str], skills: Sequence[str]
) -> Iterator[Record]:
    """Yield what the searched tasks lose without each of the worst, the others scaled up."""
    variants = {one.checkpoint: one.recipe for one in variants_of(recipe)}
    whole = labs.reported(recipe)
    for rank, name in enumerate(bad):
        # One of weight zero is not in the merge, which loses nothing.
        less = labs.reported(variants.get(name, recipe))
        lost = float(np.mean([whole[skill] - less[skill] for skill in skills]))
        yield {"left_out": name, "rank": f"worst {rank + 1}", "lost": lost}


def _score(records: DataFrame, merge: str, of: str = "searched tasks") -> float:
    return mean_of(records, merge=merge, of=of)


def _of_two(records: DataFrame) -> DataFrame:
    return records[records["tasks"] == "two"]


def _held_out(records: DataFrame, merge: str) -> float:
    """Return the mean of what no search saw: copying; with two tasks the third skill, too."""
    unseen = [COPY, *(skill for skill in SKILLS if skill not in TASKS["two"])]
    return float(np.mean([_score(_of_two(records), merge, of) for of in unseen]))


def _gain(records: DataFrame, rival: str) -> float:
    return _score(records, CMA) - _score(records, rival)


def _least_advantage(records: DataFrame) -> float:
    """Return how far the merge of two tasks is from being dominated by a checkpoint.

    The smallest, over checkpoints, of its largest advantage over tasks.
    """
    own = {task: _score(_of_two(records), CMA, task) for task in TASKS["two"]}
    alone = records.dropna(subset=["alone"])
    return min(
        max(own[task] - mean_of(part, "alone", task=task) for task in own)
        for _, part in alone.groupby("checkpoint")
    )


def _nonzero_share(records: DataFrame, how: str) -> float:
    """Return the share of weights above 0.01, of all searches by a strategy."""
    weights = records.dropna(subset=["weight"])
    weights = weights[weights["search"].str.endswith(how)]
    return float((weights["weight"] > _NONZERO).mean())


def _lost(records: DataFrame, how: str) -> float:
    lost = records.dropna(subset=["lost"])
    return float(lost[lost["search"].str.endswith(how)]["lost"].mean())


def _notes(records: DataFrame) -> Sequence[str]:
    num_evaluations = int(records["evaluations"].max())
    lines = [f"{num_evaluations} evaluations per search, baselines included."]
    lines += [_note_on_weights(name, part) for name, part in records.groupby("search", sort=False)]
    for tasks, skills in TASKS.items():
        here = records[records["tasks"] == tasks]
        if here.empty:
            continue
        gaps = [
            f"{_score(here, SURROGATE) - _score(here, rival):+.3f} against {rival}"
            for rival in ("best single", "uniform soup", "greedy soup", "one tuned scale", CMA)
        ]
        lines.append(f"{tasks.capitalize()} tasks, {SURROGATE}: {', '.join(gaps)}.")
        best = records[records["task"].isin(skills)].groupby(["seed", "checkpoint"])["alone"].mean()
        lines.append(
            f"{tasks.capitalize()} tasks: the checkpoint that is best on report items themselves "
            f"has {best.groupby('seed').max().mean():.3f} there."
        )
    return lines


def _note_on_weights(name: str, records: DataFrame) -> str:
    weights = records.dropna(subset=["weight"])
    lost = records.dropna(subset=["lost"])["lost"]
    seeds = weights["seed"].nunique()
    above = (weights["weight"] > _NONZERO).sum() / seeds
    zero = (weights["weight"] == 0).sum() / seeds
    missed, better = (lost > _TINY).sum(), (lost < -_TINY).sum()
    return (
        f"{name}: of {len(weights) / seeds:g} weights {above:.1f} are above {_NONZERO} and "
        f"{zero:.1f} exactly zero (means over seeds). Left out of the merge, {missed} of "
        f"{len(lost)} bad checkpoints are missed, {better} make it better."
    )


RECYCLING = Study(
    name="recycling",
    title="Recycling: linear merges of generalist checkpoints, bad ones among them",
    papers=(
        "Khalifa et al., If You Can't Use Them, Recycle Them, arXiv:2412.04144",
        "Rafailov et al., Direct Preference Optimization, arXiv:2305.18290",
    ),
    how="""
Twelve checkpoints of one base (four, trained for a quarter of the steps, with --fast): eight
fine-tuned on mixes of the three skills, with other learning rates and numbers of steps, and four
that preference optimization (DPO, beta 0.1, on right and wrong completions) made of them. Some are
bad by design: trained too fast, or on one skill with hardly any replay. The pool was settled on a
zoo of seed 0, where a first version of sft_code was nearly the best at everything. Weights of a
linear soup, theta = sum w_i theta_i on the simplex, are searched to maximize the mean over two
tasks (code, math) or all three, by CMA-ES on that number (scalar_cma) and by the project's default
strategy (surrogate_cma, with all of its preference on that number), at equal evaluations;
checkpoints alone, the uniform soup and the steps of the greedy soup count among them. Of the 8 most
promising merges that a search proposed (4 with --fast), baselines not among them, the best on
select items is taken, and so are the best single checkpoint and the scale of task arithmetic; the
greedy soup is made on search items. Shown are report items; copying (lines of 6 to 14 words;
training had 3 to 12) is searched by none, nor is instruct by those of two tasks. The worst are the
three (one with --fast) with the lowest mean on search items: what the chosen merge loses without
each, the other weights scaled up, and what a search without all of them finds. Unlike the paper's,
our weights are projected onto the simplex, and can be exactly zero.""",
    measure=measure,
    checkpoints=(),
    claims=(
        *Claim(
            key="recycling_beats_single",
            text="An optimized merge outperforms the individual checkpoints (abstract).",
            measured="mean of the searched tasks, scalar_cma minus the best single checkpoint",
            value=lambda r: _gain(r, "best single"),
        ).split("tasks", dict(zip(TASKS, TASKS, strict=True)), full_only=("three",)),
        *Claim(
            key="recycling_beats_uniform",
            text="It outperforms merge-based baselines (abstract): the uniform soup.",
            measured="mean of the searched tasks, scalar_cma minus the uniform soup",
            value=lambda r: _gain(r, "uniform soup"),
            fast_above=0.02,
        ).split("tasks", dict(zip(TASKS, TASKS, strict=True)), full_only=("three",)),
        *Claim(
            key="recycling_beats_greedy",
            text="It outperforms merge-based baselines (abstract): the greedy soup.",
            measured="mean of the searched tasks, scalar_cma minus the greedy soup",
            value=lambda r: _gain(r, "greedy soup"),
        ).split("tasks", dict(zip(TASKS, TASKS, strict=True)), full_only=("three",)),
        *Claim(
            key="recycling_beats_scale",
            text="It outperforms merge-based baselines (abstract): task arithmetic with one scale.",
            measured="mean of the searched tasks, scalar_cma minus one tuned scale",
            value=lambda r: _gain(r, "one tuned scale"),
            fast_above=0.0,
        ).split("tasks", dict(zip(TASKS, TASKS, strict=True)), full_only=("three",)),
        Claim(
            key="recycling_pareto",
            text="The optimized merge is Pareto-optimal among the checkpoints (abstract).",
            measured="""tasks two: smallest, over checkpoints, of the merge's largest advantage over
            the two tasks; above zero, none is as good in both""",
            value=_least_advantage,
            fast_above=0.0,
        ),
        Claim(
            key="recycling_held_out",
            text="Optimizing for some tasks does not cost others (the paper's held-out tasks).",
            measured="""tasks two: mean of copying and instruct, scalar_cma minus the best single
            checkpoint""",
            value=lambda r: _held_out(r, CMA) - _held_out(r, "best single"),
            margin=-0.02,
        ),
        *Claim(
            key="recycling_nearly_all",
            text="Good merges give almost all checkpoints weights that are not zero (abstract).",
            measured="share of weights above 0.01 in the merge; 0.8 counts as almost all",
            value=lambda r: _nonzero_share(r, CMA),
            margin=0.8,
        ).split("search", {one: f"{one} tasks, {CMA}" for one in TASKS}, full_only=("three",)),
        *Claim(
            key="recycling_bad_in_merge",
            text="Even seemingly bad checkpoints contribute to good merges (abstract).",
            measured="""what the merge loses in the mean of the searched tasks without one of the
            worst checkpoints, mean over these""",
            value=lambda r: _lost(r, CMA),
        ).split("search", {one: f"{one} tasks, {CMA}" for one in TASKS}, full_only=("three",)),
        *Claim(
            key="recycling_bad_in_pool",
            text="This study: so a search with them finds more than one without.",
            measured="mean of the searched tasks, scalar_cma minus the same without the worst",
            value=lambda r: _gain(r, WITHOUT_BAD),
        ).split("tasks", dict(zip(TASKS, TASKS, strict=True)), full_only=("three",)),
    ),
    tables=(
        Table("The pool: scores of checkpoints alone", ("checkpoint", "stage"), "task", "alone"),
        Table(
            "Scores of merges, by the number of searched tasks", ("tasks", "merge"), "of", "score"
        ),
        Table("Weights of the chosen merges", ("checkpoint",), "search", "weight"),
        Table(
            "Lost in the mean of the searched tasks without one of the worst",
            ("search",),
            "rank",
            "lost",
        ),
    ),
    notes=_notes,
)
