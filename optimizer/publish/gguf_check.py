"""Whether llama.cpp's converter can name what is in a checkpoint; start at :func:`check_gguf`.

``convert_hf_to_gguf.py`` gives every tensor the name that GGUF has for it in the architecture, and
ends at the first that has none; it reads the vocabulary and the special tokens from the tokenizer's
files. The package ``gguf``, which the converter itself uses, has the names and reads the tokens.
Not checked, since only the converter has them: the list of tokenizers whose splitting of texts
llama.cpp knows, and what an architecture wants of ``config.json``. The converter goes by the class
of the model (``architectures``), which is taken to be that of its type for causal language models.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import ConfigError, Problem
from workers.checkpoint import CheckpointReader

if TYPE_CHECKING:
    from gguf.constants import MODEL_ARCH

# Model types whose architecture has another name in GGUF: what the classes that llama.cpp's
# `conversion/` registers for their causal language models have as `model_arch`.
_READ_AS = {
    "cohere": "command-r",
    "deepseek_v2": "deepseek2",
    "deepseek_v3": "deepseek2",
    "falcon_mamba": "mamba",
    "gemma3_text": "gemma3",
    "glm": "chatglm",
    "gpt_bigcode": "starcoder",
    "hunyuan_v1_dense": "hunyuan-dense",
    "ministral3": "mistral3",
    "mistral": "llama",
    "mixtral": "llama",
    "olmo3": "olmo2",
    "phi": "phi2",
}
# GGUF has names for these, and the converter no class.
_NOT_CONVERTED = frozenset({"gptj"})
# Buffers that the converter skips.
_SKIPPED = re.compile(r".*(?:\.attention\.masked_bias|\.attention\.bias|\.rotary_emb\.inv_freq)")
# Experts are stacked before they are named.
_EXPERT = re.compile(r"\.experts\.\d+\.")
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
# Unknown tensors that are named one by one.
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class GgufCheck:
    """What was found.

    Attributes:
        architecture: What GGUF calls it; None where it has no name for it.
        num_tensors: How many tensors have a name in GGUF.
        problems: What the converter would end at.
        notes: What it would only warn of.
    """

    architecture: str | None
    num_tensors: int
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]

    @property
    def is_ready(self) -> bool:
        """Whether nothing stands in the way."""
        return not self.problems

    @property
    def lines(self) -> list[str]:
        """The result in words."""
        if self.problems:
            return ["GGUF: cannot be converted", *(f"  {problem}" for problem in self.problems)]
        ready = (
            f"GGUF: ready, {self.num_tensors} tensors and the tokenizer as `{self.architecture}`"
        )
        return [ready, *(f"  note: {note}" for note in self.notes)]

    def record(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {
            "is_ready": self.is_ready,
            "architecture": self.architecture,
            "problems": [problem._asdict() for problem in self.problems],
            "notes": list(self.notes),
        }


def require_gguf() -> None:
    """Refuse where the package is missing.

    Raises:
        ConfigError: It is.
    """
    if find_spec("gguf") is None:
        message = "needs the package gguf; `pip install 'mergefront[gguf]'` has it"
        raise ConfigError("the command line cannot be read", [Problem("--check-gguf", message)])


def check_gguf(directory: Path) -> GgufCheck:
    """Look at a checkpoint directory as the converter does; reads headers and the tokenizer.

    Args:
        directory: As `mergefront export` writes it: config, safetensors, tokenizer.

    Raises:
        CheckpointError: The configuration or the weights cannot be read.
    """
    with CheckpointReader(directory) as reader:
        config, names = reader.config, tuple(reader.entries)
    problems, notes = _tokenizer_findings(directory, config)
    architecture = _architecture(str(config.get("model_type")))
    if architecture is None:
        message = (
            f"model_type `{config.get('model_type')}` is none that the converter has an "
            "architecture for"
        )
        return GgufCheck(None, 0, (Problem("config.json", message), *problems), tuple(notes))
    name, arch = architecture
    unknown = _unknown_tensors(arch, config, names)
    if unknown:
        rest = len(unknown) - _SHOWN
        more = f" and {rest} more" if rest > 0 else ""
        shown = ", ".join(f"`{tensor}`" for tensor in unknown[:_SHOWN])
        message = f"{len(unknown)} of {len(names)} have no name in `{name}`: {shown}{more}"
        problems.insert(0, Problem("tensors", message))
    return GgufCheck(name, len(names) - len(unknown), tuple(problems), tuple(notes))


def _architecture(model_type: str) -> "tuple[str, MODEL_ARCH] | None":
    """Find the architecture of a model type of transformers: its name without punctuation."""
    from gguf.constants import MODEL_ARCH_NAMES

    if model_type in _NOT_CONVERTED:
        return None
    wanted = re.sub(r"\W|_", "", _READ_AS.get(model_type, model_type))
    for arch, name in MODEL_ARCH_NAMES.items():
        if re.sub(r"\W|_", "", name) == wanted:
            return name, arch
    return None


def _unknown_tensors(
    arch: "MODEL_ARCH", config: Mapping[str, Any], names: Iterable[str]
) -> list[str]:
    """Return the tensors that have no name in an architecture."""
    from gguf import get_tensor_name_map

    text = {**config, **config.get("text_config", {})}
    num_layers = next((int(text[key]) for key in _NUM_LAYERS if key in text), 0)
    known = get_tensor_name_map(arch, num_layers)
    return [
        name
        for name in names
        if not _SKIPPED.fullmatch(name)
        and known.get_name(_looked_up(name), try_suffixes=(".weight", ".bias")) is None
    ]


def _looked_up(name: str) -> str:
    """Return under which name the converter looks a tensor up."""
    stacked = _EXPERT.sub(".experts.", name)
    return stacked.replace("e_score_correction_bias", "e_score_correction.bias")


def _tokenizer_findings(
    directory: Path, config: Mapping[str, Any]
) -> tuple[list[Problem], list[str]]:
    """Return what is wrong with the tokenizer's files, and what is only odd."""
    from gguf.vocab import SpecialVocab

    path = directory / "tokenizer.json"
    if (directory / "tokenizer.model").is_file():
        return [], []  # SentencePiece's own file, which the converter prefers
    if not path.is_file():
        return [Problem(path.name, "is missing, and so is tokenizer.model: no vocabulary")], []
    try:
        model = json.loads(path.read_text(encoding="utf-8"))["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [Problem(path.name, f"is no tokenizer that can be read: {error!r}")], []
    size = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    vocabulary = model.get("vocab", {})
    ids = vocabulary.values() if isinstance(vocabulary, Mapping) else range(len(vocabulary))
    problems = []
    if isinstance(size, int) and (largest := max(ids, default=-1)) >= size:
        message = f"token id {largest} is beyond the {size} rows of the model (`vocab_size`)"
        problems.append(Problem(path.name, message))
    try:
        special = SpecialVocab(directory, load_merges=True, n_vocab=size)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [*problems, Problem(path.name, f"gguf cannot read it: {error}")], []
    notes = []
    if model.get("type") == "BPE" and not special.merges:
        notes.append("the tokenizer has no merges; llama.cpp may split texts in another way")
    if "eos" not in special.special_token_ids:
        notes.append("no token ends a text (`eos_token_id`)")
    return problems, notes
