"""Whether a pool of checkpoints can be merged, and what a search should know about it before.

One call, :func:`check_compatible`, finds everything that is wrong at once; what is only
suspicious becomes a warning in its report.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from typing import Self

import torch

from configs.errors import IncompatibleCheckpointsError, Problem
from configs.recipe import Group, Vocabulary
from configs.schema import DtypeName, Merge, VocabularyPolicy
from workers.checkpoint import CheckpointReader
from workers.delta_stats import DeltaStats, measure_deltas
from workers.methods import MergeMethod, get_method
from workers.sources import Sources
from workers.tokenizer_match import TokenizerMatch, match_tokenizers
from workers.vocabulary import decide_vocabulary, open_readers

# Deltas of fine-tuned checkpoints are within about 0.002 to 0.005; DARE breaks near 0.03, which
# continued pre-training reaches (arXiv:2311.03099, section 4.4).
_DARE_BREAKS_AT = 0.03
# Two unrelated models are sqrt(2) typical weights apart; what is fine-tuned is far closer.
_UNRELATED_AT = 0.7
# Enough to recognize the pattern; all of them are in the error's context.
_SHOWN = 5

# Config keys that change what the same tensors compute.
_MEANINGFUL_KEYS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "sliding_window",
    "tie_word_embeddings",
)


@dataclass(frozen=True, slots=True)
class PoolReport:
    """What merging a pool means, in numbers.

    ``dtype``: of the merged tensors. ``bytes_read`` and ``bytes_written``: what one candidate
    moves when every checkpoint contributes. ``largest_tensor_bytes``: merged, the memory that
    an export needs. ``deltas``: one per checkpoint; empty without a base. ``vocabulary``: of
    every recipe; None where the models' vocabularies are one.
    """

    num_tensors: int
    num_parameters: int
    dtype: DtypeName
    bytes_read: int
    bytes_written: int
    largest_tensor_bytes: int
    deltas: tuple[DeltaStats, ...]
    warnings: tuple[str, ...]
    vocabulary: Vocabulary | None = None


def check_compatible(
    sources: Sources, merge: Merge, policy: VocabularyPolicy = "refuse"
) -> PoolReport:
    """Check a resolved pool against the merge that a job asks for.

    Reads headers, tokenizers, and tensors as far as the sizes of task vectors need it.

    Args:
        sources: From ``resolve_sources``, which has checked each model alone.
        merge: Method, groups and dtype of the job.
        policy: What becomes of vocabularies that differ.

    Raises:
        IncompatibleCheckpointsError: ``problems`` holds one entry per checkpoint or group that
            does not fit; ``context["mismatches"]`` every tensor, by checkpoint.
        ConfigError: There is no such method.
        CheckpointError: A file cannot be read.
    """
    method = get_method(merge.method)
    vocabulary = decide_vocabulary(sources, policy)
    with ExitStack() as stack:
        readers = open_readers(sources, vocabulary)
        for reader in readers.values():
            stack.enter_context(reader)
        pool = _Pool.of(sources.reference.name, readers, vocabulary)
        problems, mismatches = _find_problems(pool, merge)
        deltas: list[DeltaStats] = []
        if sources.base is not None and not mismatches:
            deltas = [
                measure_deltas(name, pool.reference, reader) for name, reader in pool.others.items()
            ]
            problems += [
                Problem(
                    stats.checkpoint,
                    f"`{stats.first_non_finite}` holds NaN or infinity, here or in the base",
                )
                for stats in deltas
                if stats.first_non_finite is not None
            ]
        if problems:
            raise IncompatibleCheckpointsError(
                "the checkpoints cannot be merged", problems, mismatches=mismatches
            )
        warnings = [
            *_vocabulary_warnings(vocabulary),
            *_config_warnings(pool),
            *_tokenizer_warnings(pool),
            *_identity_warnings(sources),
            *_delta_warnings(deltas, method),
            *_group_warnings(pool, merge),
        ]
        merged_from = sources.everything if method.needs_base else sources.checkpoints
        return _report(
            pool.reference,
            dtype=merge.dtype or pool.reference.dtype,
            bytes_read=sum(readers[source.name].size_bytes for source in merged_from),
            deltas=deltas,
            warnings=warnings,
            vocabulary=vocabulary,
        )


@dataclass(frozen=True, slots=True)
class _Pool:
    """Open readers by name, and how the tokenizers of the others match the reference's."""

    reference_name: str
    reference: CheckpointReader
    others: dict[str, CheckpointReader]
    tokenizers: dict[str, TokenizerMatch]

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
        return cls(reference_name, reference, others, tokenizers)


def _find_problems(pool: _Pool, merge: Merge) -> tuple[list[Problem], dict[str, list[str]]]:
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
        if found := list(_tensor_mismatches(pool.reference, reader)):
            mismatches[name] = found
            total = len(pool.reference.entries)
            problems.append(
                Problem(
                    name,
                    f"{title}: {len(found)} of {total} tensors differ. {_some(found)}. "
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
    return problems + _group_problems(pool, merge), mismatches


def _tensor_mismatches(here: CheckpointReader, there: CheckpointReader) -> Iterator[str]:
    for name in sorted(here.entries.keys() | there.entries.keys()):
        expected, found = here.entries.get(name), there.entries.get(name)
        if expected is None or found is None:
            yield f"`{name}` is {'missing' if found is None else 'not in the reference'}"
        elif expected.shape != found.shape:
            yield f"`{name}` expected {expected.shape}, found {found.shape}"
        elif expected.is_floating != found.is_floating:
            yield f"`{name}` expected {expected.dtype}, found {found.dtype}"
        elif not expected.is_floating and not torch.equal(here.tensor(name), there.tensor(name)):
            yield f"`{name}` ({expected.dtype}) cannot be merged and has other values"


def _groups(merge: Merge) -> list[Group]:
    return [Group(name=name, patterns=tuple(p)) for name, p in merge.groups.items()]


def _group_problems(pool: _Pool, merge: Merge) -> list[Problem]:
    groups = _groups(merge)
    homeless: list[str] = []
    shared: list[str] = []
    for entry in pool.reference.entries.values():
        names = [group.name for group in groups if group.holds(entry.name)]
        if entry.is_floating and not names:
            homeless.append(f"`{entry.name}`")
        elif entry.is_floating and len(names) > 1:
            shared.append(f"`{entry.name}` ({', '.join(names)})")
    problems: list[Problem] = []
    if homeless:
        problems.append(
            Problem(
                "merge.groups",
                f"{len(homeless)} tensors are in no group: {_some(homeless)}. "
                "Add a group or a pattern for them",
            )
        )
    if shared:
        problems.append(
            Problem(
                "merge.groups",
                f"{len(shared)} tensors are in more than one group: "
                f"{_some(shared)}. Make the patterns exclude each other",
            )
        )
    return problems


def _group_warnings(pool: _Pool, merge: Merge) -> Iterator[str]:
    names = [entry.name for entry in pool.reference.entries.values() if entry.is_floating]
    for group in _groups(merge):
        if not any(map(group.holds, names)):
            yield f"group `{group.name}` holds no tensor; its genes change nothing"


def _vocabulary_warnings(vocabulary: Vocabulary | None) -> Iterator[str]:
    if vocabulary is not None:
        lengths = ", ".join(str(table.rows) for table in vocabulary.tables)
        yield (
            f"the models have tables of {lengths} tokens; merges have {vocabulary.rows} "
            f"({vocabulary.policy}), and the tokenizer of `{vocabulary.source.name}`"
        )


def _config_warnings(pool: _Pool) -> Iterator[str]:
    for name, reader in pool.others.items():
        for key in _MEANINGFUL_KEYS:
            here, there = pool.reference.config.get(key), reader.config.get(key)
            if here is not None and there is not None and here != there:
                yield (
                    f"`{name}`: config.json has {key} = {there}, but the merge runs with "
                    f"{here}, that of `{pool.reference_name}`"
                )
        if reader.dtype != pool.reference.dtype:
            yield f"`{name}` is {reader.dtype}, `{pool.reference_name}` {pool.reference.dtype}"


def _tokenizer_warnings(pool: _Pool) -> Iterator[str]:
    for name, match in pool.tokenizers.items():
        if match.warning:
            yield f"`{name}`: {match.warning}"


def _identity_warnings(sources: Sources) -> Iterator[str]:
    for first, second in combinations(sources.everything, 2):
        if first.digest != second.digest:
            continue
        if first is sources.base:
            yield f"`{second.name}` has the weights of the base; its genes change nothing"
        else:
            yield f"`{first.name}` and `{second.name}` are the same weights; keep one of them"


def _delta_warnings(deltas: Sequence[DeltaStats], method: MergeMethod) -> Iterator[str]:
    for stats in deltas:
        if stats.relative >= _UNRELATED_AT:
            yield (
                f"`{stats.checkpoint}`: its task vector is as large as the weights (median ratio "
                f"{stats.relative:.2g}); the base is probably not its base"
            )
        elif method.uses_drop_ratios and stats.p99 >= _DARE_BREAKS_AT:
            yield (
                f"`{stats.checkpoint}`: 1 % of its deltas exceed {stats.p99:.2g}; DARE breaks near "
                f"{_DARE_BREAKS_AT}. Keep drop ratios low, or use task_arithmetic"
            )


def _some(items: Sequence[str]) -> str:
    rest = len(items) - _SHOWN
    return "; ".join(items[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def _report(
    reference: CheckpointReader,
    *,
    dtype: DtypeName,
    bytes_read: int,
    deltas: Sequence[DeltaStats],
    warnings: Sequence[str],
    vocabulary: Vocabulary | None,
) -> PoolReport:
    entries = reference.entries.values()
    element_bytes = getattr(torch, dtype).itemsize
    merged = [
        entry.numel * element_bytes if entry.is_floating else entry.size_bytes for entry in entries
    ]
    return PoolReport(
        num_tensors=len(merged),
        num_parameters=sum(entry.numel for entry in entries),
        dtype=dtype,
        bytes_read=bytes_read,
        bytes_written=sum(merged),
        largest_tensor_bytes=max(merged),
        deltas=tuple(deltas),
        warnings=tuple(warnings),
        vocabulary=vocabulary,
    )
