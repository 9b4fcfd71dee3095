"""What the study of recycling makes: labs of the pool, soups that are searched, one tuned scale."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.evaluation import SplitName
from configs.recipe import MergeRecipe
from optimizer.baselines import BaselinePlan
from optimizer.candidate import Observation
from optimizer.validation import validation_candidates
from scripts.bench.zoo_job import ROOT, SKILLS
from scripts.papers.bench import Bench, Lab
from scripts.papers.searching import search
from scripts.zoo.instructions import WORDS
from scripts.zoo.item import Item, make_rng

COPY = "copy"
COPY_WORDS = (6, 14)
"""Fewest and most words of a line to copy."""

TOTALS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
"""Sums of the weights of task arithmetic that are tried; each of N checkpoints gets total / N."""

_EVALUATIONS, _FAST_EVALUATIONS = 120, 24
_VALIDATED, _FAST_VALIDATED = 8, 4
_SOUP = {"method": "linear", "parametrization": "simplex"}


@dataclass(frozen=True, slots=True)
class Labs:
    """Where merges of the pool are scored: on skills, and on copying, which no search sees."""

    skills: Lab
    copies: Lab

    def soup(self, weights: Mapping[str, float]) -> MergeRecipe:
        """Return a linear soup as the search has it: without a base."""
        return self.skills.recipe(weights, method="linear").model_copy(update={"base": None})

    def mean(self, recipe: MergeRecipe, skills: Sequence[str], split: SplitName) -> float:
        """Return the mean over the searched tasks on a split."""
        tasks = {f"zoo_{skill}" for skill in skills}
        every = self.skills.manifest.items(split)
        found = self.skills.item_scores(recipe, {task: every[task] for task in tasks})
        return float(np.mean([values.mean() for values in found.values()]))

    def reported(self, recipe: MergeRecipe) -> dict[str, float]:
        """Return the score of every skill and of copying, on report items."""
        scores = self.skills.mean_scores(recipe)
        found = {skill: scores[f"zoo_{skill}"] for skill in SKILLS}
        return found | {COPY: self.copies.mean_scores(recipe)["zoo_copy"]}


def copying_lab(bench: Bench, paths: Mapping[str, Path], items: Path) -> Lab:
    """Return a lab that scores copying."""
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
        line = " ".join(rng.choice(WORDS) for _ in range(rng.randint(*COPY_WORDS)))
        rows[line] = json.dumps(Item(f"Copy: {line}\nCopied:", f" {line}").row())
    (out / "items").mkdir()
    (out / "items" / "zoo_copy.jsonl").write_text("\n".join(rows.values()) + "\n")


def num_evaluations(bench: Bench) -> int:
    """Return how many merges a search may score, baselines included."""
    return _FAST_EVALUATIONS if bench.fast else _EVALUATIONS


@dataclass(frozen=True, slots=True)
class SearchedSoup:
    """What a search left: the merge that it chose, and its greedy soup."""

    chosen: MergeRecipe
    greedy: MergeRecipe


def search_soup(
    bench: Bench, paths: Mapping[str, Path], skills: tuple[str, ...], how: str
) -> SearchedSoup:
    """Search the weights of a soup of checkpoints by the project's driver.

    Maximizes 1/T sum_t s_t(theta) over theta = sum_i w_i theta_i with w_i >= 0, sum_i w_i = 1,
    where s_t is the score of task t of T: the macro average and the linear soup of Khalifa et al.
    (arXiv:2412.04144). What CMA-ES proposes, v, becomes the nearest point of the simplex, w =
    argmin |w - v|, so that weights can be zero. The driver's baselines (each checkpoint alone,
    the uniform soup and the steps of the greedy one) count as evaluations.

    Args:
        bench: Gives the seed, the items and the number of evaluations.
        paths: Checkpoints.
        skills: What to maximize the mean of.
        how: The strategy.
    """
    with bench.lab(
        paths,
        skills=skills,
        models={"checkpoints": {name: str(path) for name, path in paths.items()}},
        merge=_SOUP,
        search={"strategy": how, "preference_share": 1.0, "racing": {"enabled": False}},
        budget={"evaluations": num_evaluations(bench)},
    ) as lab:
        told = search(lab, until="select").told
        plan = BaselinePlan(lab.space, tuple(paths), lab.jobs["generate"].preference)
        greedy = plan.greedy_soup(told)
        if greedy is None:
            raise ValueError("the evaluations did not suffice for the steps of the greedy soup")
        return SearchedSoup(_chosen(bench, lab, told), greedy)


def _chosen(bench: Bench, lab: Lab, told: Sequence[Observation]) -> MergeRecipe:
    """Return what is best on select items, of the most promising proposals that are no baselines.

    Which are promising is the driver's rule.
    """
    own = [seen for seen in told if not seen.candidate.is_baseline]
    others = [seen for seen in told if seen.candidate.is_baseline]
    promising = validation_candidates(
        own,
        lab.jobs["generate"].preference,
        _FAST_VALIDATED if bench.fast else _VALIDATED,
        space=lab.space,
        seeds=others,
    )
    recipes = [seen.candidate.recipe for seen in own if seen.candidate.index in promising]
    return max(recipes, key=lambda recipe: lab.mean(recipe, "select"))


def tuned_scale(labs: Labs, names: Sequence[str], skills: Sequence[str]) -> MergeRecipe:
    """Return task arithmetic with the scale that is best on select items.

    theta = base + s sum_i (theta_i - base), Ilharco et al., arXiv:2212.04089.
    """
    recipes = [labs.skills.recipe(dict.fromkeys(names, total / len(names))) for total in TOTALS]
    return max(recipes, key=lambda recipe: labs.mean(recipe, skills, "select"))


def weights_of(recipe: MergeRecipe) -> dict[str, float]:
    """Return name -> weight, of a recipe of one group."""
    rows = zip(recipe.checkpoints, recipe.weights, strict=True)
    return {source.name: row[0] for source, row in rows}
