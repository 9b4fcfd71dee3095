"""Merging models whose tables of tokens (embeddings, output head) have different lengths.

:func:`decide_vocabulary` turns a job's policy into what a recipe says; :func:`open_readers` then
presents every checkpoint as if its tables had the merged length, so that whatever merges or
measures tensors needs to know nothing of it.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from configs.errors import CheckpointError, IncompatibleCheckpointsError, Problem
from configs.recipe import Source, TokenTable, Vocabulary
from configs.schema import VocabularyPolicy
from workers.architecture import vocabulary_size
from workers.checkpoint import CheckpointReader
from workers.shard_header import DTYPES, SAFETENSORS_DTYPES, TensorEntry
from workers.sources import ResolvedSource, Sources
from workers.tokenizer_match import conflicts_among, token_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

# Tables of tokens stand outside the stack of numbered layers, and are called like this in every
# architecture of transformers; positions, segments and inner layers of a head are something else.
_TABLE = re.compile(
    r"(?!.*\.\d+\.)(?!.*(?:position|pos_emb|wpe|token_type|segment|[Nn]orm|\.dense\.))"
    r".*(?:embed|wte|shared|head|output|decoder|predictions).*\.(?:weight|bias)"
)
# Ids of tokens that a config names; they belong to the tokenizer.
_TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

# Copied tables that a reader keeps: embeddings and an untied output head, which take turns.
_KEPT_COPIES = 2


class _Table(NamedTuple):
    """One model's vocabulary as its files say it; ``ids`` is None without a readable tokenizer."""

    source: ResolvedSource
    rows: int
    ids: dict[str, int] | None

    @property
    def tokens(self) -> int:
        return self.rows if self.ids is None else 1 + max(self.ids.values(), default=-1)


def decide_vocabulary(sources: Sources, policy: VocabularyPolicy) -> Vocabulary | None:
    """Decide how long the merged tables of tokens are, and whose tokenizer goes with them.

    ``pad`` takes the longest tables and the tokenizer with the most tokens, ``intersect`` the
    shortest and the fewest; of equals, the first model wins, the base before the others.

    Returns:
        None where the policy is ``refuse``, and where the models do not differ.

    Raises:
        IncompatibleCheckpointsError: Models that share a token or an id disagree on it, or a
            tokenizer has more tokens than the tables have rows.
        CheckpointError: A file cannot be read.
    """
    if policy == "refuse":
        return None
    tables: list[_Table] = []
    problems: list[Problem] = []
    for source in sources.everything:
        with CheckpointReader(source.directory) as reader:
            rows = vocabulary_size(reader.config)
        if rows is None:
            problems.append(Problem(source.name, "config.json has no `vocab_size`; add it"))
            continue
        table = _Table(source, rows, token_ids(source.directory))
        if table.tokens > rows:
            problems.append(
                Problem(
                    source.name,
                    f"its tokenizer has ids up to {table.tokens - 1}, its tables have {rows} "
                    "rows; remove the tokens that were added without resizing the model",
                )
            )
        tables.append(table)
    if not problems and len({(table.rows, table.tokens) for table in tables}) > 1:
        return _decided(tables, policy)
    if problems:
        raise IncompatibleCheckpointsError("the vocabularies cannot be merged", problems)
    return None


def _decided(tables: Sequence[_Table], policy: VocabularyPolicy) -> Vocabulary:
    is_pad = policy == "pad"
    rows = (max if is_pad else min)(table.rows for table in tables)
    known = {table.source.name: table.ids for table in tables if table.ids is not None}
    if found := conflicts_among(known, rows):
        raise IncompatibleCheckpointsError(
            "the vocabularies cannot be merged",
            [
                Problem(name, f"{text}; use checkpoints that extend one tokenizer")
                for name, text in found.items()
            ],
        )
    candidates = [table for table in tables if table.ids is not None] or tables
    # max and min return the first of equals.
    chosen = (max if is_pad else min)(candidates, key=lambda table: table.tokens)
    return Vocabulary(
        policy="pad" if is_pad else "intersect",
        rows=rows,
        source=Source(name=chosen.source.name, digest=chosen.source.digest),
        tables=tuple(
            TokenTable(digest=table.source.digest, rows=table.rows, tokens=table.tokens)
            for table in tables
        ),
    )


def companion(sources: Sources, vocabulary: Vocabulary | None) -> ResolvedSource:
    """Return the model whose tokenizer and generation settings go with a merge."""
    if vocabulary is None:
        return sources.reference
    wanted = vocabulary.source
    fitting = [source for source in sources.everything if source.digest == wanted.digest]
    named = [source for source in fitting if source.name == wanted.name]
    return (named or fitting or [sources.reference])[0]


def merged_config(
    reference: Mapping[str, object], companion: Mapping[str, object], rows: int
) -> dict[str, object]:
    """Return a model's config with tables of another length, and another tokenizer's ids."""
    merged = {**reference, **{key: companion[key] for key in _TOKEN_KEYS if key in companion}}
    text = merged.get("text_config")
    if isinstance(text, Mapping) and "vocab_size" in text:
        merged["text_config"] = {**text, "vocab_size": rows}
    if "vocab_size" in merged or not isinstance(text, Mapping):
        merged["vocab_size"] = rows
    return merged


def fit_live_model(
    model: "PreTrainedModel", reference: Path, home: Path, vocabulary: Vocabulary
) -> None:
    """Give a live model the tables and settings that an export has; rows are not filled.

    Args:
        model: Loaded from the reference.
        reference: Directory of the model that decides the config.
        home: Directory of the :func:`companion`.
        vocabulary: Of the recipes that will be materialized.
    """
    from transformers import GenerationConfig

    model.resize_token_embeddings(vocabulary.rows, mean_resizing=False)
    with CheckpointReader(reference) as here, CheckpointReader(home) as there:
        config = merged_config(here.config, there.config, vocabulary.rows)
    for key in _TOKEN_KEYS:
        if key in config:
            setattr(model.config, key, config[key])
    if (home / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(home)
    else:
        model.generation_config = GenerationConfig.from_model_config(model.config)


def open_readers(
    sources: Sources, vocabulary: Vocabulary | None = None
) -> dict[str, CheckpointReader]:
    """Open all models of a pool, by name, with tables of tokens of one length.

    Raises:
        CheckpointError: A file cannot be read.
    """
    with ExitStack() as stack:
        plain = {
            source.name: stack.enter_context(CheckpointReader(source.directory))
            for source in sources.everything
        }
        readers = plain
        if vocabulary is not None:
            by_digest = {s.digest: plain[s.name] for s in reversed(sources.everything)}
            _require_models(vocabulary, by_digest)
            model = plain[companion(sources, vocabulary).name]
            config = merged_config(
                plain[sources.reference.name].config, model.config, vocabulary.rows
            )
            readers = {
                source.name: FittedReader(
                    source.directory, source.digest, vocabulary, by_digest, config
                )
                for source in sources.everything
            }
        stack.pop_all()
    return readers


def _require_models(vocabulary: Vocabulary, found: Mapping[str, object]) -> None:
    needed = {table.digest for table in vocabulary.tables}
    if needed != found.keys():
        raise CheckpointError(
            "the vocabulary of the recipe was made of other checkpoints: "
            f"{len(needed - found.keys())} of them are missing here, "
            f"{len(found.keys() - needed)} are not among them; give the checkpoints that the "
            "recipe was made of"
        )


class FittedReader(CheckpointReader):
    """A checkpoint whose tables of tokens are presented with the length of the merge.

    A row that the model has is its own. A row that it lacks, or that is padding here and a token
    elsewhere, is that of the first model which has it, so that the two do not differ there.
    A table that is longer in the file is cut, without a copy. One that gets rows of others is
    copied when it is asked for; the copies used last are kept, for embeddings and a head of their
    own, which are merged side by side.

    Args:
        directory: Of the checkpoint.
        digest: Its name in the vocabulary.
        vocabulary: What the recipe says.
        donors: Digest -> checkpoint, all of the pool.
        config: Of the merge.
    """

    def __init__(
        self,
        directory: Path,
        digest: str,
        vocabulary: Vocabulary,
        donors: Mapping[str, CheckpointReader],
        config: Mapping[str, object],
    ) -> None:
        super().__init__(directory)
        self.config = dict(config)
        self._own_entries = self.entries
        self._donors = donors
        self._copies: dict[str, Tensor] = {}
        self._copying = Lock()
        tables = vocabulary.tables
        self._segments = _segments(digest, tables, vocabulary.rows)
        fitted = {
            name: self._fitted(entry, vocabulary.rows)
            for name, entry in self._own_entries.items()
            if self._is_table(entry, tables)
        }
        self._table_names = frozenset(fitted)
        self.entries = {**self._own_entries, **fitted}

    def tensor(self, name: str) -> "Tensor":
        """Return a tensor: a memory map, or the copy of a table that has rows of others.

        Raises:
            KeyError: There is no tensor of that name.
            CheckpointError: A file is larger than the memory of this machine.
        """
        if name not in self._table_names:
            return super().tensor(name)
        if self._is_cut(name):
            segment = self._segments[0]
            return self._donors[segment.donor].tensor(name)[: segment.end]
        # One thread joins a table, those that want it too wait.
        with self._copying:
            copy = self._copies.pop(name, None)
            if copy is None:
                if len(self._copies) >= _KEPT_COPIES:
                    del self._copies[next(iter(self._copies))]
                copy = self._joined(name)
            self._copies[name] = copy
            return copy

    def is_mapped(self, name: str) -> bool:
        """Say whether :meth:`tensor` gives a memory map, and no copy."""
        return name not in self._table_names or self._is_cut(name)

    def close(self) -> None:
        """Close the files, also those of the other models, and forget the copies."""
        self._copies.clear()
        super().close()
        for reader in {id(reader): reader for reader in self._donors.values()}.values():
            reader.close()

    def _is_cut(self, name: str) -> bool:
        """Say whether a table is the beginning of one that lies in a file."""
        is_widened = self.entries[name].dtype != self._own_entries[name].dtype
        return len(self._segments) == 1 and not is_widened

    def _joined(self, name: str) -> "Tensor":
        import torch

        entry = self.entries[name]
        joined = torch.empty(entry.shape, dtype=getattr(torch, entry.dtype))
        for begin, end, donor in self._segments:
            joined[begin:end] = self._donors[donor].tensor(name)[begin:end]
        return joined

    def _is_table(self, entry: TensorEntry, tables: Sequence[TokenTable]) -> bool:
        if not entry.is_floating or not _TABLE.fullmatch(entry.name):
            return False
        found = [(self._donors[table.digest].entries.get(entry.name), table) for table in tables]
        return all(
            other is not None
            and other.is_floating
            and other.shape == (table.rows, *entry.shape[1:])
            for other, table in found
        )

    def _fitted(self, entry: TensorEntry, rows: int) -> TensorEntry:
        dtypes = {self._donors[s.donor].entries[entry.name].dtype for s in self._segments}
        # Every two different ones of float32, bfloat16 and float16 fit into float32 exactly.
        dtype = dtypes.pop() if len(dtypes) == 1 else "float32"
        fitted = replace(entry, dtype=dtype, shape=(rows, *entry.shape[1:]))
        return replace(fitted, size_bytes=fitted.numel * DTYPES[SAFETENSORS_DTYPES[dtype]][1])


class _Segment(NamedTuple):
    """Rows from ``begin`` to ``end`` (exclusive) are those of the model with digest ``donor``."""

    begin: int
    end: int
    donor: str


def _segments(digest: str, tables: Sequence[TokenTable], rows: int) -> list[_Segment]:
    """Say whose rows a model's fitted tables have, in order, neighbours of one donor joined."""
    own = next(table for table in tables if table.digest == digest)
    bounds = {0, rows}
    bounds.update(bound for t in tables for bound in (t.tokens, t.rows) if bound < rows)
    segments: list[_Segment] = []
    for begin, end in pairwise(sorted(bounds)):
        with_token = [table for table in tables if begin < table.tokens]
        with_row = [table for table in tables if begin < table.rows]
        if own in with_token or (not with_token and own in with_row):
            donor = digest
        else:
            donor = (with_token or with_row)[0].digest
        is_same = bool(segments) and segments[-1].donor == donor
        segments.append(_Segment(segments.pop().begin if is_same else begin, end, donor))
    return segments
