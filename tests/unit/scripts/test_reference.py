"""The generated pages of the reference: nothing is missed, and schemas are put into right words."""

import re

import pytest
from typer.main import get_command

from configs.schema import JobConfig
from optimizer.cli.app import app
from scripts.reference.commands_page import commands_page
from scripts.reference.http_page import http_page
from scripts.reference.job_page import job_page
from scripts.reference.json_schema import entry, type_text
from scripts.reference.pages import write_pages


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "integer", "minimum": 1}, "whole number, >= 1"),
        ({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "null"}]},
         "number, > 0 or `null`"),
        ({"enum": ["a", "b"], "type": "string"}, "`a`, `b`"),
        ({"type": "array", "items": {"$ref": "#/$defs/Part"}, "minItems": 1},
         "list of <Part>, length >= 1"),
        ({"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}], "minItems": 2},
         "list of number, string"),
        ({"type": "object", "additionalProperties": {"type": "boolean"}},
         "mapping to `true` or `false`"),
        ({"const": "auto"}, "`auto`"),
        ({}, "any value"),
    ],
)  # fmt: skip
def test_type_is_said_in_words(schema, words) -> None:
    assert type_text(schema, lambda name: f"<{name}>") == words


def test_entry_says_what_may_be_left_out() -> None:
    schema = {"type": "string", "default": "", "description": "What it\nis."}
    assert entry("`x`", schema, str, is_required=False) == [
        "`x`", ': *string, default `""`.* What it is.', "",
    ]  # fmt: skip
    assert entry("`x`", {"type": "string"}, str, is_required=True)[1] == ": *string, required.*"


def test_every_key_of_a_job_is_described_with_its_type() -> None:
    schema = JobConfig.model_json_schema()
    page = job_page()
    for section in (schema, *schema["$defs"].values()):
        for key, part in section.get("properties", {}).items():
            assert part.get("description"), f"{section['title']}.{key} has no docstring"
            assert f"\n`{key}`\n: *" in page
    # Values of options are whatever a function takes; everything else has a type.
    assert [line for line in page.splitlines() if "any value" in line] == [
        ": *mapping to any value.* Keyword arguments of the function."
    ]
    assert "At `models.base`, `models.checkpoints.NAME`." in page
    assert "`workers`, and where" in page


def test_links_of_the_generated_pages_have_targets() -> None:
    for page in (job_page(), http_page()):
        targets = set(re.findall(r"^\(([\w-]+)\)=$", page, re.MULTILINE))
        assert set(re.findall(r"\]\(#([\w-]+)\)", page)) <= targets


def test_every_command_and_exit_code_is_described() -> None:
    page = commands_page()
    for name in get_command(app).commands:
        assert f"\n## `mergefront {name}`\n" in page
    assert "\n### `mergefront archive verify`\n" in page
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == [
        0, 1, 2, 3, 4, 5, 6, 7, 8, 130, 143,
    ]  # fmt: skip


def test_pages_that_are_the_same_are_not_written_again(tmp_path) -> None:
    write_pages(tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    (tmp_path / "job.md").write_text("old")
    write_pages(tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert [name for name in before if before[name] != after[name]] == ["job.md"]
    assert (tmp_path / "job.md").read_text().startswith("# Job file")
