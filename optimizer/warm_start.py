"""What an earlier search knows that a new one can begin with, and what it cannot use.

The pool may have got or lost a checkpoint, and items may be others. An old outcome is taken where
it still means something:

- a checkpoint that is new had weight zero in it; one that is gone must have had (almost) none;
- what is scored must be the same: each task's definition, and every objective of the new job.

Scores over all new search items, of the same tensors, are exact. Otherwise they are told with a
larger error: that of two different samples of items, twice the variance where the tensors are only
nearly the same. Companions come along where they are known of the items of which the new search
asks for them: means over other items cannot be compared. So does who was only screened.

Seeds are recorded before the first proposal, so that the search resumes exactly.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from configs.evaluation import SPLITS
from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.manifest import Manifest
from evaluators.scores import Items, ObjectiveScore, Scores, TaskScores, aggregate
from optimizer.archive.archive import Archive
from optimizer.archive.seeds import Seed, WarmStart
from optimizer.candidate import SEED, Candidate, Observation
from optimizer.dispatch_plan import planned, tasks_with_companions
from optimizer.results.noise import KEYS_BESIDE_SCORES, SETTINGS_BESIDE_SCORES
from optimizer.space import SearchSpace

# Of the sum of absolute weights; what less does to a merge is hidden by the noise of its scores.
_TINY_SHARE = 0.02
# Of scores of tensors that are only nearly those of the seed's recipe.
_NEARLY = 2.0
_SCREENED_BY_OTHERS = "it was only screened, by other items than this search asks companions of"
# Where files are, which says nothing about what is in them.
_PLACES = {"include_path", "data_dir"}


@dataclass(frozen=True, slots=True)
class _Carried:
    """A recipe in the new pool; ``is_same`` where its tensors are those of the old one."""

    recipe: MergeRecipe
    is_same: bool


def warm_start_from(
    archive: Archive, job: JobConfig, space: SearchSpace, manifest: Manifest
) -> WarmStart:
    """Take from an archive what means something in another search.

    Args:
        archive: The record of an earlier search; not written to.
        job: The new job.
        space: Its search space.
        manifest: Its items.
    """
    left_out: Counter[str] = Counter()
    seeds: list[Seed] = []
    if reason := _foreign_objective(archive, job, manifest):
        left_out[reason] = len(archive.observations())
        return WarmStart(str(archive.place), (), dict(left_out))
    looked_at = _companion_items(job, manifest)
    for seen in archive.observations():
        candidate = seen.candidate
        if reason := _unusable(seen, asks_companions=bool(looked_at)):
            left_out[reason] += 1
            continue
        carried = _carry(candidate.recipe, space)
        if isinstance(carried, str):
            left_out[carried] += 1
            continue
        companions = _companions(archive, candidate.index, job, looked_at)
        is_screened = seen.stopped == "screened"
        if is_screened and not companions:
            left_out[_SCREENED_BY_OTHERS] += 1
            continue
        scores, is_exact = (
            ({}, True) if is_screened else _scores(archive, candidate.index, job, manifest)
        )
        if not carried.is_same:
            scores, companions = _widened(scores, _NEARLY), _widened(companions, _NEARLY)
            is_exact = False
        genotype = space.encode(carried.recipe.weights, carried.recipe.drop_ratios)
        origin = f"{SEED}{candidate.origin}"
        seed = Candidate(-1 - len(seeds), genotype, carried.recipe, origin, 0)
        seeds.append(Seed(Observation(seed, scores, companions), candidate.index, is_exact))
    return WarmStart(str(archive.place), tuple(seeds), dict(left_out))


def describe(start: WarmStart) -> list[str]:
    """Say which old outcomes are used, and why the others are not."""
    exact = sum(seed.is_exact for seed in start.seeds)
    lines = [
        f"{len(start.seeds)} outcomes of {start.archive} are known to the search from its "
        f"beginning: {exact} as they are, {len(start.seeds) - exact} with a larger error "
        "(other items, or nearly the same merge)"
    ]
    if screened := sum(not seed.observation.scores for seed in start.seeds):
        lines.append(f"{screened} of them were only screened: their companions are known")
    lines += [f"{count} are not used: {reason}" for reason, count in start.left_out.items()]
    return lines


def _foreign_objective(archive: Archive, job: JobConfig, manifest: Manifest) -> str:
    """Say why scores of an archive mean nothing in a job; empty where they do."""
    kept = SETTINGS_BESIDE_SCORES | _PLACES
    before, now = (each.evaluation.model_dump(exclude=kept) for each in (archive.job, job))
    if changed := [key for key in now if now[key] != before[key]]:
        return f"evaluation.{changed[0]} is another one, and scores depend on it"
    old = {
        spec.task: spec.model_dump(exclude=KEYS_BESIDE_SCORES)
        for objective in archive.job.objectives.values()
        for spec in objective.tasks
    }
    for name, objective in job.objectives.items():
        for spec in objective.tasks:
            if spec.task not in old:
                return f"objective {name} has task {spec.task}, which was not scored"
            same = manifest.task_hashes[spec.task] == archive.manifest.task_hashes[spec.task]
            if not same or old[spec.task] != spec.model_dump(exclude=KEYS_BESIDE_SCORES):
                return f"task {spec.task} is defined otherwise now"
    return ""


def _unusable(seen: Observation, *, asks_companions: bool) -> str:
    """Say why an outcome has nothing that could be told; empty where it may have."""
    match seen.stopped:
        case "screened" if asks_companions:
            return ""
        case "screened":
            return "it was only screened, and this search asks for no companions"
        case "racing":
            return "it was stopped by racing, before all of its items were scored"
        case "broken":
            return "it was stopped by a gate, as broken"
        case _:
            return "" if seen.scores else "it failed"


def _companion_items(job: JobConfig, manifest: Manifest) -> Items:
    """Return task -> items of which the new search asks everybody's companions."""
    items = manifest.items("search")
    plan = planned(job, items)
    if plan.screens or plan.samples:
        return plan.preview
    return {task: items[task] for task in tasks_with_companions(job)}


def _companions(archive: Archive, candidate: int, job: JobConfig, items: Items) -> Scores:
    """Return the companions of a candidate over just these items; those that are not known lack."""
    known: dict[str, TaskScores] = {}
    for task, part in archive.companions(candidate, "search").items():
        wanted = set(items.get(task, ()))
        if wanted and wanted <= set(part.item_ids):
            known[task] = part.restricted_to(wanted)
    objectives = {
        name: objective
        for name, objective in job.objectives.items()
        if all(spec.task in known for spec in objective.tasks)
    }
    return aggregate(objectives, known)


def _carry(recipe: MergeRecipe, space: SearchSpace) -> _Carried | str:
    """Write an old recipe in the new space, or say why that cannot be done."""
    model = space.recipe([[0.0] * space.shape[1]] * space.shape[0])
    if recipe.method != model.method or recipe.options != model.options:
        return "another method, or other options of it"
    if (recipe.base and recipe.base.digest) != (model.base and model.base.digest):
        return "another base"
    if [group.patterns for group in recipe.groups] != [group.patterns for group in model.groups]:
        return "other groups of tensors"
    place = {source.digest: index for index, source in enumerate(model.checkpoints)}
    weights = [list(row) for row in model.weights]
    drops = [list(row) for row in model.drop_ratios]
    totals = [sum(abs(w) for w in column) for column in zip(*recipe.weights, strict=True)]
    is_same = (recipe.dtype, recipe.mask_seed, recipe.vocabulary) == (
        model.dtype,
        model.mask_seed,
        model.vocabulary,
    )
    for source, row, dropped in zip(
        recipe.checkpoints, recipe.weights, recipe.drop_ratios, strict=True
    ):
        if source.digest in place:
            weights[place[source.digest]] = list(row)
            drops[place[source.digest]] = list(dropped)
        elif any(abs(w) > _TINY_SHARE * total for w, total in zip(row, totals, strict=True)):
            return f"checkpoint {source.name} takes part, which is not in the pool now"
        elif any(row):
            is_same = False
    return _Carried(space.recipe(weights, drops), is_same)


def _scores(
    archive: Archive, candidate: int, job: JobConfig, manifest: Manifest
) -> tuple[Scores, bool]:
    """Return the scores of a candidate for the new search items, and whether they are just those.

    Where the items are others, an old mean estimates the new one with the variance of both.
    """
    parts: dict[str, TaskScores] = {}
    is_exact = True
    for task, wanted in manifest.items("search").items():
        known = _known_items(archive, candidate, task, job, manifest)
        if known.keys() >= set(wanted) and (task not in job.undivided or len(known) == len(wanted)):
            parts[task] = _task_scores(task, {item: known[item] for item in wanted})
        else:
            is_exact = False
            parts[task] = _task_scores(task, known)
    scores = aggregate(job.objectives, parts)
    if is_exact:
        return scores, True
    widened: Scores = {}
    for name, objective in job.objectives.items():
        tasks = [spec.task for spec in objective.tasks]
        new = sum(len(manifest.items("search")[task]) for task in tasks)
        factor = 1.0 + scores[name].count / new
        widened |= _widened({name: scores[name]}, factor)
    return widened, False


def _known_items(
    archive: Archive, candidate: int, task: str, job: JobConfig, manifest: Manifest
) -> dict[str, tuple[float, float | None]]:
    """Return item -> score and weight: of any split, save what is held out now.

    Scores of an undivided scorer mean something together only: those of the search split. All
    items of that are kept where everything else is held out.
    """
    held_out = {i for split in ("select", "report") for i in manifest.items(split).get(task, ())}
    known: dict[str, tuple[float, float | None]] = {}
    searched: dict[str, tuple[float, float | None]] = {}
    for split in SPLITS:
        part = archive.scored_items(candidate, split).get(task)
        if part is None:
            continue
        weights = [None] * len(part.item_ids) if part.weights is None else part.weights.tolist()
        pairs = zip(part.values.tolist(), weights, strict=True)
        found = dict(zip(part.item_ids, pairs, strict=True))
        if split == "search":
            searched = found
        known |= {item: pair for item, pair in found.items() if item not in held_out}
    return searched if task in job.undivided or not known else known


def _task_scores(task: str, known: Mapping[str, tuple[float, float | None]]) -> TaskScores:
    values = np.array([value for value, _ in known.values()])
    weights = [weight for _, weight in known.values() if weight is not None]
    return TaskScores(task, tuple(known), values, np.array(weights) if weights else None)


def _widened(scores: Scores, factor: float) -> Scores:
    """Return scores whose variance is a factor larger, from as many fewer items."""
    return {
        name: ObjectiveScore(
            score.value, score.stderr * math.sqrt(factor), max(1, int(score.count / factor))
        )
        for name, score in scores.items()
    }
