"""Turning a recorded recipe into an ordinary Hugging Face checkpoint directory.

What is exported is, bit for bit, what was scored (D1): the sources must have their recorded
digests, and the written weights must have the digest that the worker recorded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from configs.errors import CheckpointError, CorruptCheckpointError
from configs.evaluation import SPLITS
from configs.recipe import MergeRecipe
from optimizer.archive.schema import mergefront_version
from optimizer.publish.model_card import merged_cards, model_card
from optimizer.publish.rescore import OtherDtype, rescored_record
from optimizer.publish.source_cards import licence_of
from optimizer.results.front_view import scores_record
from optimizer.results.select import Choice
from workers.checkpoint import CheckpointReader
from workers.checkpoint_writer import DEFAULT_SHARD_BYTES, refuse_used
from workers.column_coefficients import exported_coefficients, recall_coefficients
from workers.digest import source_digest
from workers.sources import Sources

if TYPE_CHECKING:
    from optimizer.archive.archive import Archive

RECIPE_FILE = "recipe.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written.

    Attributes:
        directory: Where.
        recipe_id: Of the merge.
        weights_digest: Of what was written.
        size_bytes: Of all files.
        licence_warning: What is not clear about its licence, in a sentence; empty where all is.
    """

    directory: Path
    recipe_id: str
    weights_digest: str
    size_bytes: int
    licence_warning: str = ""


def export(
    archive: "Archive",
    choice: Choice,
    out_dir: Path,
    *,
    other: OtherDtype | None = None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> Exported:
    """Write a recorded merge as a checkpoint directory with model card and recipe.

    Args:
        archive: The record of the search.
        choice: What to export; it must have been scored.
        other: The same merge in another dtype, which is written instead.
        out_dir: Must not exist, or be an empty directory; appears whole or not at all.
        max_shard_bytes: Largest size of a shard's tensors.

    Raises:
        ArchiveError: The candidate was never scored.
        CheckpointError: The target exists, a source or a learned merge's coefficients are gone or
            have changed, the disk is full, or the written weights are not those that were scored.
            Nothing is left behind.
    """
    from workers.merged_checkpoint import write_checkpoint

    out_dir = out_dir.expanduser().absolute()
    expected: str | None = archive.weights_digest(choice.candidate.index)
    if other is not None:
        expected = None if other.rescored is None else other.rescored.weights_digest
    recipe = choice.candidate.recipe if other is None else other.recipe
    refuse_used(out_dir)
    verify_sources(archive.sources)
    sources = sources_for(archive, recipe)
    cards = merged_cards(archive, recipe)

    def finish(digest: str) -> Mapping[str, bytes]:
        if expected not in (None, digest):
            raise CheckpointError(
                f"{out_dir}: the merge has weights digest {digest}, but {expected} was scored; "
                "nothing was exported. Export on the kind of device and with the version of "
                f"torch that scored it (device `{archive.job.workers.device}`)",
                expected=expected,
                found=digest,
            )
        return {
            "README.md": model_card(
                archive,
                choice,
                out_name=out_dir.name,
                other=other,
                weights_digest=digest,
                cards=cards,
            ).encode(),
            RECIPE_FILE: recipe_json(archive, choice, other=other, weights_digest=digest).encode(),
            **exported_coefficients(sources),
        }

    digest = write_checkpoint(
        recipe,
        sources,
        out_dir,
        max_shard_bytes=max_shard_bytes,
        device=_device_of(archive),
        finish=finish,
    )
    warning = licence_of(cards).warning
    return Exported(out_dir, recipe.recipe_id, digest, size_on_disk(out_dir), warning)


def size_on_disk(directory: Path) -> int:
    """Return the bytes of all files of a directory, those of its parts too."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def sources_for(archive: "Archive", recipe: MergeRecipe) -> Sources:
    """Return the checkpoints of an archive, with the coefficients of a recipe where it has some.

    Raises:
        CheckpointError: The coefficients are not kept on this machine any more, or have changed.
    """
    if recipe.coefficients is None:
        return archive.sources
    return replace(archive.sources, coefficients=(recall_coefficients(recipe.coefficients),))


def verify_sources(sources: Sources) -> None:
    """Check that every checkpoint still has the digest that the archive recorded.

    Raises:
        CheckpointError: One is gone, damaged or has changed.
    """
    for source in sources.everything:
        with CheckpointReader(source.directory) as reader:
            found = source_digest(reader)
        if found != source.digest:
            raise CorruptCheckpointError(
                f"{source.directory}: `{source.name}` has changed since the search began: its "
                f"digest was {source.digest[:12]}, now it is {found[:12]}. Put the checkpoint "
                "back, or start a new search with this one",
                path=str(source.directory),
            )


def recipe_json(
    archive: "Archive",
    choice: Choice,
    *,
    other: OtherDtype | None = None,
    weights_digest: str | None = None,
) -> str:
    """Return the text of ``recipe.json``: recipe, digests, scores, and the job that found it.

    In another dtype, ``scores`` are those of that dtype alone, and ``searched_as`` has the rest.

    Args:
        archive: The record of the search.
        choice: The recorded merge.
        other: The same merge in another dtype, where that is what is written.
        weights_digest: Of what was written; None is the recorded one.
    """
    index, recipe = choice.candidate.index, choice.candidate.recipe
    content: dict[str, object] = {
        "recipe_id": recipe.recipe_id,
        "recipe": recipe.model_dump(mode="json"),
        "weights_digest": weights_digest or archive.weights_digest(index),
        "origin": choice.candidate.origin,
        "chosen_by": choice.rule,
        "scores": {
            split: scores_record(scores[index])
            for split in SPLITS
            if index in (scores := archive.scores(split))
        },
        # Where the archive is says nothing of the merge, and may name directories, servers, users.
        "job": {**archive.job.model_dump(mode="json"), "archive": archive.place.public_name},
        "mergefront_version": mergefront_version(),
    }
    if other is not None:
        content |= {
            "recipe_id": other.recipe.recipe_id,
            "recipe": other.recipe.model_dump(mode="json"),
            "scores": {},
            "searched_as": {
                "recipe_id": recipe.recipe_id,
                "dtype": recipe.dtype,
                "weights_digest": archive.weights_digest(index),
                "scores": content["scores"],
            },
            **rescored_record(other),
        }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _device_of(archive: "Archive") -> str:
    """Where to merge: on the kind of device that scored, where this machine has one."""
    import torch

    wanted = archive.job.workers.device
    return wanted if wanted == "cuda" and torch.cuda.is_available() else "cpu"
