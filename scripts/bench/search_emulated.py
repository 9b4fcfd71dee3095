"""Search an emulator of the zoo: strategies on real merges' scores, in seconds instead of minutes.

    python -m scripts.bench.search_emulated --pool zoo3 --seeds 8 --json

To try an idea on the zoo takes five minutes a search; luck of a seed takes several searches. This
fits a network to every item score that ``scripts.bench.search_zoo`` remembered, from a merge's
weights and drop ratios to the chance that each item is solved, and lets the driver search that. An
item that is scored is solved with its chance, once and for all per merge; the base and merges of
other methods have their real scores. On report items scores are the chances themselves, without the
luck of a measurement. So it says which of two strategies is better, not what either reaches: what
it suggests is to be measured by ``search_zoo``.

``agreement`` says how far it is from the search scores of merges that the fit did not see: per
skill the correlation, and the standard deviation of the difference. ``rows`` are those of
``search_zoo``; without ``--json`` its tables are printed.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from configs.evaluation import SPLITS, SplitSizes
from configs.recipe import MergeRecipe
from evaluators.scores import FloatArray, Items, TaskScores
from optimizer.surrogate.kernel import features_of
from scripts.bench.merge_lab import Kind
from scripts.bench.search_zoo import LIKELIHOOD_COST, report, runs_of
from scripts.bench.zoo_job import POOLS, SKILLS
from scripts.bench.zoo_job import SPLITS as SIZES
from scripts.bench.zoo_pool import ZooLab
from scripts.bench.zoo_runs import VARIANTS, run_search_of
from scripts.bench.zoo_store import ScoreStore
from scripts.bench.zoo_tables import tables
from workers.outcome import Failed

HIDDEN, EPOCHS, PATIENCE, BATCH = 64, 400, 60, 128
HELD_OUT_SHARE = 1 / 8


class EmulatedLab(ZooLab):
    """A lab whose merges of the job's method have emulated scores; see the module.

    Args:
        zoo: Directory of the zoo.
        pool: One of ``POOLS``.
        store: Of ``search_zoo``: the scores that the emulator is fitted to.
        splits: Items per skill.
        epochs: Of the fit, at the most.
    """

    def __init__(
        self,
        zoo: Path,
        pool: str,
        store: ScoreStore,
        *,
        splits: SplitSizes = SIZES,
        epochs: int = EPOCHS,
    ) -> None:
        super().__init__(zoo, pool, store, splits=splits)
        self._items = {
            task: [item for split in SPLITS for item in self.manifest.items(split)[task]]
            for task in self.manifest.items("search")
        }
        every = [(task, item) for task, items in self._items.items() for item in items]
        self._column = {named: column for column, named in enumerate(every)}
        self._report = np.array(
            [item in self.manifest.items("report")[task] for task, item in every]
        )
        self._known: dict[str, FloatArray] = {}
        recipes = [recipe for recipe in store.recipes() if self._is_emulated(recipe)]
        self._net, self.agreement = self._fitted(recipes, self._remembered(store, recipes), epochs)

    def _scores(
        self, recipe: MergeRecipe, items: Items, kind: Kind
    ) -> dict[str, TaskScores] | Failed:
        if kind != "generate" or not self._is_emulated(recipe):
            return super()._scores(recipe, items, kind)
        self.paid[kind].items += sum(map(len, items.values()))
        values = self._emulated(recipe)
        return {
            task: TaskScores(task, tuple(ids), values[[self._column[task, item] for item in ids]])
            for task, ids in items.items()
        }

    def digest(self, recipe: MergeRecipe) -> str:
        """Return the digest of a merge; an emulated one has that of nothing."""
        return super().digest(recipe) or "0" * 64

    def _is_emulated(self, recipe: MergeRecipe) -> bool:
        names = [source.name for source in recipe.checkpoints]
        is_ours = names == list(POOLS[self.pool]) and self.space.is_of_method(recipe)
        return is_ours and any(map(any, recipe.weights))

    def _emulated(self, recipe: MergeRecipe) -> FloatArray:
        """Return a merge's scores, ``(n,)``: chances on report items, else 0 or 1."""
        if recipe.recipe_id not in self._known:
            with torch.inference_mode():
                chances = torch.sigmoid(self._net(self._features([recipe])))[0].double().numpy()
            seed = int(hashlib.sha256(recipe.recipe_id.encode()).hexdigest()[:15], 16)
            solved = np.random.default_rng(seed).random(chances.size) < chances
            self._known[recipe.recipe_id] = np.where(self._report, chances, solved)
        return self._known[recipe.recipe_id]

    def _features(self, recipes: list[MergeRecipe]) -> Tensor:
        shape = (len(recipes), *self.space.shape)
        weights = np.array([recipe.weights for recipe in recipes]).reshape(shape)
        drops = np.array([recipe.drop_ratios for recipe in recipes]).reshape(shape)
        found = features_of(weights, drops, self.space)
        flat = [part.reshape(len(recipes), -1) for part in (found.weights, found.spread)]
        return torch.tensor(np.concatenate(flat, axis=1), dtype=torch.float32)

    def _remembered(self, store: ScoreStore, recipes: list[MergeRecipe]) -> Tensor:
        """Return what merges got, ``(n, items)``; NaN where they were not scored."""
        scores = torch.full((len(recipes), len(self._column)), torch.nan)
        for row, recipe in enumerate(recipes):
            for task, items in self._items.items():
                found = store.lookup(recipe, self._signal(task, "generate"), items)
                for item, score in found.items():
                    scores[row, self._column[task, item]] = score.value
        return scores

    def _fitted(
        self, recipes: list[MergeRecipe], scores: Tensor, epochs: int
    ) -> tuple[nn.Module, dict[str, dict[str, float]]]:
        """Fit by early stopping on merges that are held out; returns how well those are met."""
        draw = torch.Generator().manual_seed(0)
        features = self._features(recipes)
        known, values = torch.isfinite(scores), torch.nan_to_num(scores)
        order = torch.randperm(len(features), generator=draw)
        count = int(len(order) * HELD_OUT_SHARE)
        held_out, used = order[:count], order[count:]
        net = nn.Sequential(
            nn.Linear(features.shape[1], HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, scores.shape[1]),
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
        for epoch in range(epochs):
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
        return net, self._agreement(chances, scores[held_out])

    def _agreement(self, chances: Tensor, scores: Tensor) -> dict[str, dict[str, float]]:
        agreement = {}
        for skill in SKILLS:
            task = f"zoo_{skill}"
            columns = [self._column[task, item] for item in self.manifest.items("search")[task]]
            whole = torch.isfinite(scores[:, columns]).all(dim=1)
            pair = [part[whole][:, columns].mean(dim=1) for part in (chances, scores)]
            agreement[skill] = {
                "correlation": float(torch.corrcoef(torch.stack(pair))[0, 1]),
                "difference_sd": float((pair[0] - pair[1]).std()),
            }
        return agreement


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON value")
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
    scores = options.runs / "scores.sqlite"
    if not scores.exists():
        sys.exit(f"no scores in {options.runs}: `python -m scripts.bench.search_zoo` makes them")
    torch.set_num_threads(1)
    with (
        ScoreStore(scores) as store,
        EmulatedLab(options.zoo.resolve(), options.pool, store) as lab,
    ):
        traces = [
            run_search_of(lab, name, seed, budget=options.budget, likelihood_cost=LIKELIHOOD_COST)
            for name in options.strategy
            for seed in range(options.seeds)
        ]
        full_items = lab.full_items
    if options.json:
        print(json.dumps({"agreement": lab.agreement, "rows": report(traces)}))
        return
    print(json.dumps(lab.agreement))
    print("\n".join(tables(runs_of(traces, relative=False), full_items)))


if __name__ == "__main__":
    main()
