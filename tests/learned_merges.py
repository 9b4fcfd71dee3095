"""Merges with column coefficients as ``mergefront learn`` leaves them, with drawn numbers."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file

from configs.recipe import MergeRecipe, Source
from tests.small_models import recipe_of
from workers.checkpoint import CheckpointReader
from workers.column_coefficients import COEFFICIENTS_FILE, CoefficientFile, resolve_coefficients
from workers.sources import Sources

if TYPE_CHECKING:
    import torch

Tensors = "dict[str, torch.Tensor]"


def drawn_coefficients(sources: Sources, *, seed: int = 0) -> "dict[str, torch.Tensor]":
    """One number per column of every floating tensor and checkpoint, around equal shares."""
    import torch

    draw = torch.Generator().manual_seed(seed)
    count = len(sources.checkpoints)
    with CheckpointReader(sources.reference.directory) as reader:
        return {
            f"{index}.{name}": 1 / count + 0.1 * torch.randn(entry.row_length, generator=draw)
            for index in range(count)
            for name, entry in reader.entries.items()
            if entry.is_floating
        }


def write_learned(
    directory: Path,
    sources: Sources,
    coefficients: "Mapping[str, torch.Tensor] | None" = None,
    *,
    seed: int = 0,
    change: "Callable[[dict[str, torch.Tensor]], object] | None" = None,
    **recipe: Any,
) -> MergeRecipe:
    """Write ``recipe.json`` and ``coefficients.safetensors``; ``change`` spoils the latter."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = dict(coefficients or drawn_coefficients(sources, seed=seed))
    if change is not None:
        change(tensors)
    path = directory / COEFFICIENTS_FILE
    save_file(tensors, path)
    learned = recipe_of(
        sources,
        recipe.pop("weights", [1.0] * len(sources.checkpoints)),
        method="dam",
        coefficients=Source(name="learned", digest=CoefficientFile(path).digest),
        **recipe,
    )
    write_recipe(directory / "recipe.json", learned, sources)
    return learned


def write_recipe(path: Path, recipe: MergeRecipe, sources: Sources) -> None:
    content = {
        "recipe": recipe.model_dump(mode="json"),
        "sources": {each.name: {"path": str(each.directory)} for each in sources.everything},
        "learned": {"method": recipe.method, "steps": 3},
    }
    path.write_text(json.dumps(content))


def with_coefficients(sources: Sources, recipe: MergeRecipe, directory: Path) -> Sources:
    """The pool with the file of a recipe, kept in the cache as jobs do it."""
    assert recipe.coefficients is not None
    found = resolve_coefficients(recipe.coefficients, directory / COEFFICIENTS_FILE)
    return replace(sources, coefficients=(found,))
