"""The form of mergekit's configuration files, and what their parameters say for each tensor.

It is that of mergekit 0.1.5, which ignores keys that it does not know.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator

from configs.schema import DtypeName

RECIPE_KEY = "mergefront"
"""A key that mergekit ignores: the recipe that a file was written from."""


class Conditional(NamedTuple):
    """One value of a parameter: for tensors whose name holds ``filter``, or for all.

    Several values are a gradient: spread evenly over the layers, interpolated between.
    """

    filter: str | None
    values: tuple[float, ...]


Setting = tuple[Conditional, ...]
"""A parameter as it was written; the first entry whose filter fits a tensor decides."""


@dataclass(frozen=True, slots=True)
class MethodForm:
    """What mergekit's method of a name knows: its parameters, and their defaults.

    ``defaults`` are those of global parameters, ``per_model`` those of a model's; None must be
    given. ``drops`` says what ``density`` does.
    """

    needs_base: bool
    defaults: Mapping[str, float | None]
    per_model: Mapping[str, float | None]
    drops: Literal["none", "trim", "random", "ranked"] = "none"


def _task_vectors(
    *,
    normalize: bool,
    rescale: bool = False,
    drops: Literal["none", "trim", "random", "ranked"] = "none",
) -> MethodForm:
    per_model: dict[str, float | None] = {"weight": None}
    if drops != "none":
        per_model["density"] = 1.0
    if drops == "ranked":
        per_model["epsilon"] = 0.15
    defaults = {"normalize": float(normalize), "lambda": 1.0, "int8_mask": 0.0}
    if drops != "none":
        defaults["rescale"] = float(rescale)
    return MethodForm(True, defaults, per_model, drops)


METHODS: Mapping[str, MethodForm] = {
    "linear": MethodForm(False, {"normalize": 1.0}, {"weight": None}),
    "slerp": MethodForm(True, {"t": None}, {}),
    "task_arithmetic": _task_vectors(normalize=False),
    "ties": _task_vectors(normalize=True, drops="trim"),
    "dare_linear": _task_vectors(normalize=False, rescale=True, drops="random"),
    "dare_ties": _task_vectors(normalize=False, rescale=True, drops="random"),
    "della": _task_vectors(normalize=True, rescale=True, drops="ranked"),
    "della_linear": _task_vectors(normalize=False, rescale=True, drops="ranked"),
}
"""The methods that both sides have, under one name."""


def _numbers(value: object) -> tuple[float, ...]:
    items: list[Any] = value if isinstance(value, list) else [value]
    try:
        numbers = tuple(float(item) for item in items)
    except (TypeError, ValueError):
        numbers = ()
    if not numbers:
        raise ValueError(f"must be a number or a list of numbers over the layers, found {value!r}")
    return numbers


def _setting(value: object) -> Setting:
    match value:
        case Mapping():
            raise ValueError(
                "write a list of `- filter: ... / value: ...` entries, not one mapping"
            )
        case list() if any(isinstance(item, Mapping) for item in value):
            return tuple(_conditionals(value))
        case _:
            return (Conditional(None, _numbers(value)),)


def _conditionals(items: list[object]) -> Iterator[Conditional]:
    for item in items:
        if not isinstance(item, Mapping) or "value" not in item:
            raise ValueError(f"every entry of a list with filters needs `value`, found {item!r}")
        name = item.get("filter")
        yield Conditional(None if name in (None, "*") else str(name), _numbers(item["value"]))


def _model(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"must be a directory or a hub id, as text, found {value!r}")
    return value.strip()


def _none_as_empty(value: object) -> object:
    return {} if value is None else value


Parameters = Annotated[
    dict[str, Annotated[Setting, PlainValidator(_setting)]], BeforeValidator(_none_as_empty)
]
ModelName = Annotated[str, PlainValidator(_model)]


class _Part(BaseModel):
    # Unknown keys are kept, to be told: mergekit drops them silently.
    model_config = ConfigDict(extra="allow", frozen=True)


class Input(_Part):
    """One model of a merge."""

    model: ModelName
    parameters: Parameters = Field(default_factory=dict)


class SliceInput(Input):
    """Some layers of one model: ``layer_range`` is (first, one past the last)."""

    layer_range: tuple[int, int]


class Slice(_Part):
    """Consecutive layers of the merged model, and where they come from."""

    sources: Annotated[tuple[SliceInput, ...], Field(min_length=1)]
    base_model: ModelName | None = None
    residual_weight: float | None = None
    parameters: Parameters = Field(default_factory=dict)


class MergekitConfig(_Part):
    """A configuration file of ``mergekit-yaml``."""

    merge_method: str
    base_model: ModelName | None = None
    models: tuple[Input, ...] | None = None
    slices: tuple[Slice, ...] | None = None
    modules: dict[str, Any] | None = None
    parameters: Parameters = Field(default_factory=dict)
    dtype: str | None = None
    out_dtype: str | None = None
    tokenizer_source: Any = None
    tokenizer: Any = None
    chat_template: str | None = None

    @property
    def method(self) -> MethodForm:
        """The parameters of the method."""
        return METHODS[self.merge_method]

    @property
    def base(self) -> str | None:
        """The base of the whole merge, also where only the slices name it."""
        if self.base_model is None and self.slices:
            return self.slices[0].base_model
        return self.base_model

    @property
    def referenced(self) -> tuple[str, ...]:
        """Every model that is named, the base first, each once."""
        inputs = [*(self.models or ()), *(s for part in self.slices or () for s in part.sources)]
        named = [self.base] if self.base else []
        return tuple(dict.fromkeys([*named, *(entry.model for entry in inputs)]))

    @property
    def result_dtype(self) -> DtypeName | None:
        """Data type of the merged tensors; None is that of the models."""
        name = self.out_dtype or self.dtype
        return None if name is None else cast("DtypeName", name.removeprefix("torch."))

    def settings_at(self, part: Slice | None, model: str | None) -> Iterator[Parameters]:
        """Yield the sections that may set a parameter of a model, the one that wins first.

        Args:
            part: The slice that a tensor is in; None where there are no slices.
            model: None for parameters of the whole merge.
        """
        sources: Sequence[Input] = (part.sources if part else self.models) or ()
        if model is not None:
            yield from (source.parameters for source in sources if source.model == model)
        if part is not None:
            yield part.parameters
        yield self.parameters


def value_of(setting: Setting, tensor_name: str, position: float) -> float | None:
    """Return what a setting says for a tensor; None where no filter fits.

    Args:
        setting: From the file.
        tensor_name: Full name; a filter fits where it is a part of it.
        position: Of the tensor's layer in its slice, from 0 (first) to 1 (last).
    """
    for entry in setting:
        if entry.filter is None or entry.filter in tensor_name:
            place = position * (len(entry.values) - 1)
            low = int(place)
            high = min(low + 1, len(entry.values) - 1)
            share = place - low
            return (1.0 - share) * entry.values[low] + share * entry.values[high]
    return None
