"""Whether two recipes merge the same models in the same way, tensor by tensor."""

import math
from collections.abc import Collection, Sequence

from configs.recipe import MergeRecipe, Source
from workers.methods import get_method

# 1 - (1 - p) and (1 - t) + t are off by a rounding or two.
_TOLERANCE = 1e-12


def is_same_merge(
    recipe: MergeRecipe, other: MergeRecipe, names: Sequence[str], models: Collection[Source]
) -> bool:
    """Say whether two recipes mean the same, apart from groups, names, mask seed and roundings.

    Args:
        recipe: One that may name models that are not there.
        other: One that only names ``models``.
        names: The floating tensors.
        models: What is there.
    """
    wanted = {source.digest for source in (recipe.base, *recipe.checkpoints) if source}
    if (
        not wanted <= {model.digest for model in models}
        or recipe.vocabulary != other.vocabulary
        or (recipe.method, recipe.dtype) != (other.method, other.dtype)
        or recipe.options.keys() != other.options.keys()
        or not all(_near(recipe.options[key], other.options[key]) for key in recipe.options)
        or _reference(recipe) != _reference(other)
    ):
        return False
    try:
        return all(_same_terms(_terms(recipe, name), _terms(other, name)) for name in names)
    except ValueError:  # a tensor in no group, or in several
        return False


def _reference(recipe: MergeRecipe) -> str:
    return (recipe.base or recipe.checkpoints[0]).digest


def _terms(recipe: MergeRecipe, name: str) -> dict[str, tuple[float, float]]:
    """Return digest -> (weight, drop ratio) of what contributes to a tensor."""
    group = recipe.group_of(name)
    weights = [row[group] for row in recipe.weights]
    if get_method(recipe.method).coefficients is not None:  # only the ratio of weights counts
        total = math.fsum(weights)
        weights = [weight / total if total else math.nan for weight in weights]
    return {
        checkpoint.digest: (weight, drops[group])
        for checkpoint, weight, drops in zip(
            recipe.checkpoints, weights, recipe.drop_ratios, strict=True
        )
        if weight
    }


def _same_terms(
    here: dict[str, tuple[float, float]], there: dict[str, tuple[float, float]]
) -> bool:
    for digest in here.keys() | there.keys():
        # What only one of them has may be a weight that was rounded to zero.
        weight, drop = here.get(digest, (0.0, None))
        other_weight, other_drop = there.get(digest, (0.0, None))
        if not _near(weight, other_weight):
            return False
        if drop is not None and other_drop is not None and not _near(drop, other_drop):
            return False
    return True


def _near(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
