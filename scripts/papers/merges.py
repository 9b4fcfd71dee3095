"""Merges of specialists by the methods of the papers, each with and without DARE.

With the base B, checkpoints C_i, i = 1..n, and task vectors d_i = C_i - B, per element j:

- average, a uniform soup (arXiv:2203.05482, section 2): 1/n sum_i C_i = B + 1/n sum_i d_i;
- greedy soup (there, recipe 1): checkpoints in the order of their scores, each stays in the average
  where the score does not fall;
- task arithmetic (arXiv:2212.04089, section 2): B + s sum_i d_i;
- TIES (arXiv:2306.01708, section 4): the share p of smallest |d_i| becomes 0, g_j = sign(sum_i
  d_ij), and B_j + s mean{d_ij : sign(d_ij) = g_j};
- DARE (arXiv:2311.03099, section 3.2, equations 1 and 2): d_ij becomes 0 with probability p, else
  d_ij / (1 - p); then one of the above;
- DELLA (arXiv:2406.11617, section 3): as DARE and TIES, with p_ij larger for smaller |d_ij|;
- SLERP (Shoemake, SIGGRAPH 1985), per tensor, with a the angle between C_1 and C_2: sin((1-t) a) /
  sin(a) C_1 + sin(t a) / sin(a) C_2.

All are methods of the merge engine (``workers.methods``); the greedy soup is the search's baseline.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from pandas import DataFrame

from configs.recipe import MergeRecipe
from evaluators.scores import aggregate
from optimizer.baselines import BaselinePlan
from optimizer.candidate import Candidate, Observation
from scripts.papers.bench import Bench, Lab
from scripts.papers.dare import MASKS
from scripts.papers.study import Claim, Record, Study, Table, mean_of
from scripts.papers.zoos import SKILL_SPECIALISTS
from workers.outcome import Failed

BEST, OWN = "best checkpoint", "each on its own skill"
AVERAGE, GREEDY, TASK, TIES = "average", "greedy soup", "task arithmetic", "TIES"
DELLA, SLERP = "DELLA", "SLERP"
WITH_DARE = " + DARE"
_HALF_WAY = 0.5
_PAIR = 2


@dataclass(frozen=True, slots=True)
class Grid:
    """Settings that are tried: scales of task arithmetic, of methods that elect signs, and p."""

    scales: tuple[float, ...]
    elected_scales: tuple[float, ...]
    drops: tuple[float, ...]


GRID = Grid(
    # As many as there are pairs of the others.
    scales=(0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2),
    elected_scales=(0.5, 0.75, 1.0, 1.5, 2.0),
    drops=(0.2, 0.5, 0.8),
)
FAST_GRID = Grid(scales=(0.5, 0.7, 0.9), elected_scales=(0.75, 1.0), drops=(0.5,))


@dataclass(frozen=True, slots=True)
class Setting:
    """A merge, and what was set for it where there was something to set."""

    recipe: MergeRecipe
    scale: float | None = None
    drop: float | None = None


def sets_of(names: Sequence[str], *, fast: bool) -> list[tuple[str, ...]]:
    """Return what is merged: every pair and all of them; all of them alone where fast."""
    pairs = [] if fast else list(itertools.combinations(names, 2))
    return [*pairs, tuple(names)]


def choose(settings: Sequence[Setting], score: Callable[[MergeRecipe], float]) -> Setting:
    """Return the setting with the best score; the first of equals."""
    return max(settings, key=lambda one: score(one.recipe))


def measure(bench: Bench) -> list[Record]:
    """Merge every set by every method, settings chosen on search items, scored on report items."""
    records: list[Record] = []
    grid = FAST_GRID if bench.fast else GRID
    for names in sets_of(SKILL_SPECIALISTS, fast=bench.fast):
        with bench.lab(names, skills=names) as lab:
            fixed: Record = {"merged": " + ".join(names), "checkpoints": len(names)}
            own = {name: _own_score(lab, name) for name in names}
            records += _records({**fixed, "method": OWN}, own)
            for method, setting in chosen_settings(lab, names, grid):
                scores = _skills(lab.report(setting.recipe, masks=1 if bench.fast else MASKS))
                records += _records({**fixed, "method": method, **_set_to(setting)}, scores)
    return records


def chosen_settings(lab: Lab, names: Sequence[str], grid: Grid) -> Iterator[tuple[str, Setting]]:
    """Yield every method with the setting that is best on search items."""

    def pick(settings: Sequence[Setting]) -> Setting:
        return choose(settings, lambda recipe: lab.mean(recipe, "search"))

    def merge(scale: float, drop: float | None = None) -> Setting:
        # Without drops that is task arithmetic, bit for bit.
        weights = dict.fromkeys(names, scale)
        recipe = lab.recipe(weights, method="dare_linear", drop_ratio=drop or 0.0)
        return Setting(recipe, scale, drop)

    def elect(method: str) -> list[Setting]:
        return [
            Setting(
                lab.recipe(
                    dict.fromkeys(names, 1.0),
                    method=method,
                    drop_ratio=drop,
                    options={"normalize": 1.0, "scale": scale},
                ),
                scale,
                drop,
            )
            for scale, drop in itertools.product(grid.elected_scales, grid.drops)
        ]

    yield BEST, pick([Setting(single(lab, name)) for name in names])
    share = 1.0 / len(names)
    yield AVERAGE, Setting(merge(share).recipe)
    yield AVERAGE + WITH_DARE, pick([merge(share, drop) for drop in grid.drops])
    yield GREEDY, Setting(greedy_soup(lab, names))
    task = pick([merge(scale) for scale in grid.scales])
    yield TASK, task
    yield TASK + WITH_DARE, pick([merge(task.scale or 0.0, drop) for drop in grid.drops])
    for label, method in ((TIES, "ties"), (TIES + WITH_DARE, "dare_ties"), (DELLA, "della")):
        yield label, pick(elect(method))
    if len(names) == _PAIR:
        weights = dict.fromkeys(names, _HALF_WAY)
        yield SLERP, Setting(lab.recipe(weights, method="slerp"))


def single(lab: Lab, name: str) -> MergeRecipe:
    """Return one checkpoint alone, as the soups have it."""
    return lab.recipe({name: 1.0}, method="dare_linear")


def greedy_soup(lab: Lab, names: Sequence[str]) -> MergeRecipe:
    """Return the greedy soup that the search's baselines walk to, by scores on search items.

    Raises:
        RuntimeError: A single checkpoint could not be scored.
    """
    job = lab.jobs["generate"]
    plan = BaselinePlan(lab.space, names, job.preference)
    observed: list[Observation] = []
    for size in range(1, len(names) + 1):
        for members in itertools.combinations(names, size):
            # A soup of some needs no scores of those that its steps do not come to, but they are
            # few, and most are scored for other methods anyway.
            recipe = lab.recipe(dict.fromkeys(members, 1.0 / size), method="dare_linear")
            observed.append(_observation(lab, recipe, len(observed)))
    soup = plan.greedy_soup(observed)
    if soup is None:
        raise RuntimeError(f"no checkpoint of {', '.join(names)} could be scored")
    return soup


def _observation(lab: Lab, recipe: MergeRecipe, index: int) -> Observation:
    found = lab.scores(recipe, lab.manifest.items("search"))
    scores = None
    if not isinstance(found, Failed):
        scores = aggregate(lab.jobs["generate"].objectives, found)
    genotype = lab.space.encode(recipe.weights)
    return Observation(Candidate(index, genotype, recipe, "baseline:soup", index), scores)


def _own_score(lab: Lab, name: str) -> float:
    task = f"zoo_{name}"
    items = {task: lab.manifest.items("report")[task]}
    return float(lab.item_scores(single(lab, name), items)[task].mean())


def _skills(scores: dict[str, float]) -> dict[str, float]:
    """Return skill -> score, of scores by task."""
    return {task.removeprefix("zoo_"): score for task, score in scores.items()}


def _mean(scores: dict[str, float]) -> float:
    return float(np.mean(list(scores.values())))


def _set_to(setting: Setting) -> Record:
    parts = {"scale": setting.scale, "p": setting.drop}
    return {name: value for name, value in parts.items() if value is not None}


def _records(fixed: Record, scores: dict[str, float]) -> Iterator[Record]:
    for skill, score in scores.items():
        yield {**fixed, "skill": skill, "score": score}
    # A column of its own, too, which a table of means can show alone.
    mean = _mean(scores)
    yield {**fixed, "skill": "mean", "score": mean, "mean": mean}


def _of(records: DataFrame, method: str) -> float:
    """Return a method's mean over skills, averaged over what was merged."""
    return mean_of(records, skill="mean", method=method)


def _difference(first: str, second: str) -> Callable[[DataFrame], float]:
    return lambda records: _of(records, first) - _of(records, second)


def _notes(records: DataFrame) -> Sequence[str]:
    lines = []
    means = records[records["skill"] == "mean"]
    for merged, part in means.groupby("merged", sort=False):
        by_method = part.groupby("method", sort=False)["score"].mean()
        merges = by_method.drop([BEST, OWN])
        top, single = str(merges.idxmax()), float(by_method[BEST])
        num_better = int((merges > single).sum())
        lines.append(
            f"{merged}: {num_better} of {len(merges)} merges are better than the best checkpoint "
            f"({single:.3f}); best, by these items, is {top} with {merges[top]:.3f}, and each "
            f"checkpoint on its own skill has {by_method[OWN]:.3f}."
        )
    pairs = records[records["checkpoints"] == _PAIR]
    if len(pairs):
        lines.append(
            f"Pairs: SLERP half way has {_of(pairs, SLERP):.3f}, the average "
            f"{_of(pairs, AVERAGE):.3f}."
        )
    return lines


_SETTINGS = f"""
scales {", ".join(map(str, GRID.scales))} of task arithmetic, {", ".join(map(str, GRID.drops))} for
p, and {", ".join(map(str, GRID.elected_scales))} for the scale of what elects signs"""

MERGES = Study(
    name="merges",
    title="Merges of two and three specialists, with and without DARE",
    papers=(
        "Yu et al., Language Models are Super Mario (DARE), arXiv:2311.03099",
        "Yadav et al., TIES-Merging, arXiv:2306.01708",
        "Deep et al., DELLA-Merging, arXiv:2406.11617",
        "Wortsman et al., Model soups, arXiv:2203.05482",
        "Ilharco et al., Editing Models with Task Arithmetic, arXiv:2212.04089",
    ),
    how=f"""
Every pair of the specialists and all three are merged and scored on the skills of what was merged.
Settings are those with the best mean on search items, of {_SETTINGS}: every pair of scale and p for
TIES, TIES with DARE and DELLA; with DARE, task arithmetic keeps the scale that is best without it,
and the average its 1/n. Drops of TIES trim; with DARE they are random and take the place of
trimming, and DELLA's depend on the rank. All three divide by the weights that agree in sign. SLERP
is half way. Scores are of report items, the mean of {MASKS} masks where drops are random. The best
checkpoint is chosen on search items, too. The specialists differ in skill, while the soups of the
paper differ in hyper-parameters. With `--fast` all three alone are merged, with fewer settings and
one mask.""",
    measure=measure,
    checkpoints=SKILL_SPECIALISTS,
    claims=(
        Claim(
            key="dare_helps_average",
            text="DARE is a plug-in that helps when models are averaged (abstract).",
            measured="mean score of averages with DARE minus without",
            value=_difference(AVERAGE + WITH_DARE, AVERAGE),
        ),
        Claim(
            key="dare_helps_task_arithmetic",
            text="DARE is a plug-in that helps task arithmetic (abstract).",
            measured="mean score of task arithmetic with DARE minus without, at the same scale",
            value=_difference(TASK + WITH_DARE, TASK),
        ),
        Claim(
            key="dare_helps_ties",
            text="DARE is a plug-in that helps TIES (abstract).",
            measured="mean score of TIES with DARE in the place of trimming minus TIES",
            value=_difference(TIES + WITH_DARE, TIES),
        ),
        Claim(
            key="ties_beats_average",
            text="""TIES, with settings that are tuned, merges better than averaging, which has none
            (of the existing methods of arXiv:2306.01708).""",
            measured="mean score, TIES minus average",
            value=_difference(TIES, AVERAGE),
        ),
        Claim(
            key="ties_beats_task_arithmetic",
            text="""TIES merges better than task arithmetic (of the existing methods of
            arXiv:2306.01708).""",
            measured="mean score, TIES minus task arithmetic",
            value=_difference(TIES, TASK),
        ),
        Claim(
            key="della_beats_dare",
            text="DELLA is better than DARE, by 1.2 points (arXiv:2406.11617, abstract).",
            measured="mean score, DELLA minus TIES with DARE",
            value=_difference(DELLA, TIES + WITH_DARE),
            margin=0.012,
        ),
        Claim(
            key="della_beats_ties",
            text="DELLA is better than TIES, by 3.6 points (arXiv:2406.11617, abstract).",
            measured="mean score, DELLA minus TIES",
            value=_difference(DELLA, TIES),
            margin=0.036,
        ),
        Claim(
            key="della_beats_task_arithmetic",
            text="""DELLA is better than task arithmetic without drops, by 11.1 points
            (arXiv:2406.11617, abstract).""",
            measured="mean score, DELLA minus task arithmetic",
            value=_difference(DELLA, TASK),
            margin=0.111,
            fast_below=0.03,
        ),
        Claim(
            key="greedy_soup_keeps_best",
            text="""A greedy soup is no worse than the best single model on the items that it was
            made with (arXiv:2203.05482, section 2); here on others, so up to a point.""",
            measured="mean score on report items, greedy soup minus best checkpoint",
            value=_difference(GREEDY, BEST),
            margin=-0.01,
        ),
    ),
    tables=(
        Table("Mean over the merged skills", ("method",), "merged", "mean"),
        Table("Scores by skill", ("merged", "method"), "skill", "score"),
        Table("Chosen scale", ("method",), "merged", "scale", digits=2),
        Table("Chosen p", ("method",), "merged", "p", digits=2),
    ),
    notes=_notes,
)
