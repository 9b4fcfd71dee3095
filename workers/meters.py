"""Numbers that others watch while a search runs: what they are, and who keeps them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Meter:
    """One metric, named as OpenMetrics has it: base units, counters end in ``_total``.

    Attributes:
        name: Without the prefix of whoever exports it.
        kind: What its values mean.
        help: One sentence for people.
        tags: Names of its labels, beside ``search``.
        boundaries: Upper bounds of the buckets of a histogram.
    """

    name: str
    kind: Kind
    help: str
    tags: tuple[str, ...] = ()
    boundaries: tuple[float, ...] = ()


class Meters(Protocol):
    """Keeps the values of metrics, and shows them to whoever asks."""

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        """Add to a counter, set a gauge, or put a value into a histogram.

        Args:
            name: Of a known meter.
            value: Finite; of a counter at least 0.
            tags: Label -> value, for every tag of the meter.
        """
        ...
