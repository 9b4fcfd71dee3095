"""Groups of tensors: from the rules of a job file to the regular expressions of a recipe.

A group is a list of rules and holds every tensor that one of them matches. Recipes keep the
regular expressions, so they mean the same whatever this file says later.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_serializer,
    model_validator,
)

Kind = Literal["attention", "mlp", "embeddings", "norms", "head"]
REST = "rest"
"""The rule that stands for every tensor that no other group holds."""

_HIGHEST_LAYER = 999

# What tensors of a kind are called in transformers: expressions over whole names, in order of
# precedence. A tensor is of the first kind that matches: `self_attn.q_norm` is a norm, and
# `attention.output.dense` of BERT is not the `output` of its MLP.
_NAMED: dict[Kind, str] = {
    "norms": r"(?:.*\.)?(?i:\w*norm\w*|ln\w*)(?:\.\w+)?",
    "head": r"(?:.*\.)?(?:lm_head|embed_out|pooler|shared_head)\..*|"
    r"(?:cls|score|(?:pre_)?classifier|qa_outputs|vocab_\w+|v_head)\..*",
    "embeddings": r"(?:.*\.)?(?:\w*embed\w*|wte|wpe|shared|project_in|project_out)\..*",
    "attention": r"(?:.*\.)?(?i:\w*att(?:entio)?n\w*)\..*",
    "mlp": r"(?:.*\.)?(?:\w*(?:mlp|ffn|moe|experts?)\w*|fc\w*|feed_?forward\w*|DenseReluDense|"
    r"router|intermediate|output)\..*",
}
_MARK = r"(?:layers?|h|blocks?)"


class GroupRule(BaseModel):
    """Which tensors a group holds: those for which every part that is given holds.

    A plain string is short for ``regex``; ``rest``, alone in its group, for every tensor that no
    other group holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    layers: str | None = None
    """Numbers of layers, from 0: ``5``, ``0-11``, ``12-`` or ``0-3,28-31``. The first number of a
    name counts (``model.layers.5.mlp...``); what is in no layer has none."""
    kind: Kind | None = None
    """``attention``, ``mlp`` (experts and routers included), ``embeddings``, ``norms`` (wherever
    they are) or ``head``; a head that is tied to the embeddings is part of these."""
    regex: str | None = None
    """Regular expression over the whole name of a tensor."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        if meant := _meant(value):
            raise ValueError(f"`{value}` is the whole name of no tensor; did you mean `{meant}`?")
        return {"regex": value}

    @field_validator("layers", mode="before")
    @classmethod
    def _from_number(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("layers")
    @classmethod
    def _layers_are_ranges(cls, value: str | None) -> str | None:
        if value is not None:
            _number_pattern(value)
        return value

    @field_validator("regex")
    @classmethod
    def _regex_compiles(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"`{value}` is not a regular expression: {error}") from error
        return value

    @model_validator(mode="after")
    def _says_something(self) -> "GroupRule":
        if self.layers is None and self.kind is None and self.regex is None:
            raise ValueError("a rule needs `layers`, `kind` or `regex`, found none of them")
        return self

    @model_serializer(mode="plain")
    def _shortest(self) -> str | dict[str, str]:
        # As it is written in a job file: older jobs, which hold strings, keep their digest.
        parts = {"layers": self.layers, "kind": self.kind, "regex": self.regex}
        given = {name: value for name, value in parts.items() if value is not None}
        return given["regex"] if list(given) == ["regex"] else given

    @property
    def is_rest(self) -> bool:
        """Whether this is the word ``rest``."""
        return (self.layers, self.kind, self.regex) == (None, None, REST)

    @property
    def pattern(self) -> str:
        """The regular expression, over whole names, of the tensors that this rule matches."""
        conditions = []
        if self.layers is not None:
            conditions.append(layers_pattern(self.layers))
        if self.kind is not None:
            conditions.append(kind_pattern(self.kind))
        if self.regex is not None:
            # Last, and not in a lookahead: its own groups keep their numbers.
            conditions.append(_embeddable(self.regex) if conditions else self.regex)
        *ahead, last = conditions
        return "".join(f"(?=(?:{condition})\\Z)" for condition in ahead) + (
            f"(?:{last})" if ahead else last
        )


def _rest_alone(rules: list[GroupRule]) -> list[GroupRule]:
    if len(rules) > 1 and any(rule.is_rest for rule in rules):
        raise ValueError(
            f"`{REST}` must be the only rule of its group, found {len(rules)} rules; take the "
            "others out, they are part of it"
        )
    return rules


GroupRules = Annotated[list[GroupRule], Field(min_length=1), AfterValidator(_rest_alone)]
"""The rules of one group: it holds what any of them matches."""


def compile_groups(groups: Mapping[str, Sequence[GroupRule]]) -> dict[str, tuple[str, ...]]:
    """Return the patterns of every group, for ``configs.recipe.Group``, in the same order.

    Raises:
        ValueError: As :func:`check_rest`.
    """
    check_rest(groups)
    patterns = {name: tuple(rule.pattern for rule in rules) for name, rules in groups.items()}
    for name in _rest_groups(groups):
        others = [p for other, held in patterns.items() if other != name for p in held]
        patterns[name] = (_complement(others),)
    return patterns


def check_rest(groups: Mapping[str, Sequence[GroupRule]]) -> None:
    """Check that there is at most one rest, and that it can be told from the other groups.

    Raises:
        ValueError: With the dotted key that is wrong.
    """
    names = _rest_groups(groups)
    if len(names) > 1:
        raise ValueError(
            f"groups.{names[1]}: `{REST}` is given twice, in `{names[0]}` too; keep one of them"
        )
    for name in names:
        others = [rule for rules in groups.values() for rule in rules if not rule.is_rest]
        numbered = r"\\[1-9]|\(\?P=|\(\?\("
        odd = next((o.regex for o in others if re.search(numbered, o.regex or "")), None)
        message = f"groups.{name}: `{REST}` cannot be told from the other groups:"
        if odd is not None:
            raise ValueError(f"{message} `{odd}` refers to a group of its own; write it without")
        try:
            re.compile(_complement([rule.pattern for rule in others]))
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"{message} {error}; write its expression out") from error


def kind_pattern(kind: Kind) -> str:
    """Return a regular expression over the whole names of the tensors of a kind.

    The kinds exclude each other: no name is of two.
    """
    earlier = list(_NAMED)[: list(_NAMED).index(kind)]
    before = "|".join(_NAMED[other] for other in earlier)
    return f"(?!(?:{before})\\Z)(?:{_NAMED[kind]})" if before else _NAMED[kind]


def layers_pattern(layers: str) -> str:
    """Return a regular expression over the whole names of the tensors of some layers.

    Raises:
        ValueError: Not like ``5``, ``0-11``, ``12-`` or ``0-3,28-31``.
    """
    # T5 counts twice (`block.3.layer.0`): the first number is the layer's.
    return rf"(?:(?!{_MARK}\.\d+\.)[^.]+\.)*{_MARK}\.(?:{_number_pattern(layers)})\..*"


def _number_pattern(layers: str) -> str:
    numbers: set[int] = set()
    open_from: int | None = None
    for part in layers.split(","):
        found = re.fullmatch(r"\s*([0-9]{1,6})\s*(-?)\s*([0-9]{1,6})?\s*", part)
        if found is None or (found[3] and not found[2]):
            raise ValueError(f"`{layers}` must be like 5, 0-11, 12- or 0-3,28-31")
        low = int(found[1])
        high = int(found[3]) if found[3] else low
        if max(low, high) > _HIGHEST_LAYER:
            raise ValueError(f"`{layers}`: layers go to {_HIGHEST_LAYER} at most")
        if high < low:
            raise ValueError(f"`{layers}`: {low}-{high} holds no layer; write {high}-{low}")
        if found[2] and not found[3]:
            open_from = low if open_from is None else min(low, open_from)
        else:
            numbers.update(range(low, high + 1))
    listed = "|".join(map(str, sorted(n for n in numbers if open_from is None or n < open_from)))
    if open_from is None:
        return listed
    below = "|".join(map(str, range(open_from)))
    rest = rf"(?!(?:{below})\.)\d+" if below else r"\d+"
    return f"{listed}|{rest}" if listed else rest


def _complement(patterns: Iterable[str]) -> str:
    held = "|".join(f"(?:{_embeddable(pattern)})" for pattern in patterns)
    return rf"(?!(?:{held})\Z).*" if held else ".*"


def _embeddable(pattern: str) -> str:
    """Return a pattern as part of another: flags at its start hold for it alone."""
    flags = re.match(r"\(\?([aimsux]+)\)", pattern)
    if flags is None:
        return pattern
    # With `x` the text may end in a comment, which would swallow the bracket.
    end = "\n" if "x" in flags[1] else ""
    return f"(?{flags[1]}:{pattern[flags.end() :]}{end})"


def _rest_groups(groups: Mapping[str, Sequence[GroupRule]]) -> list[str]:
    return [name for name, rules in groups.items() if any(rule.is_rest for rule in rules)]


def _meant(text: str) -> str | None:
    """Return the rule that was probably meant by a string that is no sensible expression."""
    if re.fullmatch(r"\d+(-\d*)?(\s*,\s*\d+(-\d*)?)*", text):
        return f"{{layers: {text}}}" if "," not in text else f'{{layers: "{text}"}}'
    words = [*get_args(Kind), REST]
    if text == REST or not text.isidentifier():
        return None
    close = difflib.get_close_matches(text, words, n=1, cutoff=0.7)
    if not close:
        return None
    return REST if close[0] == REST else f"{{kind: {close[0]}}}"
