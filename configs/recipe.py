"""What a merge is: a recipe determines the merged tensors bit for bit (D1).

A recipe holds everything that enters a merge and nothing else: not the worker, shard order,
thread count or batch. ``recipe_id`` is its name for good.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from configs.schema import DtypeName

MASK_VERSION: Literal[1] = 1
"""Version of the mask function in ``workers.mask``; another function is another version."""


def _positive_zero(value: float) -> float:
    # -0.0 and 0.0 give the same merge and must give the same id.
    return value + 0.0


Weight = Annotated[float, Field(allow_inf_nan=False), AfterValidator(_positive_zero)]
DropRatio = Annotated[
    float, Field(ge=0.0, lt=1.0, allow_inf_nan=False), AfterValidator(_positive_zero)
]


# A recipe with a group per layer has more patterns than `re` keeps compiled.
_compiled = lru_cache(maxsize=2**16)(re.compile)


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """One checkpoint of a recipe: its name for people, and the digest of its tensors."""

    name: str
    digest: str


class Group(_Part):
    """A named set of tensors: those whose name fully matches one of the patterns."""

    name: str
    patterns: tuple[str, ...] = Field(min_length=1)

    @field_validator("patterns")
    @classmethod
    def _compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                _compiled(pattern)
            except re.error as error:
                raise ValueError(f"`{pattern}` is not a regular expression: {error}") from error
        return patterns

    def holds(self, tensor_name: str) -> bool:
        """Say whether a tensor belongs to this group."""
        return any(_compiled(pattern).fullmatch(tensor_name) for pattern in self.patterns)


class TokenTable(_Part):
    """Length of one model's tables of tokens: all rows, and those that stand for a token.

    Rows beyond ``tokens`` are padding.
    """

    digest: str
    rows: int = Field(gt=0)
    tokens: int = Field(ge=0)


class Vocabulary(_Part):
    """How tables of tokens (embeddings, output head) of different lengths become one.

    ``rows`` is the length of the merged tables. ``intersect`` keeps the rows that every model
    has; ``pad`` keeps all, and a checkpoint contributes nothing to the rows that it lacks.
    ``source`` is the model whose tokenizer goes with them. ``tables`` are those of the models,
    the base first; where a model lacks a row, the first that has it gives its own.
    """

    policy: Literal["intersect", "pad"]
    rows: int = Field(gt=0)
    source: Source
    tables: tuple[TokenTable, ...] = Field(min_length=1)


class MergeRecipe(_Part):
    """Method, sources, and one weight and drop ratio per checkpoint and group.

    ``weights[i][g]`` and ``drop_ratios[i][g]`` belong to ``checkpoints[i]`` and ``groups[g]``;
    weights are dimensionless and may be negative, drop ratios are in [0, 1). ``options`` are
    those of the method, complete. ``vocabulary`` is None where all models have equal shapes.
    ``coefficients`` names a file with one number per input column, tensor and checkpoint
    (``workers.column_coefficients``), for methods that take them; None for the others.
    """

    version: Literal[1] = 1
    method: str
    base: Source | None
    checkpoints: tuple[Source, ...] = Field(min_length=1)
    groups: tuple[Group, ...] = Field(min_length=1)
    weights: tuple[tuple[Weight, ...], ...]
    drop_ratios: tuple[tuple[DropRatio, ...], ...]
    options: dict[str, Weight] = Field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    # Left out where there is none: older versions know no such field, and read all other recipes.
    coefficients: Source | None = Field(default=None, exclude_if=lambda value: value is None)
    dtype: DtypeName
    mask_seed: int = Field(default=0, ge=0, lt=2**63)
    mask_version: Literal[1] = MASK_VERSION

    @model_validator(mode="after")
    def _shapes_fit(self) -> Self:
        expected = (len(self.checkpoints), len(self.groups))
        for field, rows in (("weights", self.weights), ("drop_ratios", self.drop_ratios)):
            if len(rows) != expected[0] or any(len(row) != expected[1] for row in rows):
                found = f"{len(rows)} x {sorted({len(row) for row in rows})}"
                raise ValueError(
                    f"{field} must be (checkpoints, groups) = {expected}, found {found}"
                )
        return self

    @cached_property
    def recipe_id(self) -> str:
        """SHA-256 of the canonical JSON, as 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields replaced, which has an id of its own."""
        copied = super().model_copy(update=update, deep=deep)
        # Taken over with the fields.
        copied.__dict__.pop("recipe_id", None)
        return copied

    def canonical_json(self) -> str:
        """Return the one JSON text of this recipe: sorted keys, no spaces, no names.

        Names of checkpoints and groups are for people; digests and patterns are what counts.
        """
        content = self.model_dump(mode="json")
        # What a recipe does not use is left out, so that its id does not depend on what others can.
        for field in ("options", "vocabulary"):
            if not content[field]:
                del content[field]
        parts = [content["base"], *content["checkpoints"], *content["groups"]]
        if self.vocabulary is not None:
            parts.append(content["vocabulary"]["source"])
        parts.append(content.get("coefficients"))
        for part in parts:
            if part is not None:
                del part["name"]
        return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)

    def group_of(self, tensor_name: str) -> int:
        """Return the index of the group that holds a tensor.

        Raises:
            ValueError: The tensor is in no group, or in more than one.
        """
        found = [index for index, group in enumerate(self.groups) if group.holds(tensor_name)]
        if len(found) != 1:
            names = ", ".join(self.groups[index].name for index in found) or "none"
            raise ValueError(f"tensor `{tensor_name}` must be in exactly one group, is in {names}")
        return found[0]

    @property
    def effective_checkpoints(self) -> float:
        """(sum |w|)^2 / sum w^2 over all weights: N for equal weights, 1 for a single one."""
        flat = [abs(weight) for row in self.weights for weight in row]
        squares = math.fsum(weight * weight for weight in flat)
        return math.fsum(flat) ** 2 / squares / len(self.groups) if squares else 0.0
