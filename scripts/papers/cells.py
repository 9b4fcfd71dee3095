"""Cells, one study on one zoo each: their records as files, named by what could change them.

A file's name holds a digest of the code under ``scripts`` that measures, of the zoo's recipe and of
the product's version. Comments, docstrings and what a study says of its records are left out.
"""

import ast
import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from scripts.papers.study import Record, Study
from scripts.papers.zoos import zoo_recipe

_ROOT = Path(__file__).resolve().parents[2]
_TASKS = Path(__file__).with_name("tasks")
# What a study is, which nothing measures with.
_JUDGING = "scripts.papers.study"


@dataclass(frozen=True, slots=True)
class Cell:
    """One study on one zoo."""

    study: str
    width: int
    seed: int


@dataclass(frozen=True, slots=True)
class CellStore:
    """The records of some cells as files of one directory.

    Attributes:
        directory: Made when the first cell is kept.
        studies: By name.
        fast: Whether they are of ``--fast``.
    """

    directory: Path
    studies: dict[str, Study]
    fast: bool

    def path(self, cell: Cell) -> Path:
        """Return the file of a cell, which may not exist."""
        study = self.studies[cell.study]
        recipe = zoo_recipe(cell.width, study.checkpoints)
        digest = hashlib.sha256(code_digest(study.measure.__module__).encode())
        digest.update("".join(recipe.digest(one) for one in recipe.checkpoints).encode())
        kind = "fast" if self.fast else "full"
        name = f"{cell.study}-{cell.width}-{cell.seed}-{kind}-{digest.hexdigest()[:8]}.json"
        return self.directory / name

    def recall(self, cell: Cell) -> list[Record] | None:
        """Return the records of a cell; None where it was not measured as it would be now."""
        path = self.path(cell)
        if not path.is_file():
            return None
        records: list[Record] = json.loads(path.read_text(encoding="utf-8"))["records"]
        return records

    def keep(self, cell: Cell, records: list[Record], seconds: float) -> None:
        """Write a cell's records, on which machine they were measured, and how long that took."""
        path = self.path(cell)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        content = {"machine": this_machine(), "seconds": round(seconds, 1), "records": records}
        partial.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")
        partial.replace(path)

    def machines(self, cells: Sequence[Cell]) -> list[str]:
        """Return where some cells, which are all there, were measured; each machine once."""
        contents = (json.loads(self.path(cell).read_text(encoding="utf-8")) for cell in cells)
        return list(dict.fromkeys(content["machine"] for content in contents))

    def seconds(self, cells: Sequence[Cell]) -> float | None:
        """Return how long measuring some cells took, which are all there; None where one lacks it.

        The training of zoos is not in it.
        """
        contents = [json.loads(self.path(cell).read_text(encoding="utf-8")) for cell in cells]
        if not all("seconds" in content for content in contents):
            return None
        return float(sum(content["seconds"] for content in contents))

    def write(self, cells: Sequence[Cell], file: Path) -> None:
        """Write some cells, which are all there, to one file, a line each."""
        lines = [
            json.dumps({"cell": path.stem, **json.loads(path.read_text(encoding="utf-8"))})
            for path in map(self.path, cells)
        ]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def read(self, file: Path) -> None:
        """Take cells from a file that :meth:`write` wrote, where there are none yet."""
        self.directory.mkdir(parents=True, exist_ok=True)
        for line in file.read_text(encoding="utf-8").splitlines():
            content = json.loads(line)
            path = self.directory / f"{content.pop('cell')}.json"
            if not path.exists():
                path.write_text(json.dumps(content), encoding="utf-8")


def this_machine() -> str:
    """Describe this machine and the packages that decide scores."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy"))
    return (
        f"{os.cpu_count()} processors ({platform.machine()}), Python {platform.python_version()}, "
        f"{packages}"
    )


@lru_cache
def code_digest(module: str) -> str:
    """Return a digest of a module and all that it imports from ``scripts``, tasks included."""
    digest = hashlib.sha256(version("mergefront").encode())
    for name in sorted(imported_modules(module)):
        digest.update(measuring_code(_file_of(name)).encode())
    for file in sorted(path for path in _TASKS.rglob("*") if path.is_file()):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def imported_modules(module: str) -> set[str]:
    """Return a module and those of ``scripts`` that it imports, or that these import."""
    found: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name in found or name == _JUDGING or not _file_of(name).is_file():
            continue
        found.add(name)
        tree = ast.parse(_file_of(name).read_text(encoding="utf-8"))
        left += [
            imported
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scripts.")
            for imported in (str(node.module), *(f"{node.module}.{a.name}" for a in node.names))
        ]
    return found


def _file_of(module: str) -> Path:
    return _ROOT.joinpath(*module.split(".")).with_suffix(".py")


def measuring_code(file: Path) -> str:
    """Return a module without comments, docstrings, blank lines and what its study says.

    By lines of the source, so that every version of Python finds the same.
    """
    source = file.read_text(encoding="utf-8")
    left_out = {
        number for first, last in _unread(ast.parse(source)) for number in range(first, last)
    }
    lines = [
        line
        for number, line in enumerate(source.splitlines(), 1)
        if number not in left_out and line.strip() and not line.lstrip().startswith("#")
    ]
    return "\n".join(line.partition("  # ")[0] for line in lines)


def _unread(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Yield first and last line, the last excluded, of docstrings and studies."""
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        if isinstance(node, ast.stmt) and (is_text or _is_study(node)):
            yield node.lineno, (node.end_lineno or node.lineno) + 1


def _is_study(node: ast.stmt) -> bool:
    value = node.value if isinstance(node, ast.Assign) else None
    return (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id == Study.__name__
    )
