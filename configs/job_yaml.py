"""Reading the YAML of a job file: plain data, with the line of every key, or one clear problem.

Stricter than YAML itself: a key given twice is an error, not a silent winner, and a small file
cannot unfold into a huge job.
"""

from collections.abc import Hashable, Mapping
from pathlib import Path

import yaml

from configs.errors import ConfigError, Problem

MAX_BYTES = 1_000_000
"""A job file is a page or two; anything near this is not one."""

MAX_NODES = 100_000
"""Values after aliases are followed: ten lines of nested aliases can stand for billions."""

Lines = Mapping[str, int]
"""Dotted path -> line number, from 1."""

# What PyYAML's constructors let through for scalars that do not fit their tag.
_CONSTRUCTION_ERRORS = (ValueError, LookupError, AttributeError, TypeError, OverflowError)


class _Loader(yaml.SafeLoader):
    """The safe loader, with lines in every error."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> object:
        try:
            return super().construct_object(node, deep=deep)
        except _CONSTRUCTION_ERRORS as error:
            raise yaml.constructor.ConstructorError(
                problem=f"not a value of {node.tag.rpartition(':')[2]}: {error}",
                problem_mark=node.start_mark,
            ) from error


def read_yaml(path: Path, *, kind: str = "job") -> tuple[dict[str, object], Lines]:
    """Read a job file, or another file of settings; ``kind`` is how messages call what it holds.

    Returns:
        Its content, not validated, and where each key stands.

    Raises:
        ConfigError: No such file, not YAML, not a mapping, a key given twice, or too large.
    """
    return parse_yaml(_read(path), str(path), kind=kind)


def parse_yaml(text: bytes, name: str, *, kind: str = "job") -> tuple[dict[str, object], Lines]:
    """Parse the bytes of a job file; ``name`` and ``kind`` are how messages call it.

    Raises:
        ConfigError: As ``read_yaml``.
    """
    loader = None
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            needed = "; a job needs at least `models`, `objectives` and `archive`"
            raise ConfigError.single(
                name, f"the file is empty{needed if kind == 'job' else f', not a {kind}'}"
            )
        _refuse_unfolding(root, name)
        lines, repeated = _lines_of(root)
        if repeated:
            raise ConfigError(f"{_count(repeated)} in {name}", repeated)
        content = loader.construct_document(root)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError.single(
            name, f"not valid YAML: {error.problem or error}{where}"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError.single(name, f"not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError.single(name, f"not a {kind}: nested too deeply") from error
    finally:
        if loader is not None:
            loader.dispose()
    if not isinstance(content, dict):
        raise ConfigError.single(
            name, f"a {kind} is a mapping (`key: value` lines), found {type(content).__name__}"
        )
    return content, lines


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except FileNotFoundError as error:
        raise ConfigError.single(str(path), "no such file; check the name") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError.single(str(path), f"cannot be read: {reason}") from error
    if len(text) > MAX_BYTES:
        raise ConfigError.single(
            str(path), f"larger than {MAX_BYTES} bytes; this is not a job file"
        )
    return text


def _count(problems: list[Problem]) -> str:
    return "1 problem" if len(problems) == 1 else f"{len(problems)} problems"


def _refuse_unfolding(root: yaml.Node, name: str) -> None:
    """Count values with aliases followed, each node once however often it is named."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: yaml.Node) -> int:
        key = id(node)
        if key in open_nodes:
            raise ConfigError.single(
                name, f"line {node.start_mark.line + 1}: an alias that contains itself"
            )
        if key not in sizes:
            open_nodes.add(key)
            sizes[key] = 1 + sum(size(child) for child in _children(node))
            open_nodes.remove(key)
        return sizes[key]

    if (total := size(root)) > MAX_NODES:
        raise ConfigError.single(
            name, f"its aliases unfold into {total} values, at most {MAX_NODES} are read"
        )


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _lines_of(root: yaml.Node) -> tuple[dict[str, int], list[Problem]]:
    """Return the line of every key, and a problem for each key that stands twice."""
    lines: dict[str, int] = {}
    repeated: list[Problem] = []

    def walk(node: yaml.Node, path: str) -> None:
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                lines.setdefault(f"{path}[{index}]", child.start_mark.line + 1)
                walk(child, f"{path}[{index}]")
        if not isinstance(node, yaml.MappingNode):
            return
        own: dict[Hashable, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            line, inner = key.start_mark.line + 1, f"{path}.{key.value}" if path else key.value
            if key.value in own:
                first = own[key.value]
                repeated.append(
                    Problem(inner, f"given twice, on lines {first} and {line}; keep one")
                )
            own[key.value] = line
            lines.setdefault(inner, line)
            walk(value, inner)

    walk(root, "")
    return lines, repeated
