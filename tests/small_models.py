"""Pools, recipes and small real models that the tests of several modules need alike."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.recipe import Group, MergeRecipe, Source
from configs.schema import Models
from tests.conftest import TinyPool
from workers.sources import Sources, resolve_sources

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
EVERYTHING = (Group(name="all", patterns=(".*",)),)


def pool_of(base: Path | None, **checkpoints: Path) -> Sources:
    """Resolve directories as the base and the checkpoints of a job."""
    named = {name: str(path) for name, path in checkpoints.items()}
    return resolve_sources(Models(base=base and str(base), checkpoints=named))


def recipe_of(sources: Sources, weights: Sequence[Any], **changes: Any) -> MergeRecipe:
    """A recipe of all checkpoints; one number per checkpoint, or one per checkpoint and group."""

    def rows(values: Sequence[Any]) -> tuple[tuple[float, ...], ...]:
        return tuple(v if isinstance(v, tuple) else (v,) for v in values)

    drops = changes.pop("drop_ratios", None) or [tuple(0.0 for _ in row) for row in rows(weights)]
    content = {
        "method": "dare_linear" if sources.base else "linear",
        "base": sources.base and Source(name="base", digest=sources.base.digest),
        "checkpoints": tuple(Source(name=c.name, digest=c.digest) for c in sources.checkpoints),
        "groups": EVERYTHING,
        "weights": rows(weights),
        "drop_ratios": rows(drops),
        "dtype": "float32",
        **changes,
    }
    return MergeRecipe(**content)


class TinyVariants:
    """The tiny pool in other dtypes, with tied or untied embeddings; each is made once."""

    def __init__(self, tiny_pool: TinyPool, root: Path) -> None:
        self._tiny_pool = tiny_pool
        self._root = root
        self._made: dict[tuple[str, bool], Sources] = {}

    def __call__(self, dtype: str = "float32", tied: bool = True) -> Sources:
        if (dtype, tied) not in self._made:
            pool, root = self._tiny_pool, self._root / f"{dtype}-{tied}"
            base = self._convert(pool.base, root / "origin", dtype, tied)
            checkpoints = {
                name: self._convert(path, root / name, dtype, tied)
                for name, path in pool.checkpoints.items()
            }
            self._made[dtype, tied] = pool_of(base, **checkpoints)
        return self._made[dtype, tied]

    @staticmethod
    def _convert(source: Path, target: Path, dtype: str, tied: bool) -> Path:
        import torch
        from transformers import LlamaForCausalLM

        model = LlamaForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype))
        if not tied:
            model.config.tie_word_embeddings = False
            head = model.model.embed_tokens.weight.detach().clone() * 0.5
            model.lm_head.weight = torch.nn.Parameter(head)
        model.save_pretrained(target)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(source / name, target)
        return target


def live_model(sources: Sources, dtype: str = "float32") -> "PreTrainedModel":
    """Load the reference of a pool of Llama models."""
    import torch
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(
        sources.reference.directory, dtype=getattr(torch, dtype)
    ).eval()


def saved_tensors(model: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    """The state without the second name of tied embeddings."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        del state[HEAD]
    return state


def small_bert(kind: str = "BertForMaskedLM", *, seed: int = 0, **config: Any) -> "PreTrainedModel":
    """An encoder with random weights and biases, of one layer unless the config says otherwise."""
    import torch
    import transformers

    shape = {
        "vocab_size": 30,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 20,
    }
    model: PreTrainedModel = getattr(transformers, kind)(
        transformers.BertConfig(**(shape | config))
    )
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.2)
    return model


def write_words(directory: Path, count: int) -> None:
    """Write the vocabulary of an encoder: five special tokens, and numbers from 0."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(count - 5))]
    (directory / "vocab.txt").write_text("\n".join(words) + "\n")


def save_adapter(
    directory: Path,
    base: Path,
    *,
    model_class: "type[PreTrainedModel] | None" = None,
    **config: Any,
) -> Path:
    """Save a LoRA adapter with random weights that peft made for a base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = (model_class or LlamaForCausalLM).from_pretrained(base)
        model = get_peft_model(made, LoraConfig(**config))
        draw = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key or "modules_to_save" in key:
                    parameter.copy_(torch.randn(parameter.shape, generator=draw) * 0.1)
        model.save_pretrained(directory)
    return directory
