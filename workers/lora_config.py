"""What an ``adapter_config.json`` asks for, and whether a merge onto the base can give it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from configs.errors import CheckpointError, CorruptCheckpointError

CONFIG_FILE = "adapter_config.json"

Number = TypeVar("Number", int, float)

# What changes more than low-rank updates say, by its key in the config.
_UNSUPPORTED = {
    "use_dora": "DoRA scales the columns of the merged weights",
    "lora_bias": "it has biases of its own",
    "target_parameters": "it changes parameters that are not the weight of a layer",
    "trainable_token_indices": "it trains single rows of the embeddings",
    "layer_replication": "it repeats layers of the base",
    "alora_invocation_tokens": "aLoRA acts on a part of the tokens only",
    "use_qalora": "QALoRA pools the inputs of its layers",
    "use_bdlora": "its matrices are block-diagonal",
    "arrow_config": "Arrow chooses among adapters for each token",
    "kasa_config": "KaSA truncates the weights of the base",
    "monteclora_config": "its matrices are drawn at random",
}
# Initializations that leave the weights of the base alone; others (PiSSA, OLoRA, CorDA, LoftQ,
# LoRA-GA) subtract something from them, so that the adapter belongs to other weights.
_PLAIN_INITIALIZATIONS = (True, False, None, "gaussian", "eva", "orthogonal")


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """Ranks and scalings of an adapter, by layer (Hu et al., arXiv:2106.09685).

    Attributes:
        fan_in_fan_out: Square weights are stored as (in, out).
    """

    fan_in_fan_out: bool
    _rank: int
    _alpha: float
    _is_rank_stabilized: bool
    _ranks: Mapping[str, int]
    _alphas: Mapping[str, float]

    @classmethod
    def read(cls, directory: Path) -> "LoraConfig":
        """Read the configuration of an adapter.

        Raises:
            CorruptCheckpointError: It cannot be read.
            CheckpointError: It asks for what low-rank updates cannot say.
        """
        path = directory / CONFIG_FILE
        try:
            content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            reasons = _refusals(content)
            config = cls(
                fan_in_fan_out=bool(content.get("fan_in_fan_out")),
                _rank=int(content.get("r", 8)),
                _alpha=float(content.get("lora_alpha", 8)),
                _is_rank_stabilized=bool(content.get("use_rslora")),
                _ranks={key: int(r) for key, r in (content.get("rank_pattern") or {}).items()},
                _alphas={key: float(a) for key, a in (content.get("alpha_pattern") or {}).items()},
            )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise CorruptCheckpointError(
                f"{path}: not readable as the configuration of an adapter ({error}); copy it again",
                path=str(path),
            ) from error
        if reasons:
            raise CheckpointError(
                f"{directory}: this adapter cannot be merged: {'; '.join(reasons)}. Merge it into "
                "its base with `peft` (`merge_and_unload`), save the model, and name that",
                path=str(directory),
            )
        return config

    def rank_of(self, layer: str) -> int:
        """Return the rank r of a layer."""
        return _by_pattern(self._ranks, layer, self._rank)

    def scaling_of(self, layer: str) -> float:
        """Return what the product B A of a layer is multiplied with.

        alpha / r, or alpha / sqrt(r) where ranks are stabilized (arXiv:2312.03732).
        """
        alpha, rank = _by_pattern(self._alphas, layer, self._alpha), self.rank_of(layer)
        return alpha / math.sqrt(rank) if self._is_rank_stabilized else alpha / rank


def _by_pattern(patterns: Mapping[str, Number], layer: str, default: Number) -> Number:
    # As in peft: the first pattern that matches the end of the name, at a dot.
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", layer):
            return value
    return default


def _refusals(content: Mapping[str, Any]) -> list[str]:
    kind = content.get("peft_type")
    if kind != "LORA":
        return [f"its peft_type is {kind}, only LORA is an update of the weights of a base"]
    reasons = [f"{key}: {why}" for key, why in _UNSUPPORTED.items() if content.get(key)]
    if content.get("bias", "none") != "none":
        reasons.append(f"bias `{content['bias']}`: it changes the biases of the base")
    start = content.get("init_lora_weights", True)
    if start not in _PLAIN_INITIALIZATIONS:
        reasons.append(
            f"init_lora_weights `{start}`: it may belong to a base that the initialization changed"
        )
    return reasons
