"""The directory of a learned merge: its recipe, and its column coefficients where it has some.

``recipe.json`` is what ``mergefront merge`` reads; it says besides how the merge was learned.
"""

import json
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

from configs.errors import CheckpointError
from configs.recipe import MergeRecipe, Source
from optimizer.archive.schema import mergefront_version
from optimizer.learning.learn import Learned
from optimizer.learning.plan import LearningPlan
from optimizer.publish.export import RECIPE_FILE
from optimizer.publish.merge_file import recipe_record
from optimizer.publish.recipe_file import RecipeFile, spelled_as
from workers.checkpoint_writer import refuse_used
from workers.column_coefficients import COEFFICIENTS_FILE, CoefficientFile
from workers.work_directory import WorkDirectory, remove_leftovers

if TYPE_CHECKING:
    from torch import Tensor


def write_learned(plan: LearningPlan, learned: Learned) -> MergeRecipe:
    """Write a learned merge to the plan's directory, which appears whole or not at all.

    Returns:
        The recipe, with the digest of its coefficients.

    Raises:
        CheckpointError: The directory was made in the meantime, or cannot be written.
    """
    out_dir = plan.out_dir
    refuse_used(out_dir)
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out_dir)
        with closing(WorkDirectory(out_dir)) as work:
            recipe = learned.recipe
            if learned.columns is not None:
                digest = _write_columns(work.path / COEFFICIENTS_FILE, learned.columns)
                named = Source(name=out_dir.name, digest=digest)
                recipe = recipe.model_copy(update={"coefficients": named})
            text = json.dumps(_record(plan, learned, recipe), indent=2, ensure_ascii=False)
            _write(work.path / RECIPE_FILE, f"{text}\n".encode())
            work.publish()
    except OSError as error:
        raise CheckpointError(
            f"{out_dir}: cannot be written: {error.strerror or error}; choose another directory",
            path=str(out_dir),
        ) from error
    return recipe


def _write_columns(path: Path, columns: "Mapping[str, Tensor]") -> str:
    """Write the coefficients, and return their digest."""
    # Checkpoint by checkpoint, as safetensors would order them; contiguous, as it wants them.
    tensors = {
        f"{index}.{name}": row.contiguous()
        for name, rows in columns.items()
        for index, row in enumerate(rows)
    }
    _write(path, save(tensors))
    return CoefficientFile(path).digest


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _record(plan: LearningPlan, learned: Learned, recipe: MergeRecipe) -> dict[str, object]:
    models = plan.job.models
    named = [*([models.base] if models.base else []), *models.checkpoints.values()]
    spelled = {
        found.digest: spelled_as(source, found)
        for source, found in zip(named, plan.sources.everything, strict=True)
    }
    settings = asdict(plan.settings)
    return {
        **recipe_record(RecipeFile(recipe, plan.sources, spelled)),
        "learned": {
            "method": plan.settings.method,
            "steps": settings.pop("steps"),
            "seed": settings.pop("seed"),
            "settings": settings,
            "data": {
                name: {
                    "from": [origin.label for origin in origins],
                    "texts": len(plan.texts.by_checkpoint[name]),
                    "tokens": sum(map(len, plan.texts.by_checkpoint[name])),
                }
                for name, origins in plan.origins.items()
            },
            "seconds": round(learned.seconds, 3),
            "losses": dict(learned.losses),
        },
        "mergefront_version": mergefront_version(),
    }
