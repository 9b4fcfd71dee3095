"""The boxes of the documentation: what in them is a command, a file, a job or a sample.

A box is a fence of MyST. ``bash`` and ``python`` run, unless a caption says ``Not run by the
tests:`` and why. A caption that is the name of a file in backquotes makes the box that file. In the
README, which is no MyST, a comment on the line before says the same.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Pages that people write; those of the reference are generated.
PAGES = sorted(page for page in DOCS.rglob("*.md") if not {"reference", "_build"} & {*page.parts})
README = ROOT / "README.md"

LEFT_OUT = "Not run by the tests: "
BESIDE = "In a shell of its own"
SAMPLES = frozenset({"text", "toml", "{toctree}"})

_FENCE = re.compile(
    r"(?:^<!-- (?P<comment>[^\n]+) -->\n)?"
    r"^```(?:\{code-block\} )?(?P<language>\{?[\w-]+\}?)\n"
    r"(?P<options>(?::[\w-]+:[^\n]*\n)*)(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_CAPTION = re.compile(r"^:caption: *(.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Box:
    """One fence: where it begins, its language, caption and text."""

    page: Path
    line: int
    language: str
    caption: str
    text: str

    @property
    def file(self) -> str | None:
        """The file that it is, if it is one."""
        named = re.fullmatch(r"`(.+)`", self.caption)
        return named and named[1]

    @property
    def why_not_run(self) -> str | None:
        """Why the tests do not run it; None where they do."""
        return self.caption.removeprefix(LEFT_OUT) if self.caption.startswith(LEFT_OUT) else None

    @property
    def is_run(self) -> bool:
        """Whether a test executes it."""
        runs = self.language in ("bash", "python")
        return runs and self.file is None and self.why_not_run is None

    @property
    def runs_beside(self) -> bool:
        """Whether it goes on while the next boxes run."""
        return self.caption == BESIDE

    @property
    def commands(self) -> list[list[str]]:
        """The calls of ``mergefront`` in a box of shell lines, as lists of arguments."""
        if self.language not in ("bash", "console"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        words = [shlex.split(line, comments=True) for line in lines if "mergefront " in line]
        return [found[1:] for found in words if found and found[0] == "mergefront"]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def boxes_of(page: Path) -> list[Box]:
    """Return the boxes of a page, in their order."""
    text = page.read_text()
    return list(_boxes(page, text))


def job_of_box(box: Box) -> dict[str, Any] | None:
    """Return the job, or the part of one, that a YAML box shows; None for other YAML."""
    content = yaml.safe_load(box.text) if box.language == "yaml" else None
    return None if content is None or "task" in content else content


def _boxes(page: Path, text: str) -> Iterator[Box]:
    for found in _FENCE.finditer(text):
        option = _CAPTION.search(found["options"])
        caption = found["comment"] or "" if option is None else option[1].strip('"')
        yield Box(
            page=page,
            line=text.count("\n", 0, found.start("language")) + 1,
            language=found["language"],
            caption=caption,
            text=found["text"],
        )
