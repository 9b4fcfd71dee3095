"""Where the layers of a model are among its tensors, told by names; sets of tensors as patterns."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from workers.checkpoint import CheckpointReader

# How configurations of models spell their number of layers.
_COUNT_KEYS = frozenset(
    {
        "num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth",
        "encoder_layers", "decoder_layers", "num_decoder_layers",
    }
)  # fmt: skip
# `blocks.7.`: the first component that is a number, and what stands before it.
_NUMBERED = re.compile(r"((?:[^.]*[^.\d][^.]*\.)*)(\d+)\.(.+)")
# Tables of tokens and positions come before the layers, everything else after them.
_BEFORE = re.compile(r"embed(?!_out)|wte|wpe|emb\b")
_MOST_NAMED = 3


class Place(NamedTuple):
    """A tensor inside a layer: which stack of layers, which layer, and which part of it."""

    stack: str
    layer: int
    part: str


@dataclass(frozen=True, slots=True)
class Layout:
    """The floating tensors of a model, sorted by name, and its stacks of layers.

    ``stacks`` has the number of layers by the names' prefix, e.g. ``model.layers.``.
    """

    names: tuple[str, ...]
    stacks: Mapping[str, int]

    @classmethod
    def of(cls, names: Collection[str], counts: Collection[int]) -> Self:
        """Find the stacks: prefixes with layers 0 to n - 1, where n is one of ``counts``."""
        found: dict[str, set[int]] = {}
        for name in names:
            if match := _NUMBERED.fullmatch(name):
                found.setdefault(match[1], set()).add(int(match[2]))
        stacks = {
            prefix: len(indices)
            for prefix, indices in found.items()
            if indices == set(range(len(indices))) and len(indices) in counts
        }
        return cls(tuple(sorted(names)), stacks)

    @classmethod
    def read(cls, reader: CheckpointReader) -> Self:
        """Read the layout of a checkpoint from its headers and its configuration."""
        names = [entry.name for entry in reader.entries.values() if entry.is_floating]
        return cls.of(names, set(_layer_counts(reader.config)))

    def place(self, name: str) -> Place | None:
        """Return where a tensor is, or None where it is in no layer."""
        match = _NUMBERED.fullmatch(name)
        if match is None or match[1] not in self.stacks:
            return None
        return Place(match[1], int(match[2]), match[3])

    def is_before_layers(self, name: str) -> bool:
        """Say whether a tensor outside of the layers comes before the first one."""
        return _BEFORE.search(name) is not None

    def patterns(self, names: Collection[str]) -> tuple[str, ...]:
        r"""Return regular expressions whose full matches among the tensors are exactly ``names``.

        Layers with the same part are written as one: ``model\.layers\.(0|1)\.mlp\.up\.weight``.
        """
        if len(names) == len(self.names):
            return (".*",)
        indices: dict[tuple[str, str], list[int]] = {}
        patterns = []
        for name in sorted(names):
            place = self.place(name)
            if place is None:
                patterns.append(re.escape(name))
            else:
                indices.setdefault((place.stack, place.part), []).append(place.layer)
        for (stack, part), found in indices.items():
            layers = "|".join(map(str, sorted(found)))
            if len(found) > 1:
                layers = f"({layers})"
            if len(found) == self.stacks[stack]:
                layers = r"\d+"
            patterns.append(rf"{re.escape(stack)}{layers}\.{re.escape(part)}")
        return tuple(patterns)

    def label(self, names: Sequence[str]) -> str:
        """Return a short name for a set of tensors, such as ``layers_0-3.mlp``."""
        if len(names) == len(self.names):
            return "all"
        places = [place for name in names if (place := self.place(name))]
        if len(places) != len(names):
            shown = [name.removesuffix(".weight").rpartition(".")[2] for name in names]
            return "_".join(shown) if len(shown) <= _MOST_NAMED else "rest"
        layers = sorted({place.layer for place in places})
        label = f"layers_{layers[0]}" + (f"-{layers[-1]}" if len(layers) > 1 else "")
        kinds = sorted({place.part.partition(".")[0] for place in places})
        return f"{label}.{'_'.join(kinds)}" if len(kinds) <= _MOST_NAMED else label


def _layer_counts(config: Mapping[str, object]) -> Iterator[int]:
    """Yield every number of layers that a configuration names, also those of inner models."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _layer_counts(value)
        elif key in _COUNT_KEYS and isinstance(value, int):
            yield value
