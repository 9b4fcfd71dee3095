"""What a command line may say of a learned merge: the options of each method, and their ranges."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from typing import Any, Literal, get_args

from configs.errors import ConfigError, Problem
from workers.learning.adamerging import AdaMergingSettings, Granularity, Positions
from workers.learning.dam import DamSettings

MethodName = Literal["dam", "adamerging"]
METHODS: tuple[MethodName, ...] = get_args(MethodName)
Settings = DamSettings | AdaMergingSettings

_DEFAULTS: Mapping[str, Settings] = {"dam": DamSettings(), "adamerging": AdaMergingSettings()}
_WHOLE = (lambda value: value >= 1, "must be at least 1")
_POSITIVE = (lambda value: value > 0, "must be > 0")
_NOT_NEGATIVE = (lambda value: value >= 0, "must be >= 0")


def _one_of(words: tuple[str, ...]) -> tuple[Callable[[object], bool], str]:
    return (lambda value: value in words, f"must be one of {', '.join(words)}")


_RANGES: Mapping[str, tuple[Callable[..., bool], str]] = {
    "steps": _WHOLE,
    "batch_size": _WHOLE,
    "new_tokens": _WHOLE,
    "lr": _POSITIVE,
    "temperature": _POSITIVE,
    "similarity": _NOT_NEGATIVE,
    "l1": _NOT_NEGATIVE,
    "l2": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "seed": (lambda value: 0 <= value < 2**63, "must be from 0 to 2^63 - 1"),
    "granularity": _one_of(get_args(Granularity)),
    "positions": _one_of(get_args(Positions)),
}


def flag_of(option: str) -> str:
    """Return how the command line spells an option."""
    return "--" + option.replace("_", "-")


def settings_of(method: str, given: Mapping[str, object]) -> Settings:
    """Return the settings of a method: what is given, and its defaults.

    Args:
        method: Name of the method.
        given: Option -> value; None is not given.

    Raises:
        ConfigError: There is no such method, or every option that it lacks or that is out of
            range.
    """
    if method not in METHODS:
        close = difflib.get_close_matches(method, METHODS, n=1)
        advice = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(METHODS)}"
        raise ConfigError(
            "the command line cannot be used",
            [Problem("METHOD", f"`{method}` is not learned here; {advice}")],
        )
    known = [field.name for field in fields(_DEFAULTS[method])]
    chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    problems = [
        Problem(
            flag_of(name), f"`{method}` has no such option; it has {', '.join(map(flag_of, known))}"
        )
        for name in chosen
        if name not in known
    ]
    problems += [
        Problem(flag_of(name), message)
        for name, value in chosen.items()
        if name in known and (message := _problem_with(name, value))
    ]
    if problems:
        raise ConfigError(f"`{method}` cannot be used like this", problems)
    return replace(_DEFAULTS[method], **chosen)


def _problem_with(name: str, value: object) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return f"must be a finite number, found {value}"
    is_fine, rule = _RANGES.get(name, (lambda _: True, ""))
    return None if is_fine(value) else f"{rule}, found {value}"
