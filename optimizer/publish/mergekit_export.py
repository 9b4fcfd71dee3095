"""From a recipe to a mergekit configuration that says the same, or to the reasons why none does.

Groups become filters: parts of tensor names, found among the names that the models really have. The
recipe itself is kept under a key that mergekit ignores, since a few things of it (mask seed, names
of groups) have no other place; ``optimizer.publish.mergekit_import`` takes it back as long as the
rest of the file still says the same.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from operator import itemgetter

import yaml

from configs.errors import ConfigError, Problem
from configs.mergekit_form import METHODS, RECIPE_KEY, MethodForm
from configs.recipe import MergeRecipe, Source
from workers.layers import Layout

Value = float | bool | str


def mergekit_yaml(recipe: MergeRecipe, layout: Layout, spelled: Mapping[str, str]) -> str:
    """Write a recipe as a mergekit configuration.

    Args:
        recipe: Any recipe.
        layout: The tensors of its models.
        spelled: Digest -> directory or hub id, as mergekit will read it, for every model.

    Raises:
        ConfigError: mergekit cannot say it; lists every reason.
    """
    problems = list(_problems(recipe, layout, spelled))
    if problems:
        raise ConfigError(f"recipe {recipe.recipe_id[:10]} cannot be said to mergekit", problems)
    form = METHODS[recipe.method]
    groups = {name: recipe.group_of(name) for name in layout.names}
    content: dict[str, object] = {"merge_method": recipe.method}
    base = _base_of(recipe)
    if base is not None:
        content["base_model"] = spelled[base.digest]
    models = [
        {"model": spelled[checkpoint.digest], **_inputs(recipe, index, groups, form)}
        for index, checkpoint in enumerate(recipe.checkpoints)
    ]
    if recipe.method == "linear" and base and not _listed(recipe):
        # Without a weight of its own mergekit would fail on it.
        models.append({"model": spelled[base.digest], "parameters": {"weight": 0.0}})
    content["models"] = models
    if parameters := _parameters(recipe, groups, form):
        content["parameters"] = parameters
    content |= {"dtype": "float32", "out_dtype": recipe.dtype}
    content[RECIPE_KEY] = {"recipe": recipe.model_dump(mode="json")}
    header = (
        f"# mergefront recipe {recipe.recipe_id}.\n"
        f"# mergekit ignores the key `{RECIPE_KEY}`; it keeps what has no other place here.\n"
    )
    if recipe.method == "slerp" and recipe.base and not _listed(recipe):
        # It has no place: what mergekit calls the base of slerp is the first of the two.
        header += f"# The tokenizer is that of `{base.name if base else ''}`, not of the base.\n"
        content.pop(RECIPE_KEY)
    return header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=100)


def density_of(drop_ratio: float) -> float:
    """Return 1 - p, in decimal: of 0.1 it is 0.9."""
    return float(1 - Decimal(repr(drop_ratio)))


def filtered(values: Mapping[str, float]) -> float | list[dict[str, object]]:
    """Say one number per tensor as mergekit does: a number, or values with filters.

    The most common value stands last, without a filter. The others get the shortest parts of names
    that only their tensors have; those that hold for the most tensors come first.

    Args:
        values: Tensor name -> value; at least one.
    """
    counts: dict[float, int] = {}
    for value in values.values():
        counts[value] = counts.get(value, 0) + 1
    rest = max(counts, key=lambda value: counts[value])
    if len(counts) == 1:
        return rest
    names = list(values)
    same = {value: _bits(values[name] == value for name in names) for value in counts}
    texts = sorted({text for name in names for text in _parts(name)}, key=_by_length)
    matched = {text: _bits(text in name for name in names) for text in texts}
    entries: list[dict[str, object]] = []
    remaining = (1 << len(names)) - 1
    while remaining & ~same[rest]:
        filters: list[tuple[int, str, float]] = []
        for text, bits in list(matched.items()):
            hits = bits & remaining
            if not hits:
                del matched[text]
                continue
            value = values[names[hits.bit_length() - 1]]
            # Only where a name is part of another name do tensors of the rest need a filter.
            size = hits.bit_count() if value != rest else 0
            if not hits & ~same[value]:
                filters.append((size, text, value))
        # There is one: the longest remaining name is in no other.
        _, text, value = max(filters, key=itemgetter(0))
        entries.append({"filter": text, "value": value})
        remaining &= ~matched[text]
    return [*entries, {"value": rest}]


def _bits(holds: Iterable[bool]) -> int:
    return sum(1 << index for index, hold in enumerate(holds) if hold)


def _by_length(text: str) -> tuple[int, str]:
    return len(text), text


def _parts(name: str) -> Iterator[str]:
    """Yield runs of a name's components, and the whole name; numbers only with their dots."""
    components = name.split(".")
    for begin in range(len(components)):
        for end in range(begin + 1, len(components) + 1):
            run = components[begin:end]
            before = "." if begin and run[0].isdigit() else ""
            after = "." if end < len(components) and run[-1].isdigit() else ""
            if not (run[0].isdigit() and not before) and not (run[-1].isdigit() and not after):
                yield f"{before}{'.'.join(run)}{after}"
    yield name


def _listed(recipe: MergeRecipe) -> list[Source]:
    digests = {checkpoint.digest for checkpoint in recipe.checkpoints}
    return [recipe.base] if recipe.base and recipe.base.digest in digests else []


def _base_of(recipe: MergeRecipe) -> Source | None:
    return recipe.checkpoints[0] if recipe.method == "slerp" else recipe.base


def _inputs(
    recipe: MergeRecipe, index: int, groups: Mapping[str, int], form: MethodForm
) -> dict[str, object]:
    """Return the parameters of one model."""
    parameters: dict[str, object] = {}
    if "weight" in form.per_model:
        row = recipe.weights[index]
        parameters["weight"] = filtered({name: row[group] for name, group in groups.items()})
    if "density" in form.per_model:
        drops = recipe.drop_ratios[index]
        parameters["density"] = filtered(
            {name: density_of(drops[group]) for name, group in groups.items()}
        )
    if "epsilon" in form.per_model:
        parameters["epsilon"] = recipe.options["epsilon"] / 2
    return {"parameters": parameters} if parameters else {}


def _parameters(
    recipe: MergeRecipe, groups: Mapping[str, int], form: MethodForm
) -> dict[str, object]:
    """Return the parameters of the whole merge."""
    if recipe.method == "slerp":
        shares = [_share(recipe, group) for group in range(len(recipe.groups))]
        return {"t": filtered({name: shares[group] for name, group in groups.items()})}
    parameters: dict[str, object] = {"normalize": bool(recipe.options.get("normalize", 0.0))}
    if recipe.options.get("scale", 1.0) != 1.0:
        parameters["lambda"] = recipe.options["scale"]
    if form.drops in ("random", "ranked"):
        parameters["rescale"] = True
    return parameters


def _share(recipe: MergeRecipe, group: int) -> float:
    first, second = (row[group] for row in recipe.weights)
    return second / (first + second)


def _problems(recipe: MergeRecipe, layout: Layout, spelled: Mapping[str, str]) -> Iterator[Problem]:
    """Yield every reason why mergekit cannot be told."""
    form = METHODS.get(recipe.method)
    if form is None:
        yield Problem("method", f"mergekit has no `{recipe.method}`")
    if recipe.coefficients is not None:
        yield Problem(
            "coefficients", "mergekit has one weight per tensor, and no number per input column"
        )
    if recipe.vocabulary is not None:
        yield Problem(
            "vocabulary", "mergekit joins tables of tokens of different lengths in another way"
        )
    yield from _source_problems(recipe, spelled, form)
    for name in layout.names:
        try:
            recipe.group_of(name)
        except ValueError as error:
            yield Problem("groups", f"{error}; the recipe was made for other models")
            break
    if form is not None and form.drops == "ranked":
        half_width = recipe.options.get("epsilon", 0.0) / 2
        found = sorted({drop for row in recipe.drop_ratios for drop in row if drop})
        if bad := [drop for drop in found if not half_width < min(drop, 1 - drop)]:
            yield Problem(
                "options.epsilon",
                f"mergekit needs p +/- {half_width:g} between 0 and 1, found "
                f"{', '.join(f'{drop:g}' for drop in bad)}",
            )
    if recipe.method == "slerp" and not all(
        math.fsum(row[group] for row in recipe.weights) for group in range(len(recipe.groups))
    ):
        yield Problem("weights", "weights that sum to zero have no share t")


def _source_problems(
    recipe: MergeRecipe, spelled: Mapping[str, str], form: MethodForm | None
) -> Iterator[Problem]:
    models = [*([recipe.base] if recipe.base else []), *recipe.checkpoints]
    for source in dict.fromkeys(models):
        text = spelled.get(source.digest)
        if text is None:
            yield Problem(source.name, f"no directory is known for digest {source.digest[:12]}")
        elif "+" in text or text.count("@") > 1:
            yield Problem(
                source.name, f"mergekit takes `+` and `@` in `{text}` for an adapter or a revision"
            )
    places = [spelled.get(checkpoint.digest, "") for checkpoint in recipe.checkpoints]
    if twice := sorted({place for place in places if place and places.count(place) > 1}):
        yield Problem("checkpoints", f"mergekit takes each model once, `{twice[0]}` is there twice")
    if form is not None and form.needs_base and recipe.method != "slerp" and _listed(recipe):
        yield Problem(
            "checkpoints", "the base is one of the checkpoints too, which mergekit passes over"
        )
