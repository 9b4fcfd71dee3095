"""What is suspicious about a pool of checkpoints, though it can be merged."""

from collections.abc import Iterator, Mapping, Sequence
from filecmp import cmp
from itertools import combinations
from pathlib import Path

from configs.recipe import Vocabulary
from workers.checkpoint import CheckpointReader
from workers.delta_stats import DeltaStats
from workers.methods import MergeMethod
from workers.side_files import module_directories
from workers.similarity import Similarity
from workers.sources import Sources

# Deltas of fine-tuned checkpoints are within about 0.002 to 0.005; DARE breaks near 0.03, which
# continued pre-training reaches (arXiv:2311.03099, section 4.4). What comes near is named.
_DARE_BREAKS_AT = 0.03
_DARE_SUFFERS_AT = 0.024
# Two unrelated models are sqrt(2) typical weights apart; what is fine-tuned is far closer.
_UNRELATED_AT = 0.7
# Task vectors of different data are far from parallel; those of two steps of one training are not.
_SAME_TASK_AT = 0.98
# Weights of one family are nearly parallel: a task vector of 0.5 % of the weights leaves 1e-5.
_SAME_WEIGHTS_WITHIN = 1e-6
# How older versions of sentence-transformers save the weights of a module.
_PICKLE = "pytorch_model.bin"

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


def vocabulary_warnings(vocabulary: Vocabulary | None) -> Iterator[str]:
    """Say what becomes of vocabularies that differ."""
    if vocabulary is not None:
        lengths = ", ".join(str(table.rows) for table in vocabulary.tables)
        yield (
            f"the models have tables of {lengths} tokens; merges have {vocabulary.rows} "
            f"({vocabulary.policy}), and the tokenizer of `{vocabulary.source.name}`"
        )


def config_warnings(
    reference_name: str, reference: CheckpointReader, others: Mapping[str, CheckpointReader]
) -> Iterator[str]:
    """Say where configurations or dtypes differ from the reference's."""
    for name, reader in others.items():
        for key in _MEANINGFUL_KEYS:
            here, there = reference.config.get(key), reader.config.get(key)
            if here is not None and there is not None and here != there:
                yield (
                    f"`{name}`: config.json has {key} = {there}, but the merge runs with "
                    f"{here}, that of `{reference_name}`"
                )
        if reader.dtype != reference.dtype:
            yield f"`{name}` is {reader.dtype}, `{reference_name}` {reference.dtype}"


def template_warnings(reference_name: str, templates: Mapping[str, str | None]) -> Iterator[str]:
    """Say which chat templates are not the reference's.

    Args:
        reference_name: Whose template the merge takes.
        templates: Template of every model; None where it has none.
    """
    here = templates[reference_name]
    differing = [name for name, there in templates.items() if there not in (None, here)]
    if not differing:
        return
    names = ", ".join(f"`{name}`" for name in differing)
    one = len(differing) == 1
    if here is None:
        yield (
            f"{names} {'has' if one else 'have'} a chat template, `{reference_name}` has none, and "
            "so has the merge; add the one that fits to the export"
        )
    else:
        yield (
            f"{names} {'has' if one else 'have'} another chat template than `{reference_name}`, "
            "whose template the merge takes; scores on chats may suffer"
        )


def module_warnings(reference: Path, others: Mapping[str, Path]) -> Iterator[str]:
    """Say which modules of sentence-transformers a merge keeps although checkpoints differ.

    Args:
        reference: Directory of the model whose files the merge takes.
        others: Directories of the other models, by name.
    """
    for module in module_directories(reference):
        if (reference / module / _PICKLE).is_file() and not _weights_of(reference / module):
            yield (
                f"module `{module}` of {reference} holds its weights as a pickle, which no merge "
                "takes along; save the model with safetensors first"
            )
        for name, directory in others.items():
            here, there = _weights_of(reference / module), _weights_of(directory / module)
            same = here.keys() == there.keys() and all(
                cmp(here[file], there[file], shallow=False) for file in here
            )
            if not same:
                yield (
                    f"`{name}`: its module `{module}` has other weights; modules are not merged, "
                    f"and merges have that of {reference}"
                )


def _weights_of(module: Path) -> dict[str, Path]:
    return {path.name: path for path in module.glob("*.safetensors")}


def identity_warnings(sources: Sources) -> Iterator[str]:
    """Say which models have the same tensors, by their digests where they are known."""
    for first, second in combinations(sources.everything, 2):
        if not first.digest or first.digest != second.digest:
            continue
        if first is sources.base:
            yield f"`{second.name}` has the weights of the base; its genes change nothing"
        else:
            yield f"`{first.name}` and `{second.name}` are the same weights; keep one of them"


def delta_warnings(deltas: Sequence[DeltaStats], method: MergeMethod) -> Iterator[str]:
    """Say which task vectors are too large: for DARE, or to be one of that base at all."""
    for stats in deltas:
        if stats.relative >= _UNRELATED_AT:
            yield (
                f"`{stats.checkpoint}`: its task vector is as large as the weights (median ratio "
                f"{stats.relative:.2g}); the base is probably not its base"
            )
        elif method.uses_drop_ratios and stats.p99 >= _DARE_SUFFERS_AT:
            yield (
                f"`{stats.checkpoint}`: 1 % of its deltas exceed {stats.p99:.2g}; DARE breaks near "
                f"{_DARE_BREAKS_AT}. Keep drop ratios low, or use task_arithmetic"
            )


def similarity_warnings(similarity: Similarity, sources: Sources) -> Iterator[str]:
    """Say which checkpoints are nearly the same; those of equal digest were named before."""
    digests = {source.name: source.digest for source in sources.checkpoints}
    threshold = _SAME_TASK_AT if similarity.of_task_vectors else 1.0 - _SAME_WEIGHTS_WITHIN
    what = "task vectors" if similarity.of_task_vectors else "weights"
    for first, second, cosine in similarity.pairs():
        if cosine < threshold:
            return
        if digests[first] != digests[second]:
            yield (
                f"`{first}` and `{second}`: their {what} have a cosine of {cosine:.7g}; they are "
                "nearly the same model, keep one of them"
            )
