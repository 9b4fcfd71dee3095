"""The page of the service's HTTP interface, from its OpenAPI."""

import tempfile
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

from optimizer.service.app import create_app
from optimizer.service.settings import ServiceSettings
from scripts.reference.json_schema import Link, entry, keys_of

_HEAD = """\
# HTTP interface

What `mergefront serve` answers; `/api/v1/openapi.json` is the same for programs, and
{{py:class}}`optimizer.service.client.ServiceClient` asks it from Python. Every request needs
`Authorization: Bearer TOKEN`. Every error has the shape of {error}. Besides the statuses that are
listed, any request may get {common}.
"""
# What FastAPI calls an answer that nobody described.
_SAYS_NOTHING = ("", "Successful Response")


def http_page() -> str:
    """Return the page in MyST."""
    with tempfile.TemporaryDirectory() as directory:
        api = create_app(ServiceSettings(archive_dir=Path(directory)), "none").openapi()
    schemas: Mapping[str, Any] = api["components"]["schemas"]

    def link(name: str) -> str:
        has_keys = "properties" in schemas.get(name, {})
        return f"[{name}](#http-{name.lower()})" if has_keys else "any value"

    operations = [
        (method.upper(), path, operation)
        for path, methods in api["paths"].items()
        for method, operation in methods.items()
    ]
    common = _statuses_of_all([operation for _, _, operation in operations])
    head = _HEAD.format(error=link("ErrorAnswer"), common=", ".join(map(_status, sorted(common))))
    lines = [head]
    for tag in dict.fromkeys(operation["tags"][0] for _, _, operation in operations):
        lines += [f"## {tag.capitalize()}", ""]
        for method, path, operation in operations:
            if operation["tags"][0] == tag:
                lines += [f"### `{method} {path}`", "", *_operation(operation, link, common)]
    lines += ["## Objects", ""]
    for name, schema in schemas.items():
        if "properties" in schema:
            lines += [f"(http-{name.lower()})=", f"### {name}", "", schema.get("description", "")]
            lines += ["", *keys_of(schema, link)]
    return "\n".join(lines)


def _operation(operation: Mapping[str, Any], link: Link, common: set[str]) -> list[str]:
    lines = [operation["description"], ""]
    for parameter in operation.get("parameters", ()):
        term = f"`{parameter['name']}` in the {parameter['in']}"
        schema = {"description": parameter.get("description", ""), **parameter["schema"]}
        lines += entry(term, schema, link, is_required=parameter["required"])
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        lines += [f"Body: {_contents(body, link)}.", ""]
    for status, answer in operation["responses"].items():
        if status in common:
            continue
        content = "" if status >= "4" else _contents(answer.get("content", {}), link)
        meaning = answer["description"].rstrip(".")
        told = ", ".join(part for part in (meaning, content) if part not in _SAYS_NOTHING)
        lines.append(f"- {_status(status)}: {told}")
    return [*lines, ""]


def _contents(content: Mapping[str, Any], link: Link) -> str:
    """Name what a body holds: an object, or a media type."""
    named = []
    for media, part in content.items():
        reference = part.get("schema", {}).get("$ref")
        named.append(link(reference.rpartition("/")[2]) if reference else f"`{media}`")
    return " or ".join(named)


def _statuses_of_all(operations: list[Mapping[str, Any]]) -> set[str]:
    """Return the errors that every operation may answer with."""
    shared = set.intersection(*(set(operation["responses"]) for operation in operations))
    return {status for status in shared if status >= "4"}


def _status(status: str) -> str:
    return f"{status} {HTTPStatus(int(status)).phrase}"
