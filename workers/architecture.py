"""What a ``config.json`` says about a model's class and about which of its tensors are one.

Transformers is imported only when it has to be asked.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn


def architecture_of(config: Mapping[str, object]) -> str | None:
    """Return the name of the transformers class that a config names first, if any."""
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def is_causal(config: Mapping[str, object]) -> bool:
    """Say whether a model continues texts; one that names no architecture is taken to."""
    name = architecture_of(config)
    return name is None or name in _causal_names().values()


def model_class(config: Mapping[str, object]) -> Any:  # noqa: ANN401 - auto classes share no type
    """Return the transformers class to load a checkpoint with.

    Raises:
        CheckpointError: The installed transformers has no such class.
    """
    import transformers

    name = architecture_of(config)
    if name is None or is_causal(config):
        return transformers.AutoModelForCausalLM
    found = getattr(transformers, name, None)
    if found is None or not hasattr(found, "from_pretrained"):
        raise CheckpointError(
            f"config.json names the architecture `{name}`, which transformers "
            f"{transformers.__version__} does not have; check config.json, or install another "
            "version of transformers"
        )
    return found


def tied_weights(config: Mapping[str, object]) -> dict[str, str]:
    """Return the tensors that a model shares: other name -> name under which it is kept.

    Empty where ``tie_word_embeddings`` is false, by the config or by the default of its class.
    """
    declared = _declared_tie(config)
    if declared is False:
        return {}
    import transformers

    name = architecture_of(config) or _causal_names().get(str(config.get("model_type")))
    found: Any = getattr(transformers, name, None) if name else None
    keys = getattr(found, "_tied_weights_keys", None)
    if not isinstance(keys, Mapping):
        return {}
    if declared is None and not getattr(found.config_class, "tie_word_embeddings", False):
        return {}
    return {str(other): str(kept) for other, kept in keys.items()}


def unused_tensors(model: "nn.Module") -> re.Pattern[str]:
    """Return a pattern that finds names which checkpoints carry and a live model leaves out.

    Buffers that older versions of transformers saved and newer ones compute.
    """
    patterns = {r"rotary_emb\.inv_freq$", r"(^|\.)position_ids$"}
    patterns |= set(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())
    return re.compile("|".join(f"(?:{pattern})" for pattern in sorted(patterns)))


def vocabulary_size(config: Mapping[str, object]) -> int | None:
    """Return the number of rows that a model's tables of tokens have, where the config says it."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(size := part.get("vocab_size"), int):
            return size
    return None


def _declared_tie(config: Mapping[str, object]) -> bool | None:
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(tied := part.get("tie_word_embeddings"), bool):
            return tied
    return None


def _causal_names() -> Mapping[str, str]:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    )

    names: Mapping[str, str] = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    return names
