"""What a person should know who takes a mergekit configuration elsewhere."""

from collections.abc import Mapping

from pydantic import BaseModel

from configs.mergekit_form import RECIPE_KEY, MergekitConfig, Setting
from configs.recipe import MergeRecipe
from workers.layers import Layout


def differences(config: MergekitConfig, recipe: MergeRecipe, layout: Layout) -> list[str]:
    """Say what comes out differently, although it is the same merge."""
    notes = []
    if config.dtype is not None and not config.dtype.endswith("float32"):
        notes.append(
            f"mergekit reads the models as {config.dtype} and rounds every step to it; here sums "
            "are in float32 and rounded once"
        )
    if any(drop for row in recipe.drop_ratios for drop in row):
        if config.method.drops == "random":
            notes.append(
                "other elements are dropped than by mergekit, whose masks depend on its random "
                "state; what is kept is divided by 1 - p, where mergekit's `rescale` restores the "
                "L1 norm of each task vector, which is about the same"
            )
        if config.method.drops == "ranked":
            notes.append(
                "other elements are dropped than by mergekit, whose masks depend on its random "
                "state; what is kept is divided by its own 1 - p, as DELLA's authors have it, "
                "where mergekit restores the L1 norm of each task vector"
            )
    if config.tokenizer_source is not None:
        notes.append(
            "tables of tokens keep all their rows, where mergekit with `tokenizer_source` drops "
            "those without a token"
        )
    has_gradient = any(
        len(entry.values) > 1
        for section in _sections(config)
        for setting in section.values()
        for entry in setting
    )
    if has_gradient and not layout.stacks:
        notes.append("no layers were found by name, so lists of values mean their first one")
    return notes


def _sections(config: MergekitConfig) -> list[Mapping[str, Setting]]:
    sections: list[Mapping[str, Setting]] = [
        config.parameters,
        *(entry.parameters for entry in config.models or ()),
    ]
    for part in config.slices or ():
        sections += [part.parameters, *(source.parameters for source in part.sources)]
    return sections


def unused(config: MergekitConfig) -> list[str]:
    """Name what both programs ignore: it may be a typing error."""
    known = {*config.method.defaults, *config.method.per_model}
    keys = sorted({key for section in _sections(config) for key in section} - known)
    notes = [f"`{key}` means nothing to `{config.merge_method}`" for key in keys]
    parts: list[BaseModel] = [config, *(config.models or ()), *(config.slices or ())]
    parts += [source for part in config.slices or () for source in part.sources]
    extra = sorted({key for part in parts for key in part.model_extra or {}} - {RECIPE_KEY})
    return [*notes, *(f"`{key}` is not a key of mergekit's, and ignored" for key in extra)]
