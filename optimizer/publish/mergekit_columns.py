"""mergekit's parameters, looked up for one tensor and turned into ours."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from configs.errors import Problem
from configs.mergekit_form import MergekitConfig, Slice, value_of
from workers.layers import Layout

# mergekit divides by the sum of the weights of task vectors unless it is this near to zero.
_SMALLEST_SUM = 1e-8
_ELECTING = frozenset({"ties", "dare_ties", "della"})


class Column(NamedTuple):
    """What holds for one tensor; weights and drop ratios in the order of the participants."""

    weights: tuple[float, ...]
    drop_ratios: tuple[float, ...]
    options: tuple[tuple[str, float], ...]


@dataclass(slots=True)
class Findings:
    """Why tensors cannot be merged as asked: each reason once, with the tensors it is about."""

    tensors: dict[Problem, list[str]] = field(default_factory=dict)

    def add(self, path: str, message: str, tensor: str) -> None:
        """Record that a tensor cannot be merged as asked."""
        self.tensors.setdefault(Problem(path, message), []).append(tensor)

    def problems(self, total: int) -> list[Problem]:
        """Return each reason once; ``total`` is the number of all tensors."""
        return [
            Problem(path, message)
            if len(names) == total
            else Problem(
                path, f"{message} (for {len(names)} of {total} tensors, e.g. `{names[0]}`)"
            )
            for (path, message), names in self.tensors.items()
        ]


def drop_ratio_of(density: float) -> float:
    """Return p = 1 - density, in decimal: 0.9 is 0.1, not 0.09999999999999998."""
    return 0.0 if density >= 1.0 else float(1 - Decimal(repr(density)))


class TensorReader:
    """Looks up the parameters of tensors."""

    def __init__(
        self,
        config: MergekitConfig,
        participants: Sequence[str],
        layout: Layout,
        findings: Findings,
    ) -> None:
        self._config = config
        self._participants = participants
        self._layout = layout
        self._findings = findings

    def column(self, tensor: str) -> Column:
        """Return what holds for a tensor; what cannot be said goes to the findings."""
        part, position = self._position(tensor)
        values = {
            key: self._value(key, tensor, part, position, default=default)
            for key, default in self._config.method.defaults.items()
        }
        if self._config.merge_method == "slerp":
            share = values["t"]
            return Column((1.0 - share, share), (0.0, 0.0), ())
        present = self._participants
        if part is not None:
            present = tuple(source.model for source in part.sources)
        rows = {
            model: {
                key: self._value(key, tensor, part, position, model=model, default=default)
                for key, default in self._config.method.per_model.items()
            }
            for model in self._participants
            if model in present
        }
        return self._combine(tensor, values, rows)

    def _position(self, tensor: str) -> tuple[Slice | None, float]:
        """Return the slice that a tensor is in, and where its layer is between 0 and 1."""
        slices = self._config.slices
        place = self._layout.place(tensor)
        if place is None:
            if not slices:
                return None, 0.0
            return slices[0 if self._layout.is_before_layers(tensor) else -1], 0.0
        part, low, high = None, 0, self._layout.stacks[place.stack]
        for candidate in slices or ():
            begin, end = candidate.sources[0].layer_range
            if begin <= place.layer < end:
                part, low, high = candidate, begin, end
        return part, (place.layer - low) / (high - low - 1) if high - low > 1 else 1.0

    def _value(
        self,
        key: str,
        tensor: str,
        part: Slice | None,
        position: float,
        *,
        model: str | None = None,
        default: float | None,
    ) -> float:
        for section in self._config.settings_at(part, model):
            if key in section:
                found = value_of(section[key], tensor, position)
                if found is not None:
                    return found
        if default is None:
            of = f" of `{model}`" if model else ""
            self._findings.add("", f"`{key}`{of} is not given", tensor)
            return 1.0
        return default

    def _combine(
        self, tensor: str, values: Mapping[str, float], rows: Mapping[str, Mapping[str, float]]
    ) -> Column:
        """Turn mergekit's parameters of one tensor into ours."""
        weights = {model: row["weight"] for model, row in rows.items()}
        drops = {
            model: self._drop_ratio(model, row["density"], tensor)
            for model, row in rows.items()
            if "density" in row
        }
        options: dict[str, float] = {}
        electing = self._config.merge_method in _ELECTING
        if electing:
            options = {"normalize": float(values["normalize"] != 0), "scale": values["lambda"]}
        else:
            weights = self._folded(tensor, values, weights)
        if self._config.method.drops == "ranked":
            options["epsilon"] = self._epsilon(tensor, rows, drops)
        self._check_rescale(tensor, values, drops)
        if self._config.method.drops == "random" and not values["rescale"]:
            # Elements that were kept are divided by 1 - p here, whatever was asked.
            weights = {model: w * (1.0 - drops[model]) for model, w in weights.items()}
        return Column(
            tuple(weights.get(model, 0.0) for model in self._participants),
            tuple(drops.get(model, 0.0) for model in self._participants),
            tuple(options.items()),
        )

    def _folded(
        self, tensor: str, values: Mapping[str, float], weights: Mapping[str, float]
    ) -> dict[str, float]:
        """Bring ``normalize`` and ``lambda`` of sums into the weights."""
        factor = values.get("lambda", 1.0)
        if values["normalize"]:
            total = sum(weights.values())
            if self._config.method.needs_base:
                factor /= total if abs(total) >= _SMALLEST_SUM else 1.0
            elif total == 0.0:
                self._findings.add(
                    "parameters", "the weights sum to zero, and `normalize` divides by it", tensor
                )
            else:
                factor /= total
        return {model: weight * factor for model, weight in weights.items()}

    def _drop_ratio(self, model: str, density: float, tensor: str) -> float:
        if density > 0.0:
            return drop_ratio_of(density)
        self._findings.add(
            "",
            f"density of `{model}` must be above 0, found {density:g}; leave the model out",
            tensor,
        )
        return 0.0

    def _epsilon(
        self,
        tensor: str,
        rows: Mapping[str, Mapping[str, float]],
        drops: Mapping[str, float],
    ) -> float:
        """Return the width of the interval of drop ratios; mergekit's epsilon is half of it."""
        found = {row["epsilon"] for model, row in rows.items() if drops[model] > 0.0}
        if len(found) > 1:
            self._findings.add("", "`epsilon` must be the same for all models", tensor)
        # Where nothing is dropped it means nothing, and is kept as it was written.
        epsilon = max(found or {row["epsilon"] for row in rows.values()})
        for model, drop in drops.items():
            if drop > 0.0 and not epsilon < min(drop, 1.0 - drop):
                self._findings.add(
                    "",
                    f"density +/- epsilon of `{model}` must be between 0 and 1, found "
                    f"{1 - drop:g} +/- {epsilon:g}",
                    tensor,
                )
        return 2.0 * epsilon

    def _check_rescale(
        self, tensor: str, values: Mapping[str, float], drops: Mapping[str, float]
    ) -> None:
        if not any(drops.values()):
            return
        kind, rescale = self._config.method.drops, bool(values["rescale"])
        message = None
        if kind == "trim" and rescale:
            message = "`rescale: true` of trimmed task vectors has no counterpart here; remove it"
        elif kind == "ranked" and not rescale:
            message = "`rescale: false` has no counterpart here: what is kept is always rescaled"
        elif kind == "random" and not rescale and values["normalize"] and self._is_electing:
            message = "`rescale: false` together with `normalize: true` has no counterpart here"
        if message is not None:
            self._findings.add("parameters.rescale", message, tensor)

    @property
    def _is_electing(self) -> bool:
        return self._config.merge_method in _ELECTING
