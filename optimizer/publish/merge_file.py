"""One merge without a search: what it reads and writes, and the directory that it becomes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from configs.errors import CheckpointError
from configs.recipe import MergeRecipe
from configs.schema import Merge, ModelSource
from optimizer.archive.schema import mergefront_version
from optimizer.publish.card_metadata import card_metadata
from optimizer.publish.export import RECIPE_FILE, Exported, size_on_disk
from optimizer.publish.model_card import hub_ids, origin_of, reference_is_causal, render_card
from optimizer.publish.recipe_file import RecipeFile
from optimizer.publish.source_cards import Licence, SourceCard, licence_of, read_source_card
from workers.checkpoint_writer import DEFAULT_SHARD_BYTES, refuse_used
from workers.column_coefficients import EXPORTED_FILE, check_coefficients, exported_coefficients
from workers.compat import PoolReport, check_compatible
from workers.methods import get_method

_TEMPLATE = "merge_card.md.j2"


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge that was checked, and what it moves."""

    file: RecipeFile
    pool: PoolReport

    @property
    def notes(self) -> tuple[str, ...]:
        """All that a person should know before it is written."""
        return (*self.file.notes, *self.pool.warnings)


def plan_merge(file: RecipeFile) -> MergePlan:
    """Check that the models of a recipe can be merged.

    Raises:
        IncompatibleCheckpointsError: They cannot; lists every mismatch.
        CorruptCheckpointError: Its column coefficients do not fit them; lists every problem.
        ConfigError: The recipe's method is not known here.
    """
    recipe = file.recipe
    # Two groups of one name are two groups nevertheless.
    groups = {group.name: list(group.patterns) for group in recipe.groups}
    if len(groups) < len(recipe.groups):
        groups = {f"{g.name}-{n}": list(g.patterns) for n, g in enumerate(recipe.groups)}
    merge = Merge.model_validate(
        {
            "method": recipe.method,
            "options": recipe.options,
            "groups": groups,
            "dtype": recipe.dtype,
        }
    )
    policy = "refuse" if recipe.vocabulary is None else recipe.vocabulary.policy
    pool = check_compatible(file.sources, merge, policy)
    check_coefficients(recipe, file.sources)
    return MergePlan(file, pool)


def write_merge(
    plan: MergePlan, out_dir: Path, *, max_shard_bytes: int = DEFAULT_SHARD_BYTES
) -> Exported:
    """Write a merge as a checkpoint directory with model card and recipe.

    Args:
        plan: From :func:`plan_merge`.
        out_dir: Must not exist, or be an empty directory; appears whole or not at all.
        max_shard_bytes: Largest size of a shard's tensors.

    Raises:
        CheckpointError: The target exists, a source is not usable, the disk is full, or the
            weights are not those that the recipe's file records. Nothing is left behind.
    """
    from workers.merged_checkpoint import write_checkpoint

    out_dir = out_dir.expanduser().absolute()
    refuse_used(out_dir)
    file, expected = plan.file, plan.file.weights_digest
    cards = _weighted_cards(file)
    licence = licence_of(cards.values())

    def finish(digest: str) -> Mapping[str, bytes]:
        if expected not in (None, digest):
            raise CheckpointError(
                f"{out_dir}: the merge has weights digest {digest}, the recipe's file records "
                f"{expected}; nothing was written. It was made on another kind of device or by "
                "another version: remove `weights_digest` from the file to have this one",
                expected=expected,
                found=digest,
            )
        return {
            "README.md": _card(file, digest, out_dir.name, cards, licence).encode(),
            RECIPE_FILE: _recipe_json(file, digest).encode(),
            **exported_coefficients(file.sources),
        }

    digest = write_checkpoint(
        file.recipe, file.sources, out_dir, max_shard_bytes=max_shard_bytes, finish=finish
    )
    return Exported(out_dir, file.recipe.recipe_id, digest, size_on_disk(out_dir), licence.warning)


def recipe_record(file: RecipeFile) -> dict[str, object]:
    """Return a recipe with its id and the places of its models, for JSON."""
    return {
        "recipe_id": file.recipe.recipe_id,
        "recipe": file.recipe.model_dump(mode="json"),
        "sources": _places(file),
    }


def _places(file: RecipeFile) -> Mapping[str, object]:
    return {
        source.name: {"path": file.spelled[source.digest]} for source in file.sources.everything
    }


def _recipe_json(file: RecipeFile, digest: str) -> str:
    content = {
        **recipe_record(file),
        "weights_digest": digest,
        "mergefront_version": mergefront_version(),
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _weighted_cards(file: RecipeFile) -> dict[str, SourceCard]:
    """Return digest -> card of the base and of every checkpoint that has a weight."""
    weighted = {
        checkpoint.digest
        for checkpoint, row in zip(file.recipe.checkpoints, file.recipe.weights, strict=True)
        if any(row)
    }
    return {
        source.digest: read_source_card(source.name, [source.directory])
        for source in file.sources.everything
        if source is file.sources.base or source.digest in weighted
    }


def _card(
    file: RecipeFile, digest: str, out_name: str, cards: Mapping[str, SourceCard], licence: Licence
) -> str:
    places = {d: ModelSource.model_validate(text) for d, text in file.spelled.items()}
    content = {
        "title": out_name,
        "licence": licence,
        "metadata": card_metadata(
            model_name=out_name,
            parents=hub_ids(places[each] for each in cards),
            cards=list(cards.values()),
            licence=licence,
            is_causal=reference_is_causal(file.sources.reference.directory),
        ),
        "recipe": file.recipe,
        "paper": get_method(file.recipe.method).paper,
        "sources": [
            (source.name, origin_of(places[source.digest]), source.digest)
            for source in file.sources.everything
        ],
        "rows": list(recipe_rows(file.recipe)),
        "coefficients_file": EXPORTED_FILE,
        "reference": file.sources.reference.name,
        "weights_digest": digest,
        "version": mergefront_version(),
    }
    return render_card(_TEMPLATE, content)


def recipe_rows(recipe: MergeRecipe) -> list[tuple[str, str, str, str]]:
    """Return (checkpoint, group, weight, drop ratio) for tables."""
    return [
        (
            checkpoint.name,
            group.name,
            f"{recipe.weights[row][column]:.6g}",
            f"{recipe.drop_ratios[row][column]:.6g}",
        )
        for row, checkpoint in enumerate(recipe.checkpoints)
        for column, group in enumerate(recipe.groups)
    ]
