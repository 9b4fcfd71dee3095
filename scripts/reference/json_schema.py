"""From a JSON schema to MyST: the keys of an object with types, bounds, defaults and meanings."""

import json
from collections.abc import Callable, Mapping
from typing import Any

Schema = Mapping[str, Any]
Link = Callable[[str], str]
"""Turns the name of a definition into a link in Markdown."""

_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minItems": "length >= {}",
    "minProperties": "length >= {}",
    "maxItems": "length <= {}",
    "maxLength": "at most {} characters",
}
# Longer defaults are those of a section, whose keys are described with theirs.
_LONGEST_DEFAULT = 60


def keys_of(schema: Schema, link: Link) -> list[str]:
    """Return a definition list of an object's keys; empty where it has none.

    Args:
        schema: Of an object.
        link: Where definitions are described.
    """
    required = set(schema.get("required", ()))
    lines = []
    for name, part in schema.get("properties", {}).items():
        lines += entry(f"`{name}`", part, link, is_required=name in required)
    return lines


def entry(term: str, schema: Schema, link: Link, *, is_required: bool) -> list[str]:
    """Return one term of a definition list: what it may be, and what it means."""
    facts = [type_text(schema, link)]
    if is_required:
        facts.append("required")
    elif "default" in schema:
        shown = value_text(schema["default"])
        facts += [f"default {shown}"] if len(shown) <= _LONGEST_DEFAULT else []
    meaning = " ".join(str(schema.get("description", "")).split())
    return [term, f": *{', '.join(facts)}.* {meaning}".rstrip(), ""]


def type_text(schema: Schema, link: Link) -> str:
    """Say in words what a value may be."""
    for key in ("anyOf", "oneOf"):
        if key in schema:
            return " or ".join(type_text(part, link) for part in schema[key])
    if "$ref" in schema:
        return link(str(schema["$ref"]).rpartition("/")[2])
    if "allOf" in schema:
        return " and ".join(type_text(part, link) for part in schema["allOf"])
    if "const" in schema:
        return value_text(schema["const"])
    if "enum" in schema:
        return ", ".join(value_text(value) for value in schema["enum"])
    return ", ".join([_plain_type(schema, link), *_bounds(schema)])


def value_text(value: object) -> str:
    """Return a value as a job file or a request has it."""
    return f"`{value}`" if isinstance(value, str) and value else f"`{json.dumps(value)}`"


def _plain_type(schema: Schema, link: Link) -> str:
    kind = schema.get("type")
    if "prefixItems" in schema:
        return f"list of {', '.join(type_text(part, link) for part in schema['prefixItems'])}"
    if kind == "array":
        return f"list of {type_text(schema.get('items', {}), link)}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {type_text(values, link)}" if isinstance(values, Mapping) else "mapping"
    words = {"integer": "whole number", "null": "`null`", "boolean": "`true` or `false`"}
    return words.get(str(kind), str(kind or "any value"))


def _bounds(schema: Schema) -> list[str]:
    # The length of a list whose entries are named one by one needs no words.
    keys = [key for key in _BOUNDS if key in schema and "prefixItems" not in schema]
    return [_BOUNDS[key].format(schema[key]) for key in keys]
