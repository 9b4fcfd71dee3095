"""The page of the job file, from the schema that validates it."""

from collections.abc import Iterator, Mapping
from typing import Any

from configs.schema import JobConfig
from optimizer.job_changes import RESUMABLE_KEYS
from scripts.reference.json_schema import Schema, keys_of

# What any key of a mapping is called in a path.
_ANY = "NAME"

_HEAD = """\
# Job file

A job is a YAML file with these keys. Unknown keys are errors. Paths are relative to the working
directory. Where a description says None, YAML has `null`. `mergefront check JOB.yaml` lists
everything that is wrong with a file; any key can be set on the command line, too
(`--set budget.hours=8`). `configs/example-7b.yaml` has all keys in one file.

Keys that may change when a search is resumed: {operational}, and where their descriptions say so.
"""


def job_page() -> str:
    """Return the page in MyST."""
    schema = JobConfig.model_json_schema()
    definitions: Mapping[str, Any] = schema["$defs"]
    places: dict[str, list[str]] = {}
    for name, path in _places(schema, definitions, ""):
        places.setdefault(name, []).append(path)

    def link(name: str) -> str:
        return f"[{name}](#job-{name.lower()})" if name in places else "any value"

    operational = ", ".join(f"`{key}`" for key in sorted(RESUMABLE_KEYS))
    lines = [_HEAD.format(operational=operational), *keys_of(schema, link)]
    for name, paths in places.items():
        section = definitions[name]
        lines += [f"(job-{name.lower()})=", f"## {name}", ""]
        lines += [f"At {', '.join(f'`{path}`' for path in dict.fromkeys(paths))}.", ""]
        lines += [" ".join(part.split()) + "\n" for part in section["description"].split("\n\n")]
        lines += keys_of(section, link)
    return "\n".join(lines)


def _places(schema: Schema, definitions: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield every section below a schema with the path at which a job has it."""
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        if "properties" in definitions[name]:
            yield name, path
            yield from _places(definitions[name], definitions, path)
    for key, part in schema.get("properties", {}).items():
        yield from _places(part, definitions, f"{path}.{key}" if path else key)
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        yield from _places(part, definitions, path)
    if isinstance(values := schema.get("additionalProperties"), Mapping):
        yield from _places(values, definitions, f"{path}.{_ANY}")
    if "items" in schema:
        yield from _places(schema["items"], definitions, path)
