"""What of an exported directory goes to the hub, and whether it is complete.

Only files that make a model usable are uploaded: by name, and none that is a link, hidden, or a
database. So neither archives nor anything outside the directory can leave the machine.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from configs.errors import CheckpointError, MergefrontError, Problem
from optimizer.archive.sqlite import is_sqlite
from workers.checkpoint import INDEX_FILE, CheckpointReader
from workers.column_coefficients import EXPORTED_FILE
from workers.digest import weights_digest
from workers.side_files import module_directories

CARD_FILE, RECIPE_FILE = "README.md", "recipe.json"

_NAME = re.compile(r"[\w][\w.-]*")
_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja")
_TEXTS = re.compile(r"README\.md|LICEN[CS]E(\.\w+)?|NOTICE(\.\w+)?|USE_POLICY\.md", re.IGNORECASE)
_HEX_DIGITS = 32


@dataclass(frozen=True, slots=True)
class Upload:
    """What is uploaded.

    Attributes:
        directory: The exported checkpoint.
        files: Paths in it, with slashes.
        left_out: Paths that stay here.
        size_bytes: Of all files together.
        recipe_id: Of the merge.
        private_paths: Places on this machine that ``recipe.json`` names.
    """

    directory: Path
    files: tuple[str, ...]
    left_out: tuple[str, ...]
    size_bytes: int
    recipe_id: str
    private_paths: tuple[str, ...]


def check_upload(directory: Path) -> Upload:
    """Look at an exported directory before it is uploaded; reads every weight once.

    Raises:
        CheckpointError: It is no complete export; the message names all that is wrong with it.
    """
    directory = directory.expanduser().absolute()
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory}: no such directory; give one that `mergefront export` has written",
            path=str(directory),
        )
    files, left_out = _sorted_out(directory)
    recipe, problems = _read_recipe(directory)
    problems += _card_problems(directory)
    problems += _weight_problems(directory, files, recipe.get("weights_digest"))
    if problems:
        raise CheckpointError(
            "\n".join(
                [f"{directory}: this is no complete export", *(f"  {found}" for found in problems)]
            ),
            path=str(directory),
            problems=problems,
        )
    return Upload(
        directory=directory,
        files=tuple(files),
        left_out=tuple(left_out),
        size_bytes=sum((directory / name).stat().st_size for name in files),
        recipe_id=str(recipe.get("recipe_id", "")),
        private_paths=tuple(sorted(set(_places(recipe)))),
    )


def _sorted_out(directory: Path) -> tuple[list[str], list[str]]:
    """Return the files that are uploaded, and those that are not."""
    folders = {"", *module_directories(directory)}
    files: list[str] = []
    left_out: list[str] = []
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        folder = "" if path.parent == directory else path.parent.relative_to(directory).as_posix()
        if path.is_dir() and not path.is_symlink():
            continue
        inside = (folder in folders or name == EXPORTED_FILE) and not (
            directory / folder
        ).is_symlink()
        (files if inside and _belongs(path) else left_out).append(name)
    return files, left_out


def _belongs(path: Path) -> bool:
    if path.is_symlink() or not path.is_file() or not _NAME.fullmatch(path.name):
        return False
    if path.suffix not in _SUFFIXES and not _TEXTS.fullmatch(path.name):
        return False
    return not is_sqlite(path)


def _read_recipe(directory: Path) -> tuple[dict[str, object], list[Problem]]:
    try:
        content = json.loads((directory / RECIPE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = "is missing; push a directory that `mergefront export` or `merge` has written"
        return {}, [Problem(RECIPE_FILE, message)]
    except (OSError, ValueError) as error:
        return {}, [Problem(RECIPE_FILE, f"cannot be read ({error}); export again")]
    if not isinstance(content, dict) or len(str(content.get("weights_digest"))) != _HEX_DIGITS:
        return {}, [Problem(RECIPE_FILE, "holds no digest of the weights; export again")]
    return content, []


def _card_problems(directory: Path) -> list[Problem]:
    from huggingface_hub.repocard import metadata_load

    try:
        metadata = metadata_load(directory / CARD_FILE)
    except FileNotFoundError:
        return [Problem(CARD_FILE, "the model card is missing; export again")]
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        return [Problem(CARD_FILE, f"its metadata are no YAML ({reason}); correct them")]
    except (OSError, ValueError) as error:
        return [Problem(CARD_FILE, f"cannot be read ({error}); export again")]
    if not metadata:
        return [Problem(CARD_FILE, "has no metadata between lines of `---`; export again")]
    return []


def _weight_problems(directory: Path, files: list[str], expected: object) -> list[Problem]:
    """Return what is wrong with the weights: shards, index, names of files, and their digest."""
    try:
        with CheckpointReader(directory) as reader:
            left = [path.name for path in reader.files if path.name not in files]
            if left:
                return [
                    Problem(name, "a link, or no name for a shard; export again") for name in left
                ]
            found = weights_digest((name, reader.tensor(name)) for name in reader.entries)
    except MergefrontError as error:
        listed = error.context.get("problems")
        return list(listed) if isinstance(listed, list) else [Problem("", error.message)]
    if expected is not None and found != expected:
        message = (
            f"the weights have digest {found}, but {RECIPE_FILE} says {expected}: they are not "
            "those of the merge; export again"
        )
        name = INDEX_FILE if INDEX_FILE in files else reader.files[0].name
        return [Problem(name, message)]
    return []


def _places(content: object) -> list[str]:
    """Return the places of this machine, of stores and of servers that a JSON content names."""
    if isinstance(content, dict):
        return [place for value in content.values() for place in _places(value)]
    if isinstance(content, list):
        return [place for value in content for place in _places(value)]
    is_place = isinstance(content, str) and (
        (content.startswith(("/", "~")) and len(content) > 1) or "://" in content
    )
    return [str(content)] if is_place else []
