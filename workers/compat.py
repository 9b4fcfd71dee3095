"""Whether a pool of checkpoints can be merged, and what a search should know about it before.

One call, :func:`check_compatible`, finds everything that is wrong at once; what is only
suspicious becomes a warning in its report.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Literal, Self

import torch

from configs.errors import IncompatibleCheckpointsError, Problem
from configs.recipe import Vocabulary
from configs.schema import DtypeName, Merge, VocabularyPolicy
from workers.chat_template import read_chat_template
from workers.checkpoint import CheckpointReader
from workers.delta_stats import DeltaStats, measure_deltas
from workers.digest import undigested_bytes
from workers.group_check import (
    GroupSize,
    group_problems,
    group_warnings,
    measure_groups,
    some,
)
from workers.methods import get_method
from workers.pool_warnings import (
    config_warnings,
    delta_warnings,
    identity_warnings,
    module_warnings,
    similarity_warnings,
    template_warnings,
    vocabulary_warnings,
)
from workers.similarity import Similarity, measure_similarity
from workers.sources import BASE_NAME, Sources
from workers.tokenizer_match import TokenizerMatch, match_tokenizers
from workers.vocabulary import companion, decide_vocabulary, open_readers

Sameness = Literal["reference", "same", "other", "none", "unknown"]
"""How a file of a model compares with the reference's: it is the reference, has the same content
or another, or there is nothing to compare in this model (none) or in one of both (unknown)."""


@dataclass(frozen=True, slots=True)
class SourceFacts:
    """One model of the pool, from its headers and its small files.

    ``dtypes``: name -> number of elements, most first. ``size_bytes``: of all tensors.
    """

    name: str
    num_tensors: int
    num_parameters: int
    size_bytes: int
    dtypes: dict[str, int]
    tokenizer: Sameness
    chat_template: Sameness


@dataclass(frozen=True, slots=True)
class PoolReport:
    """What merging a pool means, in numbers.

    ``dtype``: of the merged tensors. ``bytes_read`` and ``bytes_written``: what one candidate
    moves when every checkpoint contributes. ``largest_tensor_bytes``: merged, the memory that
    an export needs. ``deltas``: one per checkpoint; empty without a base. ``similarity``: of the
    checkpoints, None where it was not measured. ``headers_only``: no tensor was read.
    ``undigested_bytes``: what naming the sources will still read, once. ``vocabulary``: of every
    recipe; None where the models' vocabularies are one.
    """

    num_tensors: int
    num_parameters: int
    dtype: DtypeName
    bytes_read: int
    bytes_written: int
    largest_tensor_bytes: int
    deltas: tuple[DeltaStats, ...]
    warnings: tuple[str, ...]
    sources: tuple[SourceFacts, ...] = ()
    groups: tuple[GroupSize, ...] = ()
    similarity: Similarity | None = None
    headers_only: bool = False
    undigested_bytes: int = 0
    vocabulary: Vocabulary | None = None


def check_compatible(
    sources: Sources,
    merge: Merge,
    policy: VocabularyPolicy = "refuse",
    *,
    headers_only: bool = False,
) -> PoolReport:
    """Check a resolved pool against the merge that a job asks for.

    Reads headers, tokenizers, chat templates, and tensors as far as the sizes and directions of
    task vectors need it.

    Args:
        sources: From ``resolve_sources``, which has checked each model alone.
        merge: Method, groups and dtype of the job.
        policy: What becomes of vocabularies that differ.
        headers_only: Read no tensor: leaves out deltas, similarity and the search for NaN.

    Raises:
        IncompatibleCheckpointsError: ``problems`` holds one entry per checkpoint or group that
            does not fit; ``context["mismatches"]`` every tensor, by checkpoint.
        ConfigError: There is no such method.
        CheckpointError: A file cannot be read.
    """
    method = get_method(merge.method)
    named = _named(sources) if headers_only else sources
    vocabulary = decide_vocabulary(named, policy)
    home = companion(named, vocabulary)
    with ExitStack() as stack:
        readers = open_readers(named, vocabulary)
        for reader in readers.values():
            stack.enter_context(reader)
        pool = _Pool.of(sources.reference.name, readers, vocabulary)
        problems, mismatches = _find_problems(pool, merge, headers_only=headers_only)
        measured = _Measured()
        if not mismatches and not headers_only:
            measured = _measure(sources, readers)
            problems += measured.problems
        if problems:
            raise IncompatibleCheckpointsError(
                "the checkpoints cannot be merged", problems, mismatches=mismatches
            )
        groups = measure_groups(pool.reference.entries.values(), merge)
        warnings = [
            *vocabulary_warnings(vocabulary),
            *config_warnings(pool.reference_name, pool.reference, pool.others),
            *_tokenizer_warnings(pool),
            *template_warnings(pool.reference_name, pool.templates),
            *module_warnings(
                home.directory, {s.name: s.directory for s in named.everything if s is not home}
            ),
            *identity_warnings(sources),
            *delta_warnings(measured.deltas, method),
            *group_warnings(groups, merge),
        ]
        if measured.similarity is not None:
            warnings += similarity_warnings(measured.similarity, sources)
        merged_from = sources.everything if method.needs_base else sources.checkpoints
        dtype = merge.dtype or pool.reference.dtype
        merged = _merged_bytes(pool.reference, dtype)
        return PoolReport(
            num_tensors=len(merged),
            num_parameters=sum(entry.numel for entry in pool.reference.entries.values()),
            dtype=dtype,
            bytes_read=sum(readers[source.name].size_bytes for source in merged_from),
            bytes_written=sum(merged),
            largest_tensor_bytes=max(merged),
            deltas=tuple(measured.deltas),
            warnings=tuple(warnings),
            sources=tuple(_facts(name, reader, pool) for name, reader in readers.items()),
            groups=groups,
            similarity=measured.similarity,
            headers_only=headers_only,
            undigested_bytes=undigested_bytes(readers.values()),
            vocabulary=vocabulary,
        )


def _named(sources: Sources) -> Sources:
    """Let names stand in for the digests that were not computed."""
    base = None if sources.base is None else replace(sources.base, digest=sources.base.name)
    checkpoints = tuple(replace(source, digest=source.name) for source in sources.checkpoints)
    return Sources(base, checkpoints)


@dataclass(frozen=True, slots=True)
class _Pool:
    """Open readers by name, and how the small files of the others match the reference's."""

    reference_name: str
    reference: CheckpointReader
    others: dict[str, CheckpointReader]
    tokenizers: dict[str, TokenizerMatch]
    templates: dict[str, str | None]

    @classmethod
    def of(
        cls,
        reference_name: str,
        readers: Mapping[str, CheckpointReader],
        vocabulary: Vocabulary | None,
    ) -> Self:
        others = dict(readers)
        reference = others.pop(reference_name)
        tokenizers = {
            name: match_tokenizers(
                reference.directory,
                reader.directory,
                shared_below=None if vocabulary is None else vocabulary.rows,
            )
            for name, reader in others.items()
        }
        templates = {name: read_chat_template(r.directory) for name, r in readers.items()}
        return cls(reference_name, reference, others, tokenizers, templates)


@dataclass(slots=True)
class _Measured:
    """What the tensors say; empty where they were not read."""

    deltas: list[DeltaStats] = field(default_factory=list)
    similarity: Similarity | None = None
    problems: list[Problem] = field(default_factory=list)


def _measure(sources: Sources, readers: Mapping[str, CheckpointReader]) -> _Measured:
    names = [source.name for source in sources.checkpoints]
    base = None if sources.base is None else readers[sources.base.name]
    checkpoints = {name: readers[name] for name in names}
    similarity = measure_similarity(base, checkpoints)
    deltas = [] if base is None else [measure_deltas(name, base, readers[name]) for name in names]
    non_finite: Sequence[tuple[str, str | None]] = (
        list(similarity.non_finite.items())
        if base is None
        else [(stats.checkpoint, stats.first_non_finite) for stats in deltas]
    )
    base_only = {} if base is None else {BASE_NAME: base}
    # What is wrong with the base is found once for every checkpoint, and said once.
    problems = dict.fromkeys(
        _not_finite(tensor, base_only | {name: readers[name]})
        for name, tensor in non_finite
        if tensor is not None
    )
    return _Measured(deltas, similarity, list(problems))


def _not_finite(tensor: str, suspects: Mapping[str, CheckpointReader]) -> Problem:
    """Name the first of some models whose tensor holds NaN or infinity; one of them does."""
    held = ((n, r) for n, r in suspects.items() if not r.tensor(tensor).isfinite().all())
    name, reader = next(held)
    advice = "copy the checkpoint again, or leave it out"
    return Problem(name, f"`{tensor}` holds NaN or infinity ({reader.directory}); {advice}")


def _find_problems(
    pool: _Pool, merge: Merge, *, headers_only: bool
) -> tuple[list[Problem], dict[str, list[str]]]:
    problems: list[Problem] = []
    mismatches: dict[str, list[str]] = {}
    for name, reader in pool.others.items():
        title = f"cannot merge `{name}` into `{pool.reference_name}`"
        here, there = (r.config.get("model_type") for r in (pool.reference, reader))
        if here != there:
            problems.append(
                Problem(
                    name,
                    f"{title}: model_type is `{there}`, expected `{here}`; use models "
                    "of one architecture",
                )
            )
        if found := list(_tensor_mismatches(pool.reference, reader, headers_only)):
            mismatches[name] = found
            total = len(pool.reference.entries)
            problems.append(
                Problem(
                    name,
                    f"{title}: {len(found)} of {total} tensors differ. {some(found)}. "
                    "Resize the vocabulary first (or set models.vocabulary), or use checkpoints "
                    "of the same base",
                )
            )
        if difference := pool.tokenizers[name].difference:
            problems.append(
                Problem(
                    name,
                    f"{title}: the tokenizers differ: {difference}. Use "
                    "checkpoints that share one tokenizer",
                )
            )
    return problems + group_problems(pool.reference.entries.values(), merge), mismatches


def _tensor_mismatches(
    here: CheckpointReader, there: CheckpointReader, headers_only: bool
) -> Iterator[str]:
    for name in sorted(here.entries.keys() | there.entries.keys()):
        expected, found = here.entries.get(name), there.entries.get(name)
        if expected is None or found is None:
            yield f"`{name}` is {'missing' if found is None else 'not in the reference'}"
        elif expected.shape != found.shape:
            yield f"`{name}` expected {expected.shape}, found {found.shape}"
        elif expected.is_floating != found.is_floating:
            yield f"`{name}` expected {expected.dtype}, found {found.dtype}"
        elif expected.is_floating or headers_only:
            continue
        elif not torch.equal(here.tensor(name), there.tensor(name)):
            yield f"`{name}` ({expected.dtype}) cannot be merged and has other values"


def _tokenizer_warnings(pool: _Pool) -> Iterator[str]:
    for name, match in pool.tokenizers.items():
        if match.warning:
            yield f"`{name}`: {match.warning}"


def _facts(name: str, reader: CheckpointReader, pool: _Pool) -> SourceFacts:
    elements: dict[str, int] = {}
    for entry in reader.entries.values():
        elements[entry.dtype] = elements.get(entry.dtype, 0) + entry.numel
    return SourceFacts(
        name=name,
        num_tensors=len(reader.entries),
        num_parameters=sum(elements.values()),
        size_bytes=reader.size_bytes,
        dtypes=dict(sorted(elements.items(), key=lambda item: -item[1])),
        tokenizer=_tokenizer_sameness(name, pool),
        chat_template=_template_sameness(name, pool),
    )


def _tokenizer_sameness(name: str, pool: _Pool) -> Sameness:
    if name == pool.reference_name:
        return "reference"
    match = pool.tokenizers[name]
    if match.difference is not None:
        return "other"
    return "same" if match.warning is None else "unknown"


def _template_sameness(name: str, pool: _Pool) -> Sameness:
    template = pool.templates[name]
    if template is None:
        return "none"
    if name == pool.reference_name:
        return "reference"
    return "same" if template == pool.templates[pool.reference_name] else "other"


def _merged_bytes(reference: CheckpointReader, dtype: DtypeName) -> list[int]:
    element_bytes = getattr(torch, dtype).itemsize
    return [
        entry.numel * element_bytes if entry.is_floating else entry.size_bytes
        for entry in reference.entries.values()
    ]
