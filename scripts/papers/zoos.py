"""The zoos that studies measure: one base per width and seed, and what is tuned from it.

A zoo's directory holds whatever any study has asked for so far; checkpoints are trained once.
"""

from pathlib import Path

from scripts.zoo.build import OnStep, build_zoo
from scripts.zoo.recipe import GENERALISTS, SPECIALISTS, Checkpoint, Recipe, Schedule, Shape

DEVELOPMENT_SEED = 0
"""Of the zoo on which settings of studies were chosen; no result is of it but those of ``--fast``,
which need no zoo beside the quickstart's."""

SEEDS = (1, 2, 3, 4, 5)
"""Of the zoos that results are of."""

NARROW, WIDE = 128, 256

LONGER = Checkpoint(
    name="math_longer",
    schedule=Schedule(steps=1500, learning_rate=2e-3, train_embeddings=True),
    mix={"math-full": 0.6, "math-easy": 0.2, "copy": 0.2},
)
"""Continued pre-training on stories: all of the model, the base's learning rate, no replay. Its
task vector is many times longer than a specialist's."""

_TUNED = {one.name: one for one in (*SPECIALISTS, *GENERALISTS, LONGER)}
SKILL_SPECIALISTS = tuple(one.name for one in SPECIALISTS)


def zoo_recipe(width: int, names: tuple[str, ...]) -> Recipe:
    """Return the recipe of a zoo with these tuned checkpoints.

    Width 128 is the quickstart's.

    Raises:
        KeyError: A checkpoint is not known here.
    """
    return Recipe(
        shape=Shape(hidden=width, mlp=3 * width), tuned=tuple(_TUNED[name] for name in names)
    )


def zoo_directory(root: Path, width: int, seed: int) -> Path:
    """Return where a zoo lies."""
    return root / f"zoo-{width}-{seed}"


def make_zoo(
    root: Path,
    *,
    width: int,
    seed: int,
    names: tuple[str, ...],
    on_step: OnStep = lambda _name, _step: None,
) -> Path:
    """Train what is missing of a zoo, on one processor; returns its directory."""
    directory = zoo_directory(root, width, seed)
    build_zoo(directory, zoo_recipe(width, names), seed=seed, processors=1, on_step=on_step)
    return directory
