"""What a study measures with: a zoo, labs that score merges of it, a place for what it makes."""

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from configs.evaluation import SplitName, SplitSizes
from configs.recipe import MergeRecipe
from configs.schema import JobConfig
from evaluators.scores import FloatArray, Items
from scripts.bench.merge_lab import MergeLab
from scripts.bench.zoo_job import METRICS, ROOT, SKILLS
from scripts.bench.zoo_store import ScoreStore
from workers.methods import get_method
from workers.outcome import Failed

FULL_SPLITS = SplitSizes(search=64, select=128, report=256)
FAST_SPLITS = SplitSizes(search=32, select=32, report=96)
"""Items per skill; ``report`` items are what tables show, and choose nothing."""


class Lab(MergeLab):
    """Scores merges of some checkpoints, and makes their recipes."""

    def recipe(
        self,
        weights: Mapping[str, float],
        *,
        method: str = "task_arithmetic",
        drop_ratio: float = 0.0,
        options: Mapping[str, float] | None = None,
    ) -> MergeRecipe:
        """Return a recipe by names of checkpoints; those that are not named have weight 0.

        Raises:
            KeyError: A name is none of the lab's checkpoints.
        """
        names = [source.name for source in self.sources.checkpoints]
        if unknown := set(weights) - set(names):
            raise KeyError(f"no checkpoints {sorted(unknown)}; there are {names}")
        column = [[weights.get(name, 0.0)] * self.space.shape[1] for name in names]
        drops = np.full(self.space.shape, drop_ratio).tolist()
        return self.space.recipe(column, drops, method=method, options=options)

    def mean_scores(self, recipe: MergeRecipe, split: SplitName = "report") -> dict[str, float]:
        """Return task -> mean score on a split; a merge that cannot be scored has 0 everywhere."""
        items = self.manifest.items(split)
        return {
            task: float(values.mean()) for task, values in self.item_scores(recipe, items).items()
        }

    def report(self, recipe: MergeRecipe, *, masks: int = 1) -> dict[str, float]:
        """Return task -> mean score on report items.

        Args:
            recipe: What to score.
            masks: How many masks to take the mean of, where they are random.
        """
        is_random = get_method(recipe.method).drop in ("random", "ranked")
        drops = is_random and any(map(any, recipe.drop_ratios))
        found = [
            self.mean_scores(recipe.model_copy(update={"mask_seed": seed}))
            for seed in range(masks if drops else 1)
        ]
        return {task: float(np.mean([scores[task] for scores in found])) for task in found[0]}

    def mean(self, recipe: MergeRecipe, split: SplitName = "report") -> float:
        """Return the mean over tasks of the scores on a split."""
        return float(np.mean(list(self.mean_scores(recipe, split).values())))

    def best(self, recipes: Sequence[MergeRecipe]) -> MergeRecipe:
        """Return the merge with the best mean on search items; the first of equals.

        One alone is not scored.
        """
        if len(recipes) == 1:
            return recipes[0]
        return max(recipes, key=lambda recipe: self.mean(recipe, "search"))

    def dropped(self, name: str, drop_ratio: float, *, rescale: bool = True) -> MergeRecipe:
        """Return a checkpoint with a share of its task vector dropped at random."""
        # What is kept is divided by 1 - p; a weight of 1 - p undoes that.
        weight = 1.0 if rescale else 1.0 - drop_ratio
        return self.recipe({name: weight}, method="dare_linear", drop_ratio=drop_ratio)

    def item_scores(self, recipe: MergeRecipe, items: Items) -> dict[str, FloatArray]:
        """Return task -> scores, ``(n,)`` in the order of the items; zeros for a failed merge."""
        found = self.scores(recipe, items)
        if isinstance(found, Failed):
            return {task: np.zeros(len(ids)) for task, ids in items.items()}
        return {task: scores.values for task, scores in found.items()}


@dataclass(frozen=True, slots=True)
class Bench:
    """One zoo, and where a study keeps what it makes of it.

    Attributes:
        root: Directory of everything that is kept.
        zoo: Directory of the zoo.
        width: Of its models.
        seed: Of the zoo, and of everything that a study draws.
        fast: Whether few items and settings have to do.
        store: Scores that were measured before.
    """

    root: Path
    zoo: Path
    width: int
    seed: int
    fast: bool
    store: ScoreStore
    splits: SplitSizes = field(default=FULL_SPLITS)

    def lab(
        self,
        checkpoints: Mapping[str, Path] | tuple[str, ...],
        *,
        base: Path | None = None,
        skills: tuple[str, ...] = SKILLS,
        **changes: object,
    ) -> Lab:
        """Return a lab of checkpoints on the zoo's skills; a context manager.

        Args:
            checkpoints: Names of the zoo's, or name -> directory.
            base: What they were tuned from; None is the zoo's base.
            skills: Which to score.
            changes: Sections of the job that differ (``merge``, ``search``, ...).
        """
        return Lab(
            {"generate": self.job(checkpoints, base=base, skills=skills, **changes)}, self.store
        )

    def job(
        self,
        checkpoints: Mapping[str, Path] | tuple[str, ...],
        *,
        base: Path | None = None,
        skills: tuple[str, ...] = SKILLS,
        **changes: object,
    ) -> JobConfig:
        """Return the job of some checkpoints; arguments as for :meth:`lab`."""
        if not isinstance(checkpoints, Mapping):
            checkpoints = {name: self.zoo / name for name in checkpoints}
        content: dict[str, object] = {
            "name": "study",
            "seed": self.seed,
            "models": {
                "base": str(base or self.zoo / "base"),
                "checkpoints": {name: str(path) for name, path in checkpoints.items()},
            },
            "objectives": {
                skill: [{"task": f"zoo_{skill}", "metric": METRICS[skill]}] for skill in skills
            },
            "evaluation": {
                "include_path": [str(ROOT / "evaluators/tasks/zoo")],
                "data_dir": str(self.zoo),
                "splits": self.splits,
                "allow_code_execution": True,
            },
            "archive": str(self.root / "unused.sqlite"),
        }
        return JobConfig.model_validate(content | changes)

    def digest(self, *names: str) -> str:
        """Return what names the weights of some of the zoo's models."""
        files = (self.zoo / name / "model.safetensors" for name in names)
        return hashlib.sha256(b"".join(map(Path.read_bytes, files))).hexdigest()

    def made(self, name: str, settings: object, make: Callable[[Path], None]) -> Path:
        """Return a directory of this zoo's that a study makes, once.

        Args:
            name: What people see.
            settings: All that decides its content beside the seed; its ``repr`` is its key.
            make: Fills an empty directory, which then appears whole or not at all.
        """
        key = hashlib.sha256(repr(settings).encode()).hexdigest()[:8]
        directory = self.zoo.with_name(f"{self.zoo.name}-{name}-{key}")
        if not directory.exists():
            partial = directory.with_name(f".{directory.name}.partial-{os.getpid()}")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            make(partial)
            partial.rename(directory)
        return directory
