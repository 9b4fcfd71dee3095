"""Reading what one merge is, and finding its models: a ``recipe.json``, or a mergekit file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from configs.errors import CheckpointError, CheckpointNotFoundError, ConfigError
from configs.mergekit import read_mergekit
from configs.recipe import MergeRecipe, Source
from configs.schema import DtypeName, Models, ModelSource
from optimizer.publish.mergekit_import import import_recipe
from optimizer.recorded_recipe import RecordedRecipe, read_json, recorded_recipe
from workers.checkpoint import CheckpointReader
from workers.column_coefficients import coefficients_of
from workers.layers import Layout
from workers.lora import is_merged_adapter
from workers.sources import (
    BASE_NAME,
    BaseNeededError,
    ResolvedSource,
    Sources,
    resolve_sources,
)

# Of a model, and of an adapter.
_MODEL_FILES = ("config.json", "adapter_config.json")


@dataclass(frozen=True, slots=True)
class RecipeFile:
    """One merge with its models.

    Attributes:
        recipe: What to merge.
        sources: Its models, found.
        spelled: Digest -> directory or hub id of each model.
        notes: What a person should know, one sentence each.
        weights_digest: Of the merged weights, where the file records it for this recipe.
    """

    recipe: MergeRecipe
    sources: Sources
    spelled: Mapping[str, str]
    notes: tuple[str, ...] = ()
    weights_digest: str | None = None


def read_recipe_file(
    path: Path, *, directories: Sequence[Path] = (), dtype: DtypeName | None = None
) -> RecipeFile:
    """Read a recipe or a mergekit configuration, and find the models that it names.

    Args:
        path: The file; JSON is a recipe, YAML is mergekit's.
        directories: Where to look for the models of a recipe before the places that it records:
            checkpoints, or directories of checkpoints.
        dtype: Another data type of the merged tensors, which is another recipe; None keeps it.

    Raises:
        ConfigError: The file cannot be read or says what cannot be merged, with every reason.
        CheckpointError: Some models are not found or cannot be used; or a learned merge's file of
            coefficients is gone, damaged, or another one.
    """
    content = read_json(path)
    if content is None:
        found = _of_mergekit(path, directories)
    else:
        found = _of_recipe(path, recorded_recipe(path, content), directories)
    if dtype is None or dtype == found.recipe.dtype:
        return found
    recipe = found.recipe.model_copy(update={"dtype": dtype})
    return RecipeFile(recipe, found.sources, found.spelled, found.notes)


def read_layout(sources: Sources) -> tuple[Layout, DtypeName]:
    """Return the tensors and layers of a pool, and the data type that most of them have."""
    with CheckpointReader(sources.reference.directory) as reader:
        return Layout.read(reader), reader.dtype


def _of_recipe(path: Path, recorded: RecordedRecipe, directories: Sequence[Path]) -> RecipeFile:
    recipe = recorded.recipe
    wanted = {source.digest: source.name for source in _models(recipe)}
    places: dict[str, ResolvedSource] = {}
    spelled: dict[str, str] = {}
    looked: list[str] = []
    given = [ModelSource(path=str(place)) for place in _checkpoints_in(directories)]
    base: ModelSource | None = None
    adapters: list[ModelSource] = []
    # An adapter is merged onto the base, which may be named after it.
    waiting = [*given, *_recorded_places(recorded)]
    while waiting and not wanted.keys() <= places.keys():
        source = waiting.pop(0)
        try:
            models = Models(base=base, checkpoints={"model": source})
            found = resolve_sources(models).checkpoints[0]
        except BaseNeededError:
            adapters.append(source)
            continue
        except CheckpointError as error:
            if source in given:
                raise
            looked.append(error.message)
            continue
        if found.digest not in wanted:
            looked.append(f"{source.path}: has digest {found.digest[:12]}, which is not needed")
            continue
        if recipe.base is not None and found.digest == recipe.base.digest and base is None:
            base = source
            waiting += adapters
            adapters = []
        places.setdefault(found.digest, found)
        spelled.setdefault(found.digest, spelled_as(source, found))
    looked += [
        f"{source.path}: is a LoRA adapter, and the base of the recipe was not found"
        for source in adapters
    ]
    if missing := {digest: name for digest, name in wanted.items() if digest not in places}:
        lines = [f"`{name}` with digest {digest[:12]}" for digest, name in missing.items()]
        raise CheckpointNotFoundError(
            "\n".join(
                [
                    f"{len(missing)} of {len(wanted)} models of the recipe were not found; name "
                    "their directories with --source",
                    *(f"  {line}" for line in [*lines, *(f"looked at {text}" for text in looked)]),
                ]
            ),
            missing=list(missing),
        )
    sources = sources_of(recipe, places)
    if recipe.coefficients is not None:
        columns = coefficients_of(recipe.coefficients, path)
        sources = replace(sources, coefficients=(columns,))
    return RecipeFile(recipe, sources, spelled, weights_digest=recorded.weights_digest)


def _recorded_places(recorded: RecordedRecipe) -> list[ModelSource]:
    models = (recorded.job or {}).get("models")
    places = list((recorded.sources or {}).values())
    if isinstance(models, Mapping):
        try:
            job = Models.model_validate(models)
        except ValidationError:
            return places
        places += [*([job.base] if job.base else []), *job.checkpoints.values()]
    return list(dict.fromkeys(places))


def _checkpoints_in(directories: Sequence[Path]) -> list[Path]:
    """Return the directories that are checkpoints, and those inside that are."""
    found = []
    for directory in directories:
        inner: set[Path] = set()
        if directory.is_dir() and not any((directory / name).is_file() for name in _MODEL_FILES):
            inner = {path.parent for name in _MODEL_FILES for path in directory.glob(f"*/{name}")}
        found += sorted(inner) or [directory]
    return found


def spelled_as(source: ModelSource, found: ResolvedSource) -> str:
    """Return how a model is named to others: its directory, or its hub id with the revision.

    An adapter is named by the directory of its base with it, which others can read as a model.
    """
    if Path(source.path).expanduser().is_dir() or is_merged_adapter(found.directory):
        return str(found.directory)
    return source.path + (f"@{source.revision}" if source.revision else "")


def _models(recipe: MergeRecipe) -> list[Source]:
    vocabulary = [recipe.vocabulary.source] if recipe.vocabulary else []
    return [*([recipe.base] if recipe.base else []), *recipe.checkpoints, *vocabulary]


def sources_of(recipe: MergeRecipe, places: Mapping[str, ResolvedSource]) -> Sources:
    """Return the pool of a recipe, from digest -> where that model is."""

    def place(source: Source, name: str) -> ResolvedSource:
        return ResolvedSource(name, places[source.digest].directory, source.digest)

    return Sources(
        None if recipe.base is None else place(recipe.base, BASE_NAME),
        tuple(place(checkpoint, checkpoint.name) for checkpoint in recipe.checkpoints),
    )


def _of_mergekit(path: Path, directories: Sequence[Path]) -> RecipeFile:
    if directories:
        raise ConfigError.single(
            "--source", f"{path} names its models itself; change the names there"
        )
    config, lines = read_mergekit(path)
    names = _unique_names(config.referenced)
    resolved = resolve_sources(
        Models(
            checkpoints={
                name: ModelSource.model_validate(model)
                for name, model in zip(names, config.referenced, strict=True)
            }
        )
    )
    found = dict(zip(config.referenced, resolved.checkpoints, strict=True))
    reference = found[config.base or config.referenced[0]]
    layout, dtype = read_layout(Sources(None, (reference,)))
    imported = import_recipe(
        config,
        {model: Source(name=place.name, digest=place.digest) for model, place in found.items()},
        layout,
        dtype=dtype,
        name=str(path),
        lines=lines,
    )
    places = {place.digest: place for place in resolved.checkpoints}
    return RecipeFile(
        imported.recipe,
        sources_of(imported.recipe, places),
        {place.digest: model for model, place in found.items()},
        imported.notes,
    )


def _unique_names(models: Sequence[str]) -> list[str]:
    """Return a short name for each model, from the last part of its path."""
    names: list[str] = []
    for model in models:
        last = Path(model.partition("@")[0]).name
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", last).strip("-.") or "model"
        if name == BASE_NAME:
            name = "base-model"
        taken = name
        number = 2
        while taken in names:
            taken, number = f"{name}-{number}", number + 1
        names.append(taken)
    return names
