"""Files that hold one tensor under two names: embeddings and an output head that are tied.

Some tools save both names of a tied tensor, some the first, some the second. A checkpoint is read
as if it had been saved the way transformers does: once, under the name of the embeddings.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from configs.errors import CheckpointError
from workers.architecture import tied_weights, vocabulary_size
from workers.shard_header import TensorEntry

if TYPE_CHECKING:
    from workers.checkpoint import CheckpointReader


@dataclass(frozen=True, slots=True)
class TiedNames:
    """What stands for what in a file.

    ``stored``: name -> the name that it has in the file, where that is another one.
    ``duplicates``: name in the file -> the name of what it repeats.
    """

    stored: dict[str, str]
    duplicates: dict[str, str]


def unify_names(
    config: Mapping[str, object], entries: Mapping[str, TensorEntry]
) -> tuple[dict[str, TensorEntry], TiedNames]:
    """Return the entries with one name per tied tensor, and what became of the others."""
    unified, names = dict(entries), TiedNames({}, {})
    if not _may_repeat(config, entries):
        return unified, names
    groups: dict[str, list[str]] = {}
    for other, kept in tied_weights(config).items():
        groups.setdefault(kept, [kept]).append(other)
    for kept, members in groups.items():
        present = [name for name in members if name in entries]
        if not present or len({entries[name].shape for name in present}) > 1:
            continue
        for name in present:
            del unified[name]
        unified[kept] = replace(entries[present[0]], name=kept)
        if present[0] != kept:
            names.stored[kept] = present[0]
        names.duplicates.update(dict.fromkeys(present[1:], kept))
    return unified, names


def check_duplicates(reader: "CheckpointReader") -> None:
    """Compare what a file holds twice, bit for bit.

    Raises:
        CheckpointError: The values differ, so transformers would not tie them.
    """
    if not reader.duplicates:
        return
    import torch

    def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
        # As bytes: NaN equals itself, and -0 does not equal 0.
        return one.dtype == other.dtype and torch.equal(
            one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
        )

    differing = [
        f"`{name}` differs from `{kept}`"
        for name, kept in reader.duplicates.items()
        if not is_same(reader.stored_tensor(name), reader.tensor(kept))
    ]
    if differing:
        raise CheckpointError(
            f"{reader.directory}: config.json ties its output head to its embeddings, but the "
            f"weights hold both with other values: {'; '.join(differing)}. Which of them is meant "
            "cannot be told: set `tie_word_embeddings` to false, or remove the one that is left "
            "over",
            path=str(reader.directory),
        )


def _may_repeat(config: Mapping[str, object], entries: Mapping[str, TensorEntry]) -> bool:
    """Whether it is worth asking transformers, which takes a second to import."""
    rows = vocabulary_size(config)
    tables = [entry for entry in entries.values() if entry.shape[:1] == (rows,)]
    counts = Counter(entry.shape for entry in tables)
    has_lone_head = any("head" in entry.name for entry in tables)
    return has_lone_head or any(count > 1 for count in counts.values())
