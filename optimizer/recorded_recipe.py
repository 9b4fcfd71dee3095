"""Reading what one merge is from a ``recipe.json``; its models are found elsewhere."""

import json
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ValidationError

from configs.errors import ConfigError, Problem
from configs.recipe import MergeRecipe
from configs.schema import ModelSource


class RecordedRecipe(BaseModel):
    """The parts of a ``recipe.json`` that a merge needs; the recipe alone is one too."""

    recipe: MergeRecipe
    weights_digest: str | None = None
    job: dict[str, object] | None = None
    sources: dict[str, ModelSource] | None = None


def read_json(path: Path) -> object | None:
    """Return the content of a JSON file, or None where it is none."""
    try:
        text = path.read_bytes()
    except OSError as error:
        reason = "no such file; check the name"
        if not isinstance(error, FileNotFoundError):
            reason = f"cannot be read: {error.strerror}"
        raise ConfigError.single(str(path), reason) from error
    if not text.lstrip().startswith(b"{") and path.suffix != ".json":
        return None
    try:
        content: object = json.loads(text)
    except ValueError as error:
        if path.suffix != ".json":  # YAML may begin with a brace too
            return None
        raise ConfigError.single(str(path), f"not valid JSON: {error}") from error
    return content


def recorded_recipe(path: Path, content: object) -> RecordedRecipe:
    """Find the recipe in the content of a JSON file.

    Raises:
        ConfigError: There is none, or it cannot be used; lists every reason.
    """
    if isinstance(content, Mapping) and "recipe" not in content and "checkpoints" in content:
        content = {"recipe": content}
    try:
        return RecordedRecipe.model_validate(content)
    except ValidationError as error:
        problems = [
            Problem(".".join(map(str, detail["loc"])), detail["msg"])
            for detail in error.errors(include_url=False)
        ]
        raise ConfigError(f"{path} holds no recipe that can be used", problems) from error
