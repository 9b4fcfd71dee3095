"""Every problem of a job at once, in the words of the job file.

pydantic says where a value failed in terms of its models; here that becomes the dotted path of
the YAML that the person wrote, shorthands included, and one sentence that says what to write.
"""

import difflib
import re
import types
from collections.abc import Iterator, Mapping, MutableMapping
from typing import Annotated, Any, TypeGuard, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from configs.errors import Problem
from configs.schema import JobConfig
from configs.scorers import SCORER_TAG, TASK_TAG

Location = tuple[int | str, ...]

# Sections whose values no check between sections looks at: a wrong value here can be read as
# its default to see what else is wrong.
_INDEPENDENT = frozenset(
    {"name", "seed", "evaluation", "validation", "budget", "workers", "telemetry"}
)

# A validator of a section that speaks of one of its keys begins with it: "groups.all: ...".
_PATH_IN_MESSAGE = re.compile(r"([A-Za-z_][\w.-]*): (.*)", re.DOTALL)

_LONGEST_SHOWN = 60


def validate(content: Mapping[str, object]) -> tuple[JobConfig | None, list[Problem]]:
    """Validate the content of a job file.

    Unknown keys are read as what they probably mean, and wrong values that nothing else depends
    on as their defaults, so that the problems behind them are found in the same go.

    Returns:
        The job and no problem, or None and every problem found.
    """
    # A dictionary, since a second pass meets again what it could not repair.
    problems: dict[Problem, None] = {}
    repaired = _mapping_as_text(content, "", problems)
    problems |= dict.fromkeys(_truths_for_numbers(repaired, JobConfig, ""))
    while True:
        try:
            job = JobConfig.model_validate(repaired)
        except ValidationError as error:
            details = error.errors(include_url=False)
        else:
            return (None, list(problems)) if problems else (job, [])
        unknown = [detail for detail in details if detail["type"] == "extra_forbidden"]
        new = {_problem(detail, repaired): None for detail in unknown or details}
        if new.keys() <= problems.keys():
            return None, list(problems)
        problems |= new
        if unknown:
            for detail in unknown:
                _resolve_unknown(repaired, detail["loc"])
        elif all(_is_independent(detail["loc"]) for detail in details):
            for detail in details:
                _drop(repaired, detail["loc"])
        else:
            return None, list(problems)


def _mapping_as_text(
    content: Mapping[Any, object], path: str, problems: dict[Problem, None]
) -> dict[str, object]:
    """Copy the content of a job, so that all keys are text, and all text can be written down.

    `no:` and `1:` are not text to YAML, but meant as such. Half of a surrogate pair, which YAML's
    escapes can say, is no character.
    """
    copied: dict[str, object] = {}
    for key, part in content.items():
        if not isinstance(key, str):
            message = f"a key must be text, found {shown(key)}; put quotes around it"
            problems[Problem(path, message)] = None
        text = _encodable(key, path, problems) if isinstance(key, str) else shown(key)
        copied[text] = _as_text(part, f"{path}.{text}" if path else text, problems)
    return copied


def _as_text(value: object, path: str, problems: dict[Problem, None]) -> object:
    match value:
        case str():
            return _encodable(value, path, problems)
        case list():
            parts = enumerate(value)
            return [_as_text(part, f"{path}[{index}]", problems) for index, part in parts]
        case Mapping():
            return _mapping_as_text(value, path, problems)
        case _:
            return value


def _encodable(text: str, path: str, problems: dict[Problem, None]) -> str:
    encodable = text.encode(errors="backslashreplace").decode()
    if encodable != text:
        message = f"{shown(text)} is no text: half of a surrogate pair is no character"
        problems[Problem(path, message)] = None
    return encodable


def yaml_steps(location: Location, content: object) -> list[int | str]:
    """Return the keys and indices that lead to a value in the YAML.

    A model's location can be longer: ``(objectives, math, tasks, 0, task)`` is the whole of
    ``objectives: {math: gsm8k}``. Nor does the YAML say which of two kinds an entry is.
    """
    steps: list[int | str] = []
    here = content
    for part in location:
        if part in (TASK_TAG, SCORER_TAG):
            continue
        if isinstance(here, Mapping):
            steps.append(part)
            here = here.get(part)
        elif isinstance(here, list) and isinstance(part, int):
            steps.append(part)
            here = here[part] if part < len(here) else None
    return steps


def dotted(steps: list[int | str]) -> str:
    """Write steps as people do: ``objectives.math.tasks[0].weight``."""
    return "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps
    ).removeprefix(".")


def shown(value: object) -> str:
    """Write a value of a job file for a message: short, on one line, whatever it is."""
    kinds = {
        dict: "a mapping",
        list: "a list",
        type(None): "nothing",
        bool: str(value is True).lower(),
    }
    if type(value) in kinds:
        return kinds[type(value)]
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        text = value if len(value) <= _LONGEST_SHOWN else value[: _LONGEST_SHOWN - 3] + "..."
        return f"`{repr(text)[1:-1]}`" if text else "empty text"
    return str(value) if isinstance(value, int | float) else f"a {type(value).__name__}"


def _problem(detail: ErrorDetails, content: Mapping[str, object]) -> Problem:
    path = dotted(yaml_steps(detail["loc"], content))
    message = _message(detail)
    if detail["type"] == "value_error" and (found := _PATH_IN_MESSAGE.fullmatch(message)):
        return Problem(f"{path}.{found[1]}" if path else found[1], found[2])
    return Problem(path, message)


_REQUIREMENTS = {
    "greater_than": "must be > {gt}",
    "greater_than_equal": "must be >= {ge}",
    "less_than": "must be < {lt}",
    "less_than_equal": "must be <= {le}",
    "finite_number": "must be a finite number",
    "literal_error": "must be {expected}",
    "string_too_short": "must not be empty",
    "too_short": "must have at least {min_length} entry",
}

_KINDS = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be `true` or `false`",
    "string": "must be text; put quotes around it",
    "list": "must be a list",
    "dict": "must be a mapping (`key: value` lines)",
    "model": "must be a mapping (`key: value` lines)",
}


def _message(detail: ErrorDetails) -> str:
    kind, found = detail["type"], shown(detail["input"])
    special = {"extra_forbidden": _unknown_key, "missing": _missing_key}
    if kind in special:
        return special[kind](detail["loc"])
    if kind == "value_error":
        return detail["msg"].removeprefix("Value error, ")
    if kind in _REQUIREMENTS:
        # 1.0 is how the schema says 1.
        limits = {
            name: int(limit) if isinstance(limit, float) and limit.is_integer() else limit
            for name, limit in detail.get("ctx", {}).items()
        }
        wanted = _REQUIREMENTS[kind].format(**limits).replace("'", "`")
    else:
        usual = f"{detail['msg'][:1].lower()}{detail['msg'][1:]}"
        wanted = _KINDS.get(kind.partition("_")[0], usual)
    if kind == "literal_error" and isinstance(detail["input"], str):
        choices = re.findall(r"`([^`]*)`", wanted)
        if close := difflib.get_close_matches(detail["input"], choices, n=1):
            wanted += f"; did you mean `{close[0]}`?"
    first, semicolon, rest = wanted.partition("; ")
    return f"{first}, found {found}{semicolon}{rest}"


def _missing_key(location: Location) -> str:
    section, key = _type_at(location[:-1]), str(location[-1])
    if not _is_model(section):
        return "is missing"
    text = " ".join((section.model_fields[key].description or "").split())
    return f"is missing: {text.partition('. ')[0].rstrip('.')}" if text else "is missing"


def _unknown_key(location: Location) -> str:
    key = str(location[-1])
    if meant := _meant_key(location):
        return f"unknown key `{key}`; did you mean `{meant}`?"
    section = _type_at(location[:-1])
    known = ", ".join(f"`{name}`" for name in section.model_fields) if _is_model(section) else ""
    return f"unknown key `{key}`; known here: {known}"


def _meant_key(location: Location) -> str | None:
    """Return the key that was probably meant: dotted when it belongs to another section."""
    section, key = _type_at(location[:-1]), str(location[-1])
    elsewhere = [path for path in _known_paths(JobConfig) if path.rpartition(".")[2] == key]
    if len(elsewhere) == 1:
        return elsewhere[0]
    names = section.model_fields if _is_model(section) else {}
    close = difflib.get_close_matches(key, names, n=1)
    return close[0] if close else None


def _known_paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        inner = _plain(field.annotation)
        if _is_model(inner):
            yield from _known_paths(inner, f"{prefix}{name}.")


def _resolve_unknown(content: MutableMapping[str, object], location: Location) -> None:
    """Take an unknown key out, or read it as the key of its section that it was meant to be."""
    section = _parent(content, location)
    value = section.pop(location[-1], None)
    meant = _meant_key(location)
    if meant is not None and "." not in meant:
        section.setdefault(meant, value)


def _is_independent(location: Location) -> bool:
    top, inner = (*location, None, None)[:2]
    return (
        top in _INDEPENDENT
        or (top == "merge" and inner not in {None, "method"})
        or (top == "search" and inner not in {None, "preference"})
    )


def _drop(content: MutableMapping[str, object], location: Location) -> None:
    """Take a wrong value out; of a list, the whole list; a mapping that becomes empty, too."""
    steps = yaml_steps(location, content)
    first_index = next((n for n, step in enumerate(steps) if isinstance(step, int)), len(steps))
    steps = steps[:first_index]
    while steps:
        parent = _parent(content, tuple(steps))
        parent.pop(steps.pop(), None)
        if parent:
            return


def _parent(
    content: MutableMapping[str, object], location: Location
) -> MutableMapping[int | str, object]:
    here: Any = content
    for step in yaml_steps(location, content)[:-1]:
        here = here[step]
    return here if isinstance(here, MutableMapping) else {}


def _truths_for_numbers(value: object, kind: object, path: str) -> Iterator[Problem]:
    """Find true and false where a number belongs: pydantic would read them as 1 and 0."""
    kind = _plain(kind)
    if isinstance(value, bool) and kind in (int, float):
        yield Problem(path, f"must be a number, found {shown(value)}")
    elif isinstance(value, list):
        for index, part in enumerate(value):
            yield from _truths_for_numbers(part, _inner(kind, index), f"{path}[{index}]")
    elif isinstance(value, Mapping):
        for key, part in value.items():
            inner = f"{path}.{key}" if path else str(key)
            yield from _truths_for_numbers(part, _inner(kind, key), inner)


def _type_at(location: Location) -> object:
    here: object = JobConfig
    for part in location:
        here = _inner(_plain(here), part)
    return _plain(here)


def _inner(kind: object, part: object) -> object:
    """Return the type of one entry of a section, mapping or list."""
    if _is_model(kind):
        field = kind.model_fields.get(str(part))
        return field.annotation if field else None
    if _is_union(kind):
        return _of_union(kind, part)
    arguments = get_args(kind)
    return arguments[-1] if get_origin(kind) in (dict, list) else None


def _plain(kind: object) -> object:
    """Take Annotated and Optional off."""
    if get_origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if _is_union(kind):
        parts = [part for part in get_args(kind) if part is not type(None)]
        return _plain(parts[0]) if len(parts) == 1 else kind
    return kind


def _is_union(kind: object) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _of_union(kind: object, part: object) -> object:
    """Return the member that a tag names, or the type of a key that a member has."""
    for member in get_args(kind):
        tags = [extra.tag for extra in get_args(member)[1:] if isinstance(extra, Tag)]
        if part in tags:
            return member
    found = [_inner(member, part) for member in map(_plain, get_args(kind)) if _is_model(member)]
    return next((inner for inner in found if inner is not None), None)


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
