"""The chat template of a checkpoint: how a conversation becomes one text."""

import json
from collections.abc import Mapping
from pathlib import Path

from configs.errors import CorruptCheckpointError


def read_chat_template(directory: Path) -> str | None:
    """Return the default chat template of a checkpoint directory, or None.

    It is where transformers looks for it: ``chat_template.jinja``, else in
    ``chat_template.json`` or ``tokenizer_config.json``.

    Raises:
        CorruptCheckpointError: A file that may hold it cannot be read.
    """
    path = directory / "chat_template.jinja"
    try:
        if path.is_file():
            return path.read_text(encoding="utf-8").strip()
        for name in ("chat_template.json", "tokenizer_config.json"):
            path = directory / name
            if path.is_file() and (text := _template_in(path)) is not None:
                return text.strip()
    except (OSError, ValueError) as error:
        raise CorruptCheckpointError(
            f"{path}: not readable ({error}); copy it again", path=str(path)
        ) from error
    return None


def _template_in(path: Path) -> str | None:
    content = json.loads(path.read_text(encoding="utf-8"))
    found = content.get("chat_template") if isinstance(content, Mapping) else None
    if isinstance(found, list):
        # Several, each with a name; `default` is what is used unless another is asked for.
        named = {t.get("name"): t.get("template") for t in found if isinstance(t, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None
