"""Recycling: a linear merge of many generalist checkpoints, some bad, with searched weights."""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pandas import DataFrame

from configs.recipe import MergeRecipe
from optimizer.archive.archive import Archive
from optimizer.baselines import baseline_plan
from optimizer.candidate import Observation
from optimizer.driver import run_search
from optimizer.events import Event, PhaseChanged
from optimizer.results.attribution import variants_of
from optimizer.validation import validation_candidates
from scripts.bench.zoo_job import ROOT, SKILLS
from scripts.bench.zoo_pool import RememberingPool
from scripts.papers.bench import Bench, Lab
from scripts.papers.recycling_pool import make_pool, members_of
from scripts.papers.study import Claim, Record, Study, Table, mean_of
from scripts.zoo.instructions import WORDS
from scripts.zoo.item import Item, make_rng

CMA, SURROGATE = "scalar_cma", "surrogate_cma"
TASKS: dict[str, tuple[str, ...]] = {"two": ("code", "math"), "three": SKILLS}
"""How many tasks a search maximizes the mean of -> which."""
TOTALS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Sums of the weights of task arithmetic that are tried; each of N checkpoints gets total / N."""
NUM_BAD = 3
COPY = "copy"
WITHOUT_BAD = f"{CMA}, worst left out before"
_EVALUATIONS, _FAST_EVALUATIONS = 120, 24
_VALIDATED, _FAST_VALIDATED = 8, 4
_COPY_WORDS = (6, 14)
_NONZERO = 0.01
# What is less is an error of rounding.
_TINY = 1e-9
_SOUP = {"method": "linear", "parametrization": "simplex"}


@dataclass(frozen=True, slots=True)
class Labs:
    """Where merges of the pool are scored: on skills, and on copying, which no search sees."""

    skills: Lab
    copies: Lab

    def soup(self, weights: Mapping[str, float]) -> MergeRecipe:
        """Return a linear soup as the search has it: without a base."""
        return self.skills.recipe(weights, method="linear").model_copy(update={"base": None})

    def searched(self, recipe: MergeRecipe, skills: Sequence[str]) -> float:
        """Return the mean over the searched tasks, on search items."""
        tasks = {f"zoo_{skill}" for skill in skills}
        every = self.skills.manifest.items("search")
        found = self.skills.item_scores(recipe, {task: every[task] for task in tasks})
        return float(np.mean([values.mean() for values in found.values()]))

    def reported(self, recipe: MergeRecipe) -> dict[str, float]:
        """Return the score of every skill and of copying, on report items."""
        scores = self.skills.mean_scores(recipe)
        found = {skill: scores[f"zoo_{skill}"] for skill in SKILLS}
        return found | {COPY: self.copies.mean_scores(recipe)["zoo_copy"]}


@dataclass(frozen=True, slots=True)
class Searched:
    """What a search left: the merge that it chose, and its greedy soup."""

    chosen: MergeRecipe
    greedy: MergeRecipe


def measure(bench: Bench) -> list[Record]:
    """Train the pool, search it for two tasks (and three), and score what comes of it."""
    paths = make_pool(bench)
    copies = bench.made("copying", _COPY_WORDS, lambda out: write_copies(out, bench.seed))
    with ExitStack() as stack:
        labs = Labs(
            skills=stack.enter_context(bench.lab(paths)),
            copies=stack.enter_context(_copying_lab(bench, paths, copies)),
        )
        records = list(_of_singles(bench, labs))
        for tasks in ("two",) if bench.fast else TASKS:
            records += _of_tasks(bench, labs, paths, tasks)
    return records


def _copying_lab(bench: Bench, paths: Mapping[str, Path], items: Path) -> Lab:
    return bench.lab(
        paths,
        objectives={COPY: [{"task": "zoo_copy", "metric": "exact_match"}]},
        evaluation={
            "include_path": [str(ROOT / "scripts/papers/tasks")],
            "data_dir": str(items),
            "splits": bench.splits,
        },
    )


def write_copies(out: Path, seed: int, *, count: int = 1024) -> None:
    """Write items of copying, some longer than any that the models were trained on."""
    rng = make_rng(seed, "recycling", COPY)
    rows: dict[str, str] = {}
    while len(rows) < count:
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(*_COPY_WORDS)))
        rows[line] = json.dumps(Item(f"Copy: {line}\nCopied:", f" {line}").row())
    (out / "items").mkdir()
    (out / "items" / "zoo_copy.jsonl").write_text("\n".join(rows.values()) + "\n")


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
    order = sorted(paths, key=lambda name: labs.searched(_single(labs, name), skills))
    bad = order[: 1 if bench.fast else NUM_BAD]
    found = {how: search(bench, paths, skills, how) for how in (CMA, SURROGATE)}
    good = {name: path for name, path in paths.items() if name not in bad}
    # As a recipe of the whole pool, with weights of zero, so that the same labs score it.
    rest = weights_of(search(bench, good, skills, CMA).chosen)
    merges = {
        "best single": _single(labs, order[-1]),
        "uniform soup": labs.soup(dict.fromkeys(paths, 1.0 / len(paths))),
        "greedy soup": found[CMA].greedy,
        "one tuned scale": _tuned_scale(labs, tuple(paths), skills),
        **{how: one.chosen for how, one in found.items()},
        WITHOUT_BAD: labs.soup(rest),
    }
    for merge, recipe in merges.items():
        reported = labs.reported(recipe)
        mean = float(np.mean([reported[skill] for skill in skills]))
        fixed: Record = {"tasks": tasks, "merge": merge, "evaluations": _evaluations(bench)}
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


def weights_of(recipe: MergeRecipe) -> dict[str, float]:
    """Return name -> weight, of a recipe of one group."""
    rows = zip(recipe.checkpoints, recipe.weights, strict=True)
    return {source.name: row[0] for source, row in rows}


def _tuned_scale(labs: Labs, names: Sequence[str], skills: Sequence[str]) -> MergeRecipe:
    """Return task arithmetic with the scale that is best on search items.

    theta = base + s sum_i (theta_i - base), Ilharco et al., arXiv:2212.04089.
    """
    recipes = [labs.skills.recipe(dict.fromkeys(names, total / len(names))) for total in TOTALS]
    return max(recipes, key=lambda recipe: labs.searched(recipe, skills))


def _evaluations(bench: Bench) -> int:
    return _FAST_EVALUATIONS if bench.fast else _EVALUATIONS


def search(bench: Bench, paths: Mapping[str, Path], skills: tuple[str, ...], how: str) -> Searched:
    """Search the weights of a soup of checkpoints by the project's driver.

    Maximizes the mean over tasks s_t(theta), theta = sum_i w_i theta_i, w_i >= 0, sum_i w_i = 1:
    the macro average and the linear soup of Khalifa et al. (arXiv:2412.04144). Weights are
    projected onto the simplex, so they can be zero. The driver's baselines (each checkpoint alone,
    the uniform soup and the steps of the greedy one) count as evaluations.

    Args:
        bench: Gives the seed, the items and the number of evaluations.
        paths: Checkpoints.
        skills: What to maximize the mean of.
        how: The strategy.
    """
    with tempfile.TemporaryDirectory(prefix="mergefront-study-") as scratch:
        place = Path(scratch) / "archive.sqlite"
        with bench.lab(
            paths,
            skills=skills,
            models={"checkpoints": {name: str(path) for name, path in paths.items()}},
            merge=_SOUP,
            search={"strategy": how, "preference_share": 1.0, "racing": {"enabled": False}},
            budget={"evaluations": _evaluations(bench)},
            archive=str(place),
        ) as lab:
            archive = Archive.create(
                place,
                job=lab.jobs["generate"],
                job_path=None,
                sources=lab.sources,
                manifest=lab.manifest,
            )
            with archive, RememberingPool(lab) as pool:
                with suppress(_ExploredError):
                    run_search(archive, pool, lab.space, on_event=_until_explored)
                observations = archive.observations()
                greedy = baseline_plan(archive, lab.space).greedy_soup(observations)
            if greedy is None:
                raise ValueError("the evaluations did not suffice for the steps of the greedy soup")
            return Searched(_chosen(bench, lab, observations), greedy)


class _ExploredError(Exception):
    """The budget is spent; baselines need no scores on held-out items here."""


def _until_explored(event: Event) -> None:
    if isinstance(event, PhaseChanged) and event.phase == "select":
        raise _ExploredError


def _chosen(bench: Bench, lab: Lab, observations: Sequence[Observation]) -> MergeRecipe:
    """Return what is best on select items, of the most promising proposals that are no baselines.

    Which are promising is the driver's rule.
    """
    job = lab.jobs["generate"]
    own = [seen for seen in observations if not seen.candidate.is_baseline]
    others = [seen for seen in observations if seen.candidate.is_baseline]
    size = _FAST_VALIDATED if bench.fast else _VALIDATED
    promising = validation_candidates(own, job.preference, size, space=lab.space, seeds=others)
    recipes = [seen.candidate.recipe for seen in own if seen.candidate.index in promising]
    return max(recipes, key=lambda one: np.mean(list(lab.mean_scores(one, "select").values())))


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
fine-tuned on mixes of the three skills, with other learning rates and numbers of steps, and
four that preference optimization (DPO, beta 0.1, on right and wrong completions) made of them.
Some are bad by design: trained too fast, or on one skill with hardly any replay. Weights of a
linear soup, theta = sum w_i theta_i on the simplex, are searched to maximize the mean over two
tasks (code, math) or all three, by CMA-ES on that number (scalar_cma) and by the project's
default strategy (surrogate_cma, with all of its preference on that number), at equal
evaluations; checkpoints alone, the uniform soup and the steps of the greedy soup count among
them. Of the 8 most promising merges that a search proposed (4 with --fast), baselines not among
them, the best on select items is taken; the best single checkpoint and the one scale of task
arithmetic are the best on search items. Shown are report items; copying (lines of 6 to 14
words; training had 3 to 12) is searched by none, nor is instruct by those of two tasks. The
worst are the three (one with --fast) with the lowest mean on search items: what the chosen
merge loses without each, the other weights scaled up, and what a search without all of them
finds. Unlike the paper's, our weights are projected onto the simplex, and can be exactly zero.""",
    measure=measure,
    checkpoints=(),
    claims=(
        Claim(
            key="recycling_beats_single",
            text="An optimized merge outperforms the individual checkpoints (abstract).",
            measured="mean of the searched tasks, scalar_cma minus the best single checkpoint",
            value=lambda r: _gain(r, "best single"),
        ),
        Claim(
            key="recycling_beats_uniform",
            text="It outperforms merge-based baselines (abstract): the uniform soup.",
            measured="mean of the searched tasks, scalar_cma minus the uniform soup",
            value=lambda r: _gain(r, "uniform soup"),
            fast=-0.03,
        ),
        Claim(
            key="recycling_beats_greedy",
            text="It outperforms merge-based baselines (abstract): the greedy soup.",
            measured="mean of the searched tasks, scalar_cma minus the greedy soup",
            value=lambda r: _gain(r, "greedy soup"),
        ),
        Claim(
            key="recycling_beats_scale",
            text="It outperforms merge-based baselines (abstract): task arithmetic with one scale.",
            measured="mean of the searched tasks, scalar_cma minus one tuned scale",
            value=lambda r: _gain(r, "one tuned scale"),
        ),
        Claim(
            key="recycling_pareto",
            text="The optimized merge is Pareto-optimal among the checkpoints (abstract).",
            measured="""smallest, over checkpoints, of the merge's largest advantage over the two
            tasks: above zero, none is as good in both""",
            value=_least_advantage,
            fast=-0.05,
        ),
        Claim(
            key="recycling_held_out",
            text="Optimizing for some tasks does not cost others (the paper's held-out tasks).",
            measured="""mean of copying and instruct, scalar_cma of two tasks minus the best single
            checkpoint""",
            value=lambda r: _held_out(r, CMA) - _held_out(r, "best single"),
            margin=-0.02,
            fast=-0.1,
        ),
        Claim(
            key="recycling_nearly_all",
            text="Good merges give almost all checkpoints weights that are not zero (abstract).",
            measured="share of weights above 0.01 in the merges of scalar_cma, minus 0.8",
            value=lambda r: _nonzero_share(r, CMA) - 0.8,
        ),
        Claim(
            key="recycling_bad_in_merge",
            text="Even seemingly bad checkpoints contribute to good merges (abstract).",
            measured="""what the merges of scalar_cma lose in the mean of the searched tasks without
            one of the worst checkpoints, mean over these""",
            value=lambda r: _lost(r, CMA),
        ),
        Claim(
            key="recycling_bad_in_pool",
            text="So a search with them finds more than one without (abstract).",
            measured="mean of the searched tasks, scalar_cma minus the same without the worst",
            value=lambda r: _gain(r, WITHOUT_BAD),
        ),
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
