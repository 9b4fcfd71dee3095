"""Search an emulator of the zoo: strategies on real merges' scores, in seconds instead of minutes.

    python -m scripts.bench.search_emulated --pool zoo3 --seeds 8 --json

To try an idea on the zoo takes five minutes a search; luck of a seed takes several searches. This
fits a network to every item score that ``scripts.bench.search_zoo`` remembered, from a merge's
weights and drop ratios to the chance that each item is solved, and lets the driver search that. An
item that is scored is solved with its chance, once and for all per merge; the base and merges of
other methods have their real scores. Fronts are judged by chances on the report items, without the
luck of a measurement. So it says which of two strategies is better, not what either reaches: what
it suggests is to be measured by ``search_zoo``.

``agreement`` says how far it is from the scores of merges that the fit did not see: per skill the
correlation, and the standard deviation of the difference. ``hv`` is the hypervolume of the returned
front of ten by the cost at which it was taken, and ``best_mean`` that of its first member.
"""

import argparse
import hashlib
import json
import os
import sqlite3
import statistics
import sys
import time
from pathlib import Path

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch import Tensor, nn

from configs.evaluation import SPLITS
from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, Items, TaskScores
from optimizer.pareto import hypervolume
from scripts.bench import zoo_runs
from scripts.bench.merge_lab import Kind
from scripts.bench.zoo_job import POOLS, SKILLS
from scripts.bench.zoo_pool import ZooLab
from scripts.bench.zoo_runs import VARIANTS, points_of, run_search_of
from scripts.bench.zoo_store import ScoreStore
from workers.outcome import Failed

HIDDEN, EPOCHS, PATIENCE, BATCH = 64, 400, 60, 128
HELD_OUT_SHARE = 1 / 8
LIKELIHOOD_COST = 0.62


class EmulatedLab(ZooLab):
    """A lab whose merges of the job's method have emulated scores; see the module.

    Args:
        zoo: Directory of the zoo.
        pool: One of ``POOLS``.
        store: Of ``search_zoo``, with the scores that the emulator is fitted to.
        scores: Path of the store's file.
    """

    def __init__(self, zoo: Path, pool: str, store: ScoreStore, scores: Path) -> None:
        super().__init__(zoo, pool, store)
        self._items = [
            (split, task, item)
            for split in SPLITS
            for task, items in self.manifest.items(split).items()
            for item in items
        ]
        self._column = {(task, item): at for at, (_, task, item) in enumerate(self._items)}
        self._known: dict[str, tuple[FloatArray, FloatArray]] = {}
        features, solved = self._remembered(scores)
        self._net, self.agreement = self._fitted(features, solved)

    def truth(self, recipe: MergeRecipe) -> list[float]:
        """Return the emulated means on report items, one per skill."""
        if not self._is_emulated(recipe):
            return _measured(self, recipe)
        chances, _ = self._of(recipe)
        return [float(chances[self._columns("report", skill)].mean()) for skill in SKILLS]

    def _scores(
        self, recipe: MergeRecipe, items: Items, kind: Kind
    ) -> dict[str, TaskScores] | Failed:
        if kind != "generate" or not self._is_emulated(recipe):
            return super()._scores(recipe, items, kind)
        _, solved = self._of(recipe)
        self.paid[kind].items += sum(map(len, items.values()))
        return {
            task: TaskScores(task, tuple(ids), solved[[self._column[task, item] for item in ids]])
            for task, ids in items.items()
        }

    def digest(self, recipe: MergeRecipe) -> str:
        """Return the digest of a merge; an emulated one has that of nothing."""
        return super().digest(recipe) or "0" * 64

    def _is_emulated(self, recipe: MergeRecipe) -> bool:
        return self.space.is_of_method(recipe) and any(map(any, recipe.weights))

    def _columns(self, split: str, skill: str) -> list[int]:
        wanted = (split, f"zoo_{skill}")
        return [at for at, (of, task, _) in enumerate(self._items) if (of, task) == wanted]

    def _of(self, recipe: MergeRecipe) -> tuple[FloatArray, FloatArray]:
        """Return a merge's chances, and which items it solves, ``(n,)`` both."""
        if recipe.recipe_id not in self._known:
            with torch.inference_mode():
                chances = torch.sigmoid(self._net(_features([recipe])))[0].double().numpy()
            seed = int(hashlib.sha256(recipe.recipe_id.encode()).hexdigest()[:15], 16)
            solved = np.random.default_rng(seed).random(chances.size) < chances
            self._known[recipe.recipe_id] = chances, solved.astype(np.float64)
        return self._known[recipe.recipe_id]

    def _remembered(self, scores: Path) -> tuple[Tensor, Tensor]:
        """Return features of all merges in the store, and their scores, NaN where not scored."""
        with sqlite3.connect(f"file:{scores}?mode=ro", uri=True) as connection:
            recipes = {
                number: MergeRecipe.model_validate_json(text)
                for number, text in connection.execute(
                    "SELECT number, recipe FROM recipes WHERE failure IS NULL"
                )
            }
            size = self.space.shape[0]
            rows = [
                number
                for number, recipe in recipes.items()
                if self.space.is_of_method(recipe) and len(recipe.checkpoints) == size
            ]
            signals = {task: self._signal(task, "generate") for task in self.manifest.task_hashes}
            numbers = {
                (definition, metric, item): number
                for number, definition, metric, item in connection.execute("SELECT * FROM items")
            }
            columns = {}
            for at, (_, task, item) in enumerate(self._items):
                key = (signals[task].definition, signals[task].metric, item)
                if key in numbers:
                    columns[numbers[key]] = at
            place = {number: row for row, number in enumerate(rows)}
            solved = torch.full((len(rows), len(self._items)), torch.nan)
            for recipe_number, item_number, value in connection.execute(
                "SELECT recipe, item, value FROM scores"
            ):
                if recipe_number in place and item_number in columns:
                    solved[place[recipe_number], columns[item_number]] = value
        return _features([recipes[number] for number in rows]), solved

    def _fitted(
        self, features: Tensor, solved: Tensor
    ) -> tuple[nn.Module, dict[str, dict[str, float]]]:
        """Fit by early stopping on merges that are held out; returns how well those are met."""
        draw = torch.Generator().manual_seed(0)
        known, values = torch.isfinite(solved), torch.nan_to_num(solved)
        order = torch.randperm(len(features), generator=draw)
        count = int(len(order) * HELD_OUT_SHARE)
        held_out, used = order[:count], order[count:]
        net = nn.Sequential(
            nn.Linear(features.shape[1], HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, solved.shape[1]),
        )
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight, generator=draw)
                nn.init.zeros_(layer.bias)

        def loss(rows: Tensor) -> Tensor:
            each = nn.functional.binary_cross_entropy_with_logits(
                net(features[rows]), values[rows], reduction="none"
            )
            return (each * known[rows]).sum() / known[rows].sum()

        optimizer = torch.optim.AdamW(net.parameters(), 3e-3, weight_decay=1e-2)
        best, best_epoch, state = float("inf"), 0, net.state_dict()
        for epoch in range(EPOCHS):
            for rows in used[torch.randperm(len(used), generator=draw)].split(BATCH):
                optimizer.zero_grad()
                loss(rows).backward()
                optimizer.step()
            with torch.no_grad():
                found = float(loss(held_out))
            if found < best:
                best, best_epoch = found, epoch
                state = {name: value.clone() for name, value in net.state_dict().items()}
            elif epoch - best_epoch > PATIENCE:
                break
        net.load_state_dict(state)
        with torch.inference_mode():
            chances = torch.sigmoid(net(features[held_out]))
        agreement = {}
        for skill in SKILLS:
            columns = self._columns("search", skill)
            whole = known[held_out][:, columns].all(dim=1)
            pair = [part[whole][:, columns].mean(dim=1) for part in (chances, values[held_out])]
            agreement[skill] = {
                "correlation": float(torch.corrcoef(torch.stack(pair))[0, 1]),
                "difference_sd": float((pair[0] - pair[1]).std()),
            }
        return net, agreement


def _features(recipes: list[MergeRecipe]) -> Tensor:
    weights = np.array([[row[0] for row in recipe.weights] for recipe in recipes])
    drops = np.array([[row[0] for row in recipe.drop_ratios] for recipe in recipes])
    spread = weights * np.sqrt(drops / (1 - drops))
    return torch.tensor(np.concatenate([weights, spread], axis=1), dtype=torch.float32)


_measured = zoo_runs.held_out


def _held_out(lab: ZooLab, recipe: MergeRecipe) -> list[float]:
    return lab.truth(recipe) if isinstance(lab, EmulatedLab) else _measured(lab, recipe)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run all searches; returns what ``--json`` prints."""
    torch.set_num_threads(1)
    zoo_runs.held_out = _held_out
    scores = options.runs / "scores.sqlite"
    with (
        ScoreStore(scores) as store,
        EmulatedLab(options.zoo.resolve(), options.pool, store, scores) as lab,
    ):
        rows = [_row(lab, name, options) for name in options.strategy]
        return {"pool": options.pool, "agreement": lab.agreement, "rows": rows}


def _row(lab: EmulatedLab, name: str, options: argparse.Namespace) -> dict[str, object]:
    volumes: dict[float, list[float]] = {}
    means: dict[float, list[float]] = {}
    started = time.perf_counter()
    for seed in range(options.seeds):
        trace = run_search_of(
            lab, name, seed, budget=options.budget, likelihood_cost=LIKELIHOOD_COST
        )
        for part in trace.checkpoints:
            points = points_of(part.points)
            volumes.setdefault(part.cost, []).append(hypervolume(points, np.array(trace.reference)))
            means.setdefault(part.cost, []).append(float(points[0].mean()))
    return {
        "strategy": name,
        "seeds": options.seeds,
        "hv": {cost: statistics.mean(found) for cost, found in volumes.items()},
        "hv_sd": {cost: float(np.std(found)) for cost, found in volumes.items()},
        "best_mean": {cost: statistics.mean(found) for cost, found in means.items()},
        "seconds_per_search": (time.perf_counter() - started) / options.seeds,
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print it on one line")
    parser.add_argument("--pool", choices=sorted(POOLS), default="zoo3")
    parser.add_argument("--strategy", choices=sorted(VARIANTS), action="append")
    parser.add_argument("--seeds", type=int, default=4, help="seeds 0 to N - 1")
    parser.add_argument("--budget", type=int, default=60, help="full evaluations of a search")
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo"))
    parser.add_argument("--runs", type=Path, default=Path("runs/search_zoo"), help="of search_zoo")
    options = parser.parse_args(arguments)
    options.strategy = options.strategy or ["sample", "scalar_cma"]
    return options


def main() -> None:
    """Fit, search, and print."""
    options = parse()
    if not (options.runs / "scores.sqlite").exists():
        sys.exit(
            f"there are no scores in {options.runs}: `python -m scripts.bench.search_zoo --full` "
            "makes them"
        )
    report = measure(options)
    print(json.dumps(report, indent=None if options.json else 1))


if __name__ == "__main__":
    main()
