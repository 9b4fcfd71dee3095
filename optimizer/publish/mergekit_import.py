"""From a mergekit configuration to a recipe: the same merge, said tensor by tensor.

mergekit looks up every parameter for every tensor, by layer and by filter; tensors for which
all come out alike become one group. Where the two differ in numbers a note says so; what cannot be
said is refused with all reasons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from configs.errors import ConfigError, Problem
from configs.job_yaml import Lines
from configs.mergekit import refusal
from configs.mergekit_form import RECIPE_KEY, MergekitConfig
from configs.recipe import Group, MergeRecipe, Source
from configs.schema import DtypeName
from optimizer.publish.mergekit_columns import Column, Findings, TensorReader
from optimizer.publish.mergekit_notes import differences, unused
from optimizer.publish.recipe_match import is_same_merge
from workers.layers import Layout
from workers.methods import get_method


@dataclass(frozen=True, slots=True)
class Imported:
    """A recipe, and what is not quite the same as in mergekit, one sentence each."""

    recipe: MergeRecipe
    notes: tuple[str, ...]


def import_recipe(
    config: MergekitConfig,
    models: Mapping[str, Source],
    layout: Layout,
    *,
    dtype: DtypeName,
    name: str = "the configuration",
    lines: Lines | None = None,
) -> Imported:
    """Turn a configuration into a recipe.

    Args:
        config: From ``configs.mergekit``.
        models: Every model that it names -> name and digest.
        layout: Tensors and layers, which all models share.
        dtype: Of the merged tensors where the configuration does not say.
        name: What messages call the configuration.
        lines: Where its keys stand, for messages.

    Raises:
        ConfigError: It asks for something that no recipe says; lists every reason.
    """
    findings = Findings()
    problems = _layer_problems(config, layout)
    participants = _participants(config)
    columns: dict[str, Column] = {}
    if not problems:
        reader = TensorReader(config, participants, layout, findings)
        columns = {tensor: reader.column(tensor) for tensor in layout.names}
    problems += findings.problems(len(layout.names))
    options = _common_options(config, columns, problems)
    if problems:
        raise refusal(problems, name=name, lines=lines)
    recipe = _build(
        config, models, layout, participants, columns=columns, options=options, dtype=dtype
    )
    notes = [*differences(config, recipe, layout), *unused(config)]
    given = _given_recipe(config)
    if given is not None:
        if is_same_merge(given, recipe, layout.names, set(models.values())):
            return Imported(given, tuple(notes))
        notes.append(
            f"the recipe under `{RECIPE_KEY}` says something else than the rest of the file, "
            "which counts; that recipe is ignored"
        )
    return Imported(recipe, tuple(notes))


def _participants(config: MergekitConfig) -> tuple[str, ...]:
    """Return the models that have weights; for slerp the base comes first."""
    others = tuple(model for model in config.referenced if model != config.base)
    if config.merge_method == "slerp":
        return (config.base or "", *others)
    if config.merge_method != "linear" or config.base is None:
        return others
    listed = [entry.model for entry in config.models or ()]
    return tuple(dict.fromkeys([*listed, *others, config.base]))


def _layer_problems(config: MergekitConfig, layout: Layout) -> list[Problem]:
    if not config.slices:
        return []
    if len(layout.stacks) != 1:
        found = ", ".join(f"`{stack}`" for stack in layout.stacks) or "none"
        return [Problem("slices", f"the models need one stack of layers to be cut, found {found}")]
    count, end = next(iter(layout.stacks.values())), config.slices[-1].sources[0].layer_range[1]
    if end == count:
        return []
    return [
        Problem(
            f"slices[{len(config.slices) - 1}].sources[0].layer_range",
            f"the slices must hold all {count} layers of the models, they end at {end}",
        )
    ]


def _common_options(
    config: MergekitConfig, columns: Mapping[str, Column], problems: list[Problem]
) -> dict[str, float]:
    """Return the options of the method, which a recipe has once for all tensors."""
    found: dict[str, set[float]] = {}
    for column in columns.values():
        for key, value in column.options:
            found.setdefault(key, set()).add(value)
    for key, values in found.items():
        if len(values) > 1:
            theirs = "lambda" if key == "scale" else key
            problems.append(
                Problem(
                    f"parameters.{theirs}",
                    f"`{theirs}` of `{config.merge_method}` must be the same for all tensors, "
                    f"found {', '.join(f'{value:g}' for value in sorted(values))}",
                )
            )
    options = {key: max(values) for key, values in found.items()}
    try:
        return get_method(config.merge_method).complete_options(options)
    except ConfigError as error:
        problems += [
            Problem(problem.path.replace("merge.options.", "parameters."), problem.message)
            for problem in error.problems
        ]
        return {}


def _build(
    config: MergekitConfig,
    models: Mapping[str, Source],
    layout: Layout,
    participants: Sequence[str],
    *,
    columns: Mapping[str, Column],
    options: Mapping[str, float],
    dtype: DtypeName,
) -> MergeRecipe:
    members: dict[Column, list[str]] = {}
    for tensor, column in columns.items():
        members.setdefault(column, []).append(tensor)
    labels: list[str] = []
    for names in members.values():
        label = layout.label(names)
        labels.append(label if label not in labels else f"{label}.{len(labels)}")
    # A base that is listed with weight 0 only lends its configuration and tokenizer.
    taking_part = [
        index
        for index, model in enumerate(participants)
        if config.merge_method != "linear"
        or model != config.base
        or any(column.weights[index] for column in members)
    ]
    return MergeRecipe(
        method=config.merge_method,
        base=None
        if config.base is None
        else models[config.base].model_copy(update={"name": "base"}),
        checkpoints=tuple(models[participants[index]] for index in taking_part),
        groups=tuple(
            Group(name=label, patterns=layout.patterns(names))
            for label, names in zip(labels, members.values(), strict=True)
        ),
        weights=tuple(tuple(column.weights[index] for column in members) for index in taking_part),
        drop_ratios=tuple(
            tuple(column.drop_ratios[index] for column in members) for index in taking_part
        ),
        options=dict(options),
        dtype=config.result_dtype or dtype,
    )


def _given_recipe(config: MergekitConfig) -> MergeRecipe | None:
    content = (config.model_extra or {}).get(RECIPE_KEY)
    if not isinstance(content, Mapping):
        return None
    try:
        return MergeRecipe.model_validate(content.get("recipe"))
    except ValidationError:
        return None
