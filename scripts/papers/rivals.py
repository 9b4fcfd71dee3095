"""mergekit-evolve and mergenetic beside this project's search, at equal numbers of evaluations."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pandas import DataFrame
from safetensors.torch import load_file

from configs.recipe import MergeRecipe
from optimizer.candidate import Observation
from optimizer.pareto import hypervolume
from optimizer.space import SearchSpace
from scripts.bench.zoo_job import SKILLS
from scripts.bench.zoo_runs import REFERENCE_SHARE, returned_front
from scripts.papers.bench import Bench, Lab
from scripts.papers.rivals_schedules import (
    FRONT_SIZE,
    POPULATION,
    SAMPLES,
    Algorithm,
    Found,
    Score,
    Tried,
    front_of,
    l1_rescaling,
    mergekit_evolve,
    mergekit_job,
    mergenetic,
    sample_items,
    scorer,
)
from scripts.papers.searching import search
from scripts.papers.study import Claim, Record, Study, Table, mean_of
from scripts.papers.zoos import SKILL_SPECIALISTS
from workers.mask import keep_mask

EVALUATIONS, FAST_EVALUATIONS = 100, 25
OURS = "mergefront"
OURS_SEARCH = "mergefront, by search items alone"
BASELINE = "best fixed merge"
EVOLVE = "mergekit-evolve"
EVOLVE_SUM = "mergekit-evolve, normalize: false"
NSGA2 = "mergenetic NSGA-II, all items"
NSGA2_FEW = "mergenetic NSGA-II, 20 items"
NSGA2_EQUAL = "mergenetic NSGA-II, 20 items, as many in all"
GA = "mergenetic GA, all items"
_DROPPED = 0.5
_FAST_FRONT = 4


def measure(bench: Bench) -> list[Record]:
    """Search with every tool, and score on report items what each would hand over."""
    evaluations = FAST_EVALUATIONS if bench.fast else EVALUATIONS
    with bench.lab(SKILL_SPECIALISTS, budget={"evaluations": evaluations}) as lab:
        judge = _Judge(lab, FRONT_SIZE if not bench.fast else _FAST_FRONT)
        records = list(_ours(lab, judge))
        for run in _rivals(bench, lab, evaluations):
            found = run.found
            records += judge.records(run.name, found, run.score)
            count = len(found.tried)
            records += _costs(run.name, evaluations=count, items=count * run.items)
    records.append({"tool": EVOLVE, "gap": _l1_gap(bench.zoo)})
    return records


@dataclass(frozen=True, slots=True)
class _Run:
    """What a rival found, how it scores a merge, and on how many items."""

    name: str
    found: Found
    score: Score
    items: int


class _Judge:
    """Scores on report items, which no tool has seen, what tools hand over.

    Args:
        lab: Of the specialists.
        front_size: Most members of a front.
    """

    def __init__(self, lab: Lab, front_size: int) -> None:
        base = lab.recipe({})
        self._size = front_size
        self._sources = [base, *(lab.recipe({name: 1.0}) for name in SKILL_SPECIALISTS)]
        self._corner = REFERENCE_SHARE * scorer(lab, lab.manifest.items("search"))(base)
        self._report = scorer(lab, lab.manifest.items("report"))
        self._reference = REFERENCE_SHARE * self._report(base)

    def records(self, tool: str, found: Found, score: Score) -> Iterator[Record]:
        """Yield what the merge scores that a tool chose, how much of its score was luck, its front.

        Args:
            tool: Name of the tool.
            found: What it found.
            score: How it scored.
        """
        own, report = float(found.chosen.scores.mean()), self.report(found.chosen.recipe)
        yield _record(tool, "report", report)
        yield _record(tool, "own", own)
        yield _record(tool, "luck", own - report - self.harder(score))
        front = front_of(found, self._corner, self._size)
        yield _record(tool, "hypervolume", self.volume([one.recipe for one in front]))

    def report(self, recipe: MergeRecipe) -> float:
        """Return the mean over skills on report items."""
        return float(self._report(recipe).mean())

    def harder(self, score: Score) -> float:
        """Return how much harder report items are than a tool's own.

        By the base and the specialists, which no tool chose.
        """
        return float(
            np.mean([score(recipe).mean() - self.report(recipe) for recipe in self._sources])
        )

    def volume(self, recipes: Sequence[MergeRecipe]) -> float:
        """Return the hypervolume of merges by their report scores, above 0.9 times the base's."""
        points = np.array([self._report(recipe) for recipe in recipes[: self._size]])
        return hypervolume(points, self._reference) if len(points) else 0.0


def _record(tool: str, number: str, value: float) -> Record:
    return {"tool": tool, "number": number, "value": float(value)}


def _costs(tool: str, **counts: int) -> Iterator[Record]:
    for cost, count in counts.items():
        yield {"tool": tool, "cost": cost, "count": count}


def _rivals(bench: Bench, lab: Lab, evaluations: int) -> Iterator[_Run]:
    """Yield the searches of the rivals; with little time, those that the fast claims are about."""
    everything = lab.manifest.items("search")
    full, num_full = scorer(lab, everything), lab.full_items
    for name, normalize in ((EVOLVE, True), (EVOLVE_SUM, False))[: 1 if bench.fast else 2]:
        job = mergekit_job(bench, SKILL_SPECIALISTS, normalize=normalize)
        space = SearchSpace(job, lab.sources)
        found = mergekit_evolve(job, space, full, evaluations=evaluations)
        yield _Run(name, found, full, num_full)
    drawn = sample_items(everything, SAMPLES, bench.seed)
    few, num_few = scorer(lab, drawn), sum(map(len, drawn.values()))
    generations = evaluations // POPULATION
    longer = round(generations * num_full / num_few)
    runs: tuple[tuple[str, Algorithm, Score, int, int], ...] = (
        (NSGA2_FEW, "NSGA-II", few, num_few, generations),
        (NSGA2_EQUAL, "NSGA-II", few, num_few, longer),
        (NSGA2, "NSGA-II", full, num_full, generations),
        (GA, "GA", full, num_full, generations),
    )
    for name, algorithm, score, items, count in runs[: 1 if bench.fast else None]:
        found = mergenetic(
            lab.space, score, algorithm=algorithm, generations=count, seed=bench.seed
        )
        yield _Run(name, found, score, items)


def _ours(lab: Lab, judge: _Judge) -> Iterator[Record]:
    """Search with the defaults of a job; yields what it chose, and the best of its baselines."""
    paid, score = lab.paid["generate"].items, scorer(lab, lab.manifest.items("search"))
    found = search(lab)
    paid = lab.paid["generate"].items - paid
    tried = {seen.candidate.index: _tried(seen) for seen in found.told if seen.is_complete}
    own = Tried(found.chosen, score(found.chosen))
    yield from judge.records(OURS, Found(list(tried.values()), [own]), score)
    believed = [one.recipe for one in returned_front(lab.jobs["generate"], lab.space, found.told)]
    yield _record(OURS, "hypervolume, own rule", judge.volume(believed))
    luckiest = max(tried.values(), key=lambda one: float(one.scores.mean()))
    yield from judge.records(OURS_SEARCH, Found(list(tried.values()), [luckiest]), score)
    chosen_for = lab.mean(found.chosen, "select")
    left = judge.harder(scorer(lab, lab.manifest.items("select")))
    report = judge.report(found.chosen)
    yield _record(OURS, "luck on select items", chosen_for - report - left)
    yield from _costs(OURS, evaluations=len(found.told), items=paid)
    fixed = [tried[seen.candidate.index] for seen in found.told if seen.candidate.is_baseline]
    best = max(fixed, key=lambda one: float(one.scores.mean()))
    yield from judge.records(BASELINE, Found(fixed, [best]), score)


def _tried(seen: Observation) -> Tried:
    scores = seen.scores or {}
    return Tried(seen.candidate.recipe, np.array([scores[name].value for name in SKILLS]))


def _l1_gap(zoo: Path) -> float:
    """Return how far mergekit's rescaling is from 1/(1-p), relative: mean over tensors."""
    base = load_file(zoo / "base" / "model.safetensors")
    gaps = []
    for name in SKILL_SPECIALISTS:
        tuned = load_file(zoo / name / "model.safetensors")
        for key, tensor in base.items():
            delta = (tuned[key] - tensor).flatten()
            if not delta.any():
                continue
            kept = keep_mask(
                len(delta), mask_seed=0, digest=name, tensor_name=key, drop_ratio=_DROPPED
            )
            gaps.append(abs(l1_rescaling(delta.numpy(), kept.numpy(), _DROPPED) - 1.0))
    return float(np.mean(gaps))


def _of(records: DataFrame, tool: str, number: str = "report") -> float:
    return mean_of(records, "value", tool=tool, number=number)


def _notes(records: DataFrame) -> Sequence[str]:
    gap = mean_of(records, "gap", tool=EVOLVE)
    chosen = _of(records, OURS, "luck on select items")
    return [
        f"mergekit's rescaling of what DARE keeps (to the L1 norm of the task vector) is "
        f"{100 * gap:.1f} % away from 1/(1-p) at p = {_DROPPED}, mean over tensors; rivals here "
        "are rescaled by 1/(1-p).",
        f"`{OURS}` hands over what is best on select items, which guide no search: that score is "
        f"{chosen:+.3f} above the report score, the difficulty of both allowed for.",
    ]


RIVALS = Study(
    name="rivals",
    title="mergekit-evolve and mergenetic at equal evaluations",
    papers=(
        "mergekit-evolve of mergekit 0.1.4 (Goddard et al., arXiv:2403.13257)",
        "Mencattini et al., MERGE3, arXiv:2502.10436, whose library is mergenetic",
        "Akiba et al., Evolutionary Optimization of Model Merging Recipes, arXiv:2403.13187",
    ),
    how=f"""
Three specialists and 64 search items per skill (with `--fast` 32 items, {FAST_EVALUATIONS}
evaluations, fewer tools and front members). The rivals' schedules are reimplemented on this
project's kernels and scores (what differs is in `scripts/papers/rivals_schedules.py`), so that only
schedules differ, and since neither tool runs here: mergekit-evolve (0.1.4, 0.1.5) asks Ray for a
GPU per evaluation, and mergenetic 0.1.1 pins vLLM, transformers 4.45.2 and pymoo 0.6.1.3:
mergekit-evolve as it ships (DARE-TIES, one weight and density per checkpoint, normalized; pycma
with its default population and step 1/6 on the sum of scores; {EVALUATIONS} evaluations; hands over
the best score seen), and with `normalize: false`, as its documented example has it; mergenetic's
NSGA-II of pymoo (DARE-TIES, {POPULATION} merges times {EVALUATIONS // POPULATION} generations, on a
random {SAMPLES} items of each task), also with as many more generations as make its items equal,
and on all items; and its GA on the mean, which ships for one task. Its IRT estimators need
parameters of every item that exist for six public benchmarks only. `{OURS}` is a job's default
search without samples and with {EVALUATIONS} evaluations, its baselines, races and select items
included in what it costs; `{BASELINE}` is the best on search items of its baselines (soups, task
arithmetic, TIES, DARE-TIES, single checkpoints). Shown are report items, which nothing has chosen
on: the mean of the one merge that a tool hands over by its own rule (of NSGA-II's set the best by
its own scores), its score on the tool's own items, luck (own minus report score, less the same
difference of the base and the specialists), and the hypervolume of what none dominates by a tool's
own scores (10 members at the most).""",
    measure=measure,
    checkpoints=SKILL_SPECIALISTS,
    claims=(
        Claim(
            key="search_beats_mergekit_evolve",
            text="""This project: at equal evaluations its default search hands over a better merge
            than mergekit-evolve (after it has scored a few on select items besides).""",
            measured="mean on report items, default search minus mergekit-evolve",
            value=lambda r: _of(r, OURS) - _of(r, EVOLVE),
        ),
        Claim(
            key="search_beats_mergekit_evolve_on_its_items",
            text="""This project: so does the best on search items of that search, which knows no
            item that mergekit-evolve does not know.""",
            measured="mean on report items, default search by search items minus mergekit-evolve",
            value=lambda r: _of(r, OURS_SEARCH) - _of(r, EVOLVE),
        ),
        Claim(
            key="search_beats_mergenetic",
            full_only=True,
            text="""This project: by search items alone, too, it hands over a better merge than
            mergenetic's search of several objectives on about as many items.""",
            measured="""mean on report items, default search by search items minus NSGA-II on 20
            items, as many in all""",
            value=lambda r: _of(r, OURS_SEARCH) - _of(r, NSGA2_EQUAL),
        ),
        Claim(
            key="front_beats_one_number",
            text="This project: it finds better trade-offs than a search on one number.",
            measured="hypervolume, default search minus mergekit-evolve",
            value=lambda r: _of(r, OURS, "hypervolume") - _of(r, EVOLVE, "hypervolume"),
        ),
        Claim(
            key="evolved_beats_fixed",
            text="""Evolved recipes are better than those that intuition and fixed recipes give
            (Akiba et al., abstract).""",
            measured="mean on report items, mergekit-evolve minus the best fixed merge",
            value=lambda r: _of(r, EVOLVE) - _of(r, BASELINE),
        ),
        Claim(
            key="own_best_is_lucky",
            text="""This project: the best of many scores on a search's own items, which
            mergekit-evolve hands over, is partly luck.""",
            measured="own minus report score of mergekit-evolve's merge, difficulty allowed for",
            value=lambda r: _of(r, EVOLVE, "luck"),
        ),
        Claim(
            key="few_items_suffice",
            full_only=True,
            text="""Scoring merges on a reduced data set preserves performance (MERGE3, abstract);
            here by random items, without its estimators.""",
            measured="""mean on report items, NSGA-II on 20 items minus on all items, at equal
            evaluations; -0.02 counts as preserved""",
            value=lambda r: _of(r, NSGA2_FEW) - _of(r, NSGA2),
            margin=-0.02,
        ),
        Claim(
            key="normalize_helps",
            full_only=True,
            text="""Normalized weights speed up convergence, at the cost of merges that might have
            been better (mergekit's documentation of mergekit-evolve).""",
            measured="mean on report items, mergekit-evolve minus the same with normalize: false",
            value=lambda r: _of(r, EVOLVE) - _of(r, EVOLVE_SUM),
        ),
    ),
    tables=(
        Table("What tools hand over", ("tool",), "number", "value"),
        Table("What they scored for it", ("tool",), "cost", "count", digits=0),
    ),
    notes=_notes,
)
