"""What a recipe says about each tensor: a small plan per tensor, that the kernels follow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch

from configs.errors import ConfigError
from configs.recipe import MergeRecipe
from workers.mask import mask_threshold
from workers.methods import MergeMethod, get_method


@dataclass(frozen=True, slots=True)
class MergeTerm:
    """What one checkpoint contributes to one tensor.

    ``weight`` is dimensionless and finite; ``drop_ratio`` is in [0, 1); ``digest`` names the
    checkpoint in the mask.
    """

    weight: float
    drop_ratio: float
    digest: str

    def __post_init__(self) -> None:
        if not 0.0 <= self.drop_ratio < 1.0:
            raise ValueError(f"drop_ratio must be in [0, 1), got {self.drop_ratio}")
        rescaled = self.weight / (1.0 - self.drop_ratio)
        if not math.isfinite(rescaled) or abs(rescaled) > torch.finfo(torch.float32).max:
            raise ValueError(
                f"weight / (1 - drop_ratio) must be finite in float32, got {self.weight} / "
                f"(1 - {self.drop_ratio})"
            )

    @property
    def contributes(self) -> bool:
        """Whether the checkpoint enters the result at all.

        A weight of zero skips it, so that its infinities and NaN do not spread as 0 * inf.
        """
        return self.weight != 0.0 and mask_threshold(self.drop_ratio) < 2**32


@dataclass(frozen=True, slots=True)
class TensorMerge:
    """All that decides how one tensor is merged, besides its elements.

    Attributes:
        method: From :func:`workers.methods.get_method`.
        tensor_name: Name of the tensor in its checkpoint; part of the mask's key.
        terms: One per checkpoint.
        options: The method's, complete.
        mask_seed: Seed of the masks.
        base_digest: Names the base among what is kept in a cache of statistics.
        group: Index of the recipe's group that holds the tensor.
        active: Positions of the terms that contribute, ascending; follows from ``terms``.
    """

    method: MergeMethod
    tensor_name: str
    terms: tuple[MergeTerm, ...]
    options: Mapping[str, float] = field(default_factory=dict)
    mask_seed: int = 0
    base_digest: str = "base"
    group: int = 0
    active: tuple[int, ...] = field(init=False, compare=False)

    def __post_init__(self) -> None:
        if not self.terms:
            raise ValueError("a merge needs at least one term")
        if not self.method.uses_drop_ratios and any(term.drop_ratio for term in self.terms):
            raise ValueError(f"method `{self.method.name}` drops nothing; drop ratios must be 0")
        if self.method.num_checkpoints not in (None, len(self.terms)):
            raise ValueError(
                f"method `{self.method.name}` merges {self.method.num_checkpoints} checkpoints, "
                f"got {len(self.terms)}"
            )
        active = tuple(index for index, term in enumerate(self.terms) if term.contributes)
        object.__setattr__(self, "active", active)

    @property
    def active_terms(self) -> list[MergeTerm]:
        """The terms that contribute."""
        return [self.terms[index] for index in self.active]

    @property
    def scales(self) -> tuple[float, ...]:
        """Factors of what is kept of the contributing checkpoints, but for coefficients."""
        if self.method.drop == "random":
            return tuple(term.weight / (1.0 - term.drop_ratio) for term in self.active_terms)
        return tuple(term.weight for term in self.active_terms)

    @property
    def drops_any(self) -> bool:
        """Whether anything of a contributing checkpoint is dropped."""
        return any(self.terms[index].drop_ratio > 0.0 for index in self.active)


def require_coefficients(recipe: MergeRecipe) -> None:
    """Check that a recipe has column coefficients where its method takes them, and only there.

    Raises:
        ConfigError: It lacks them, or has too many; or its method is not known here.
    """
    takes = get_method(recipe.method).takes_columns
    if takes and recipe.coefficients is None:
        raise ConfigError.single(
            "coefficients",
            f"`{recipe.method}` needs one coefficient per input column, and the recipe names "
            "none; `mergefront learn` makes such recipes",
        )
    if not takes and recipe.coefficients is not None:
        raise ConfigError.single(
            "coefficients", f"`{recipe.method}` takes none; remove them, or use the method `dam`"
        )


class RecipePlan:
    """How a recipe merges each tensor; what a group's tensors share is worked out once.

    Args:
        recipe: What is merged.

    Raises:
        ConfigError: The recipe's method or its options are not known here, or it has column
            coefficients where the method takes none, or lacks them.
        ValueError: The recipe does not fit its method.
    """

    def __init__(self, recipe: MergeRecipe) -> None:
        self.recipe = recipe
        self._method = get_method(recipe.method)
        require_coefficients(recipe)
        self._options = self._method.complete_options(recipe.options)
        self._base_digest = "" if recipe.base is None else recipe.base.digest
        columns = list(zip(recipe.checkpoints, recipe.weights, recipe.drop_ratios, strict=True))
        self._terms = [
            tuple(MergeTerm(w[group], p[group], source.digest) for source, w, p in columns)
            for group in range(len(recipe.groups))
        ]

    def tensor(self, name: str) -> TensorMerge:
        """Say how one tensor is merged.

        Raises:
            ValueError: The tensor is not in exactly one group.
        """
        return self._in_group(self.recipe.group_of(name), name)

    def group(self, index: int) -> TensorMerge:
        """Say what all tensors of a group have in common; the name is empty."""
        return self._in_group(index, "")

    @cached_property
    def structure(self) -> tuple[object, ...]:
        """What decides the merge besides weights and drop ratios, of which it counts who is zero.

        Recipes of equal structure read the same, in the same places, by the same code.
        """
        recipe = self.recipe
        digests = (self._base_digest, *(source.digest for source in recipe.checkpoints))
        groups = [self.group(index) for index in range(len(recipe.groups))]
        return (
            self._method.name,
            tuple(sorted(self._options.items())),
            digests,
            recipe.groups,
            recipe.dtype,
            recipe.vocabulary,
            recipe.coefficients,
            recipe.mask_seed,
            tuple((group.active, group.drops_any) for group in groups),
        )

    def _in_group(self, index: int, name: str) -> TensorMerge:
        return TensorMerge(
            method=self._method,
            tensor_name=name,
            terms=self._terms[index],
            options=self._options,
            mask_seed=self.recipe.mask_seed,
            base_digest=self._base_digest,
            group=index,
        )
