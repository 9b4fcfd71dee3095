"""What a written report is made of: sections of text, tables, figures and code.

``optimizer.report.sections`` says what stands in them; ``optimizer.report.write`` makes HTML,
Markdown and pictures of them. All texts are plain: whoever writes a format escapes them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from rich.table import Table as RichTable

from optimizer.results.tables import stands_out

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class Paragraph:
    """A sentence or several; ``strong`` where it is what readers look for."""

    kind: ClassVar[str] = "paragraph"
    text: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Code:
    """Text to be copied as it is. ``folded`` is its title where it is long and shown on request."""

    kind: ClassVar[str] = "code"
    text: str
    language: str
    folded: str | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells.

    Attributes:
        columns: Headers.
        rows: As many cells each.
        numeric: Columns that are aligned to the right.
        marked: Rows that stand out (``results.tables``).
        caption: What it shows; empty where the text before it says so.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: frozenset[int] = frozenset()
    marked: frozenset[int] = frozenset()
    caption: str = ""

    @classmethod
    def of(cls, table: RichTable, caption: str = "") -> "Table":
        """Take over a table that was laid out for a terminal; its markup is not interpreted."""
        columns = [[str(cell) for cell in column.cells] for column in table.columns]
        return cls(
            columns=tuple(str(column.header) for column in table.columns),
            rows=tuple(zip(*columns, strict=True)),
            numeric=frozenset(
                place for place, column in enumerate(table.columns) if column.justify == "right"
            ),
            marked=frozenset(place for place, row in enumerate(table.rows) if stands_out(row)),
            caption=caption,
        )


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure.

    Attributes:
        name: Of its file, without suffix: letters, digits, `.`, `_` and `-` only.
        caption: What it shows, also for those who cannot see it.
        draw: Makes the figure; called with matplotlib's settings for reports.
    """

    kind: ClassVar[str] = "drawing"
    name: str
    caption: str
    draw: "Callable[[], Figure]"


Block = Paragraph | Bullets | Code | Table | Drawing


@dataclass(slots=True)
class Section:
    """A part of a report under a heading; ``name`` is its anchor."""

    name: str
    title: str
    blocks: list[Block] = field(default_factory=list)

    def say(self, *sentences: str, strong: bool = False) -> None:
        """Add paragraphs, empty ones left out."""
        self.blocks += [Paragraph(text, strong=strong) for text in sentences if text]

    def list(self, sentences: Iterable[str]) -> None:
        """Add a list, unless it is empty."""
        if items := tuple(sentences):
            self.blocks.append(Bullets(items))

    def add(self, *blocks: Block | None) -> None:
        """Add blocks, None left out."""
        self.blocks += [block for block in blocks if block is not None]


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report: a title, one sentence below it, and sections."""

    title: str
    summary: str
    sections: tuple[Section, ...]

    @property
    def drawings(self) -> list[Drawing]:
        """All figures, in their order."""
        blocks = (block for section in self.sections for block in section.blocks)
        return [block for block in blocks if isinstance(block, Drawing)]
