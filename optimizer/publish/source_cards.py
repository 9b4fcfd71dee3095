"""What the cards of the merged models say that a merge inherits: licences and data sets.

Cards are text of strangers: of their metadata only short strings are taken, and a card that cannot
be read says nothing.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

CARD_FILE = "README.md"
CONFLICT_NAME = "licences-of-several-models"
"""The licence's name where models that were merged have different ones."""

_FRONT_MATTER = re.compile(r"\A\ufeff?\s*---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_LARGEST = 2**18  # bytes of a card that are looked at
_LONGEST = 200  # characters of a licence or the name of a data set
_LICENCE_KEYS = ("license", "license_name", "license_link")
_OTHER = "other"  # what the hub calls a licence that it has no name for


@dataclass(frozen=True, slots=True)
class SourceCard:
    """What one model's card says.

    Attributes:
        name: Of the model in the merge.
        licence: ``license``, ``license_name`` and ``license_link`` as far as it has them.
        datasets: Names of data sets it was trained on.
        pipeline_tag: What it is used for; None where the card does not say.
    """

    name: str
    licence: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    pipeline_tag: str | None = None

    @property
    def licence_label(self) -> str:
        """The licence in words: its own name, or its address, where it is none of the known."""
        known = self.licence.get("license", "")
        named = self.licence.get("license_name", "")
        if known in ("", _OTHER) and not named:
            named = self.licence.get("license_link", "")
        return f"{known} ({named})" if known and named else known or named

    @property
    def names_its_licence(self) -> bool:
        """Whether two models that say the same have the same licence: `other` alone names none."""
        return self.licence_label not in ("", _OTHER)


@dataclass(frozen=True, slots=True)
class Licence:
    """The licence of a merge.

    Attributes:
        fields: For the metadata of its card; empty where none can be named.
        warning: What is not clear, in a sentence or two; empty where all models agree.
    """

    fields: Mapping[str, str]
    warning: str = ""


def read_source_card(name: str, directories: Iterable[Path]) -> SourceCard:
    """Read the card of a model from the first directory that has one; an empty one without."""
    for directory in directories:
        metadata = _front_matter(directory / CARD_FILE)
        if metadata is not None:
            return SourceCard(
                name=name,
                licence=_licence_fields(metadata),
                datasets=_texts(metadata.get("datasets")),
                pipeline_tag=next(iter(_texts(metadata.get("pipeline_tag"))), None),
            )
    return SourceCard(name)


def licence_of(cards: Iterable[SourceCard]) -> Licence:
    """Say under which licence a merge of some models is, as far as their cards tell.

    A licence is carried over where every model has the same. Where they differ, or some do not
    say, nobody but a person can decide, and the warning says what is known.
    """
    known: list[SourceCard] = []
    silent: list[SourceCard] = []
    for card in cards:
        (known if card.names_its_licence else silent).append(card)
    if not known:
        return Licence(
            {}, "No card of the merged models names a licence: look where they are from."
        )
    said = "; ".join(f"{card.name}: {card.licence_label}" for card in known)
    # What a licence is, not where its text happens to be kept.
    distinct = {card.licence_label.lower() for card in known}
    if len(distinct) > 1:
        also = f" No licence is named by {_names(silent)}." if silent else ""
        return Licence(
            {"license": "other", "license_name": CONFLICT_NAME},
            f"The merged models have different licences ({said}). All of them bind this merge; "
            f"find out whether they allow one before you publish it.{also}",
        )
    if silent:
        return Licence(
            {},
            f"Some of the merged models name a licence ({said}), and {_names(silent)} none: no "
            "licence is claimed for this merge until you know theirs.",
        )
    return Licence(known[0].licence)


def _licence_fields(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return what a card says of its licence; a link into the model's own files leads nowhere."""
    found = {key: " or ".join(_texts(metadata.get(key))) for key in _LICENCE_KEYS}
    if not found["license_link"].startswith(("https://", "http://")):
        del found["license_link"]
    return {key: text for key, text in found.items() if text}


def datasets_of(cards: Iterable[SourceCard]) -> list[str]:
    """Return the data sets that the models' cards name, each once."""
    return list(dict.fromkeys(name for card in cards for name in card.datasets))


def _names(cards: Iterable[SourceCard]) -> str:
    return ", ".join(card.name for card in cards)


def _front_matter(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST).decode("utf-8", "replace")
        found = _FRONT_MATTER.match(text)
        content = None if found is None else yaml.safe_load(found[1])
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None
    return content if isinstance(content, dict) else None


def _texts(value: object) -> tuple[str, ...]:
    """Return the short strings of a value that may be one or a list of them."""
    values = value if isinstance(value, list) else [value]
    return tuple(
        text.strip()
        for text in values
        if isinstance(text, str) and 0 < len(text.strip()) <= _LONGEST and text.isprintable()
    )
