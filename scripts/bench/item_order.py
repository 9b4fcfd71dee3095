"""Which items should a race score first? Replays races on recorded searches, item by item.

    python -m scripts.bench.item_order --runs runs/search_zoo --zoo runs/zoo --json

``scripts.bench.search_zoo`` remembers every item of every merge that it scored in full. A replay
goes through the candidates of such a search in their order and races them (``optimizer.racing``):
once a candidate is stopped, the rest of its items count as saved, and it is gone from the front.
``saved`` is the share of all items, ``lost`` the share of the hypervolume of search scores that
the front of those that were scored whole lacks, ``mean_lost`` what the best mean of objectives
lost. Orders are what the search itself would know: they are chosen when twelve candidates are
complete, and again whenever there are twice as many, from the items of those alone.

``hash`` takes items in the order of a hash. ``variance`` takes items first on
which complete candidates differ most, ``biserial`` those that go with the rest of their task
(point-biserial correlation times deviation), ``irt`` those with most Fisher information at the
ability of the front, by a two-parameter logistic model. Chosen items bias means; so beside the
``block`` test, which takes a block for a sample, there is the ``model`` test of
``optimizer.item_record``, which predicts what was not scored. The project takes ``hash`` and
``block`` until twelve candidates are complete, ``variance`` and ``model`` from then on.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.special import stdtr

from evaluators.scores import FloatArray, TaskScores
from optimizer.baselines import BaselinePlan
from optimizer.item_record import ItemRecord
from optimizer.pareto import hypervolume, non_dominated
from optimizer.racing import FIRST_CHOICE
from scripts.bench.zoo_job import POOLS, SKILLS
from scripts.bench.zoo_pool import ZooLab
from scripts.bench.zoo_runs import Trace
from scripts.bench.zoo_store import ScoreStore
from workers.outcome import Failed

IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Order = Callable[[FloatArray, int], IntArray]
"""Complete candidates' scores of one task, ``(n, items)``, and a seed -> items, first one first."""

_SHARES = (0.25, 0.5)
_MARGIN = 1.0


def by_hash(known: FloatArray, seed: int) -> IntArray:
    """Order items by a hash of their place."""
    places = [hashlib.sha256(f"{seed}:{item}".encode()).digest() for item in range(known.shape[1])]
    return np.array(sorted(range(known.shape[1]), key=places.__getitem__), dtype=np.int64)


def by_variance(known: FloatArray, seed: int) -> IntArray:
    """Order items by the variance of what candidates got; of equals by hash."""
    return _first(_variances(known), seed)


def by_biserial(known: FloatArray, seed: int) -> IntArray:
    """Order items by covariance with the rest of the task, in units of its deviation."""
    total = known.sum(axis=1, keepdims=True) - known
    centred = total - total.mean(axis=0)
    shared = ((known - known.mean(axis=0)) * centred).mean(axis=0)
    return _first(shared / (centred.std(axis=0) + 1.0), seed)


def by_information(known: FloatArray, seed: int) -> IntArray:
    """Order items by Fisher information at the ability of the best quarter of candidates."""
    ability, slope, location = fit_two_parameter(known)
    best = np.quantile(ability, 0.75)
    chance = 1.0 / (1.0 + np.exp(-slope * (best - location)))
    return _first(slope**2 * chance * (1.0 - chance), seed)


def fit_two_parameter(known: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fit logit P = slope (ability - location): posterior mode, by damped Newton steps in turns.

    Priors: ability N(0, 1), log slope N(0, 0.5), location N(0, 2).
    """
    num, items = known.shape
    share = np.clip(known.mean(axis=1), 0.02, 0.98)
    ability = np.log(share / (1 - share))
    ability = (ability - ability.mean()) / (ability.std() + 1e-9)
    easiness = (known.sum(axis=0) + 0.5) / (num + 1)
    log_slope, location = np.zeros(items), -np.log(easiness / (1 - easiness))
    for _ in range(40):
        slope = np.exp(log_slope)
        gap = ability[:, None] - location
        rest = known - 1.0 / (1.0 + np.exp(-slope * gap))
        weight = np.maximum(1e-6, (known - rest) * (1 - (known - rest)))
        ability = ability + 0.5 * ((rest @ slope) - ability) / (weight @ slope**2 + 1.0)
        location = location + 0.5 * (-slope * rest.sum(axis=0) - location / 4) / (
            slope**2 * weight.sum(axis=0) + 0.25
        )
        steep = (rest * gap * slope).sum(axis=0) - log_slope / 0.25
        log_slope = log_slope + 0.3 * steep / ((weight * (gap * slope) ** 2).sum(axis=0) + 4.0)
    return ability, np.exp(log_slope), location


ORDERS: dict[str, Order] = {
    "hash": by_hash,
    "variance": by_variance,
    "biserial": by_biserial,
    "irt": by_information,
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """A search: ``scores`` is ``(candidates, tasks, items)``, in the order of the search."""

    pool: str
    seed: int
    scores: FloatArray
    is_baseline: list[bool]
    corner: FloatArray


@dataclass(frozen=True, slots=True)
class Replay:
    """What a race saved and lost; see the module."""

    saved: float
    lost: float
    mean_lost: float


def replay(search: Recorded, order: str, test: str, confidence: float) -> Replay:
    """Race the candidates of a search."""
    num, tasks, items = search.scores.shape
    means = search.scores.mean(axis=2)
    complete: list[int] = []
    records: list[ItemRecord] = []
    ranks = np.stack([by_hash(search.scores[:1, 0], search.seed)] * tasks)
    chosen_at, scored = FIRST_CHOICE, 0
    level = (1.0 - confidence) / len(_SHARES)
    for row in range(num):
        if len(complete) >= chosen_at:
            known = search.scores[complete]
            ranks = np.stack([ORDERS[order](known[:, t], search.seed) for t in range(tasks)])
            chosen_at *= 2
        spent = items
        used = records if test == "model" and len(complete) >= FIRST_CHOICE else None
        if not search.is_baseline[row] and complete:
            for share in _SHARES:
                count = int(np.ceil(share * items))
                if _has_lost(search, complete, row, ranks[:, :count], used, level=level):
                    spent = count
                    break
        scored += spent * tasks
        if spent == items:
            complete.append(row)
            records = _with(records, search.scores[row])
    whole = hypervolume(means, search.corner)
    kept = hypervolume(means[complete], search.corner)
    best = means.mean(axis=1)
    return Replay(
        saved=1.0 - scored / (num * tasks * items),
        lost=1.0 - kept / whole,
        mean_lost=float(best.max() - best[complete].max()),
    )


def _with(records: list[ItemRecord], scores: FloatArray) -> list[ItemRecord]:
    """Return the records of all tasks with one candidate more."""
    parts = [_task_scores(row, np.arange(row.size)) for row in scores]
    if not records:
        return [ItemRecord(part) for part in parts]
    for record, part in zip(records, parts, strict=True):
        record.add(part)
    return records


def _task_scores(scores: FloatArray, rows: IntArray) -> TaskScores:
    return TaskScores("task", tuple(map(str, rows)), scores[rows])


def _has_lost(
    search: Recorded,
    complete: list[int],
    row: int,
    ranks: IntArray,
    records: list[ItemRecord] | None,
    *,
    level: float,
) -> bool:
    """Whether the front is as good with confidence, and its best better (``Race.loss``)."""
    means = search.scores[complete].mean(axis=2)
    front = np.array(complete)[non_dominated(means)]
    best = complete[int(np.argmax(means.mean(axis=1)))]
    columns = []
    for task, block in enumerate(ranks):
        rivals, own = search.scores[[best, *front], task], search.scores[row, task]
        record = None if records is None else records[task]
        columns.append(_leads(rivals, own, block, record))
    leads, variances, freedom = (np.stack(part, axis=1) for part in zip(*columns, strict=True))
    share = 1.0 / leads.shape[1]
    variance = share**2 * variances[0].sum()
    degrees = variance**2 / ((share**2 * variances[0]) ** 2 / freedom[0]).sum()
    if stdtr(degrees, -share * leads[0].sum() / np.sqrt(variance)) > level:
        return False
    errors = np.sqrt(means * (1 - means) / search.scores.shape[2])
    margins = _MARGIN * np.median(errors, axis=0)
    doubts = stdtr(freedom[1:], -(leads[1:] + margins) / np.sqrt(variances[1:]))
    return bool((doubts.max(axis=1) <= level).any())


def _leads(
    rivals: FloatArray, own: FloatArray, block: IntArray, record: ItemRecord | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Leads of rivals, their variances and degrees of freedom: of a block, or as predicted."""
    if record is not None:
        found = record.predict(_task_scores(own, block))
        variance = found.variance + 1.0 / own.size**2
        ones = np.ones(len(rivals))
        return rivals.mean(axis=1) - found.mean, variance * ones, (found.count + 1.0) * ones
    gaps = rivals[:, block] - own[block]
    total = gaps.shape[1] + 2.0
    centre = gaps.sum(axis=1) / total
    square = ((gaps - centre[:, None]) ** 2).sum(axis=1) + 1.0 + 2.0 * centre**2
    return centre, square / total**2, np.full(len(gaps), total - 1.0)


def _variances(known: FloatArray) -> FloatArray:
    share = known.mean(axis=0)
    return np.asarray(share * (1 - share))


def _first(worth: FloatArray, seed: int) -> IntArray:
    """Return places by falling worth; of equals by hash."""
    order = by_hash(worth[None, :], seed)
    return order[np.argsort(-worth[order], kind="stable")]


def read_searches(
    runs: Path, zoo: Path, pool: str, rivals: Sequence[str], budget: int
) -> list[Recorded]:
    """Return the searches of a pool whose candidates were all scored in full."""
    found = []
    with ScoreStore(runs / "scores.sqlite") as store, ZooLab(zoo, pool, store) as lab:
        recipes = {recipe.recipe_id: recipe for recipe in store.recipes()}
        items = lab.manifest.items("search")
        plan = BaselinePlan(lab.space, POOLS[pool], dict.fromkeys(SKILLS, 1 / 3))
        fixed = {baseline.recipe.recipe_id for baseline in plan.fixed}
        base = lab.space.recipe(np.zeros(lab.space.shape).tolist()).recipe_id
        for path in sorted((runs / "traces").glob(f"{pool}-*-{budget}-*.json")):
            content = json.loads(path.read_text())
            if "trace" not in content or content["trace"]["rival"] not in rivals:
                continue
            trace = Trace.from_json(content["trace"])
            known = []
            for recipe_id in trace.told:
                scores = lab.scores(recipes[recipe_id], items)
                if isinstance(scores, Failed):
                    raise TypeError(f"{recipe_id} was told as scored: {scores.message}")
                known.append([scores[f"zoo_{skill}"].values for skill in SKILLS])
            matrix = np.array(known)
            corner = 0.9 * matrix[trace.told.index(base)].mean(axis=1)
            is_baseline = [recipe_id in fixed for recipe_id in trace.told]
            found.append(Recorded(pool, trace.seed, matrix, is_baseline, corner))
    return found


def main() -> None:
    """Replay every order, test and confidence, and print the means over searches."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--runs", type=Path, default=Path("runs/search_zoo"))
    parser.add_argument("--budget", type=int, default=200, help="of the searches")
    parser.add_argument("--pool", choices=sorted(POOLS), action="append", help="only these")
    parser.add_argument("--strategy", action="append", help="only searches of these")
    options = parser.parse_args()
    rows = []
    for pool in options.pool or sorted(POOLS):
        rivals = options.strategy or ["surrogate_cma"]
        searches = read_searches(options.runs, options.zoo, pool, rivals, options.budget)
        for order in ORDERS:
            for test in ("block", "model"):
                for confidence in (0.98, 0.95, 0.9, 0.8):
                    done = [replay(search, order, test, confidence) for search in searches]
                    if done:
                        rows.append(_row(pool, order, test, confidence, done))
    if options.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(" ".join(f"{c:9.4f}" if isinstance(c, float) else f"{c!s:>9}" for c in row.values()))


def _row(
    pool: str, order: str, test: str, confidence: float, done: Sequence[Replay]
) -> dict[str, object]:
    return {
        "pool": pool,
        "searches": len(done),
        "order": order,
        "test": test,
        "confidence": confidence,
        "saved": float(np.mean([each.saved for each in done])),
        "lost": float(np.mean([each.lost for each in done])),
        "mean_lost": float(np.mean([each.mean_lost for each in done])),
    }


if __name__ == "__main__":
    main()
