"""Texts of people in Markdown: shown as they are, whatever they hold."""

import re

_SPECIAL = re.compile(r"([\\`*_\[\]<>|~#$&])")


def escape_markdown(text: str) -> str:
    """Write a text so that Markdown shows it on one line, as it is."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def code_span(text: str) -> str:
    """Write a text between backticks, on one line, also within a table."""
    line = " ".join(text.split()).replace("|", "\\|")
    marks = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    # A backtick at an end would belong to the marks.
    space = " " if "`" in line or not line else ""
    return f"{marks}{space}{line}{space}{marks}"


def fence(text: str) -> str:
    """Return a line of backticks that can stand around a text of several lines."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    return "`" * max(3, longest + 1)
