"""The files of a model beside its weights and ``config.json``: tokenizer, templates, modules."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

# What makes a directory usable with transformers besides weights and config, and is not code.
SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
    "chat_template.jinja",
    "chat_template.json",
    # Of sentence-transformers: which pooling makes a vector of an encoder's outputs.
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)

_MODULES_FILE = "modules.json"
_MODULE_SUFFIXES = (".json", ".safetensors")


def side_files(directory: Path) -> dict[str, Path]:
    """Return name -> path of the files that a merge takes from a model as they are.

    Names of modules of sentence-transformers hold their directory (``2_Dense/config.json``).
    """
    found = {name: directory / name for name in SIDE_FILES}
    for module in module_directories(directory):
        for path in sorted((directory / module).iterdir()):
            if path.suffix in _MODULE_SUFFIXES:
                found[f"{module}/{path.name}"] = path
    return {name: path for name, path in found.items() if path.is_file()}


def module_directories(directory: Path) -> list[str]:
    """Return the directories of the modules that sentence-transformers runs after the model."""
    try:
        content = json.loads((directory / _MODULES_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    modules = content if isinstance(content, list) else []
    names = [str(module.get("path", "")) for module in modules if isinstance(module, Mapping)]
    # A name such as ../x would read outside the directory.
    plain = [name for name in names if re.fullmatch(r"[\w-][\w.-]*", name)]
    return [name for name in plain if (directory / name).is_dir()]
