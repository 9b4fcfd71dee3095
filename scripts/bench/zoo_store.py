"""What was scored once is never scored again: item scores of merges, remembered on disk.

The key of a score is (recipe id, task definition, metric, item id): the recipe determines the
merged tensors, the definition is the manifest's hash of prompts, limits and scorers, and an item's
id is a hash of its content. So nothing that could change a score is left out, and a score is the
same whichever strategy, seed, split or block asked for it. Numbers of recipes and items stand for
their names, which keeps a score at about 25 bytes.
"""

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from configs.recipe import MergeRecipe

_SCHEMA = """
CREATE TABLE IF NOT EXISTS recipes (
    number INTEGER PRIMARY KEY, recipe_id TEXT UNIQUE NOT NULL, recipe TEXT NOT NULL,
    weights_digest TEXT, failure TEXT);
CREATE TABLE IF NOT EXISTS items (
    number INTEGER PRIMARY KEY, definition TEXT NOT NULL, metric TEXT NOT NULL, item TEXT NOT NULL,
    UNIQUE (definition, metric, item));
CREATE TABLE IF NOT EXISTS scores (
    recipe INTEGER NOT NULL, item INTEGER NOT NULL, value REAL NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (recipe, item)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Signal:
    """What is measured of an item: a task's definition and the metric read from it."""

    definition: str
    metric: str


@dataclass(frozen=True, slots=True)
class Remembered:
    """One item's score, and the processor seconds that its share of the evaluation took."""

    value: float
    seconds: float


class ScoreStore:
    """Item scores of recipes in one SQLite file; a context manager that closes it.

    Processes may share a file: they see each other's scores after a commit, and two that score
    the same item write the same value.

    Args:
        path: The file; made with its directory where there is none.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(path, timeout=120, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        # A score that a power cut loses is scored again.
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._connection.executescript(_SCHEMA)
        self._items: dict[tuple[Signal, str], int] = {}

    def lookup(
        self, recipe: MergeRecipe, signal: Signal, items: Sequence[str]
    ) -> dict[str, Remembered]:
        """Return what is known: item id -> score; items that were never scored are left out."""
        numbers = {self._item(signal, item): item for item in items}
        rows = self._connection.execute(
            "SELECT s.item, s.value, s.seconds FROM scores s JOIN recipes r ON r.number = s.recipe "
            "WHERE r.recipe_id = ?",
            (recipe.recipe_id,),
        )
        return {
            numbers[number]: Remembered(value, seconds)
            for number, value, seconds in rows
            if number in numbers
        }

    def remember(
        self, recipe: MergeRecipe, scores: Mapping[Signal, Mapping[str, Remembered]], digest: str
    ) -> None:
        """Keep the scores of an evaluation, and the digest of the merged tensors."""
        with self._transaction():
            number = self._recipe(recipe)
            self._connection.execute(
                "UPDATE recipes SET weights_digest = ? WHERE number = ?", (digest, number)
            )
            self._connection.executemany(
                "INSERT OR IGNORE INTO scores VALUES (?, ?, ?, ?)",
                [
                    (number, self._item(signal, item), score.value, score.seconds)
                    for signal, by_item in scores.items()
                    for item, score in by_item.items()
                ],
            )

    def remember_failure(self, recipe: MergeRecipe, message: str) -> None:
        """Keep that a recipe cannot be scored."""
        with self._transaction():
            self._connection.execute(
                "UPDATE recipes SET failure = ? WHERE number = ?", (message, self._recipe(recipe))
            )

    def digest_and_failure(self, recipe: MergeRecipe) -> tuple[str | None, str | None]:
        """Return the digest of the merged tensors and the failure, None where there is none."""
        row = self._connection.execute(
            "SELECT weights_digest, failure FROM recipes WHERE recipe_id = ?", (recipe.recipe_id,)
        ).fetchone()
        return (None, None) if row is None else (row[0], row[1])

    def recipes(self) -> list[MergeRecipe]:
        """Return every recipe that was scored, in the order of its first score."""
        rows = self._connection.execute("SELECT recipe FROM recipes ORDER BY number")
        return [MergeRecipe.model_validate_json(row[0]) for row in rows]

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def __enter__(self) -> "ScoreStore":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _recipe(self, recipe: MergeRecipe) -> int:
        row = (recipe.recipe_id, recipe.model_dump_json())
        self._connection.execute(
            "INSERT OR IGNORE INTO recipes (recipe_id, recipe) VALUES (?, ?)", row
        )
        query = "SELECT number FROM recipes WHERE recipe_id = ?"
        return int(self._connection.execute(query, row[:1]).fetchone()[0])

    def _item(self, signal: Signal, item: str) -> int:
        """Return the number of an item; one that is new gets one."""
        if (signal, item) not in self._items:
            row = (signal.definition, signal.metric, item)
            query = "SELECT number FROM items WHERE definition = ? AND metric = ? AND item = ?"
            found = self._connection.execute(query, row).fetchone()
            if found is None:
                self._connection.execute(
                    "INSERT OR IGNORE INTO items (definition, metric, item) VALUES (?, ?, ?)", row
                )
                found = self._connection.execute(query, row).fetchone()
            self._items[signal, item] = int(found[0])
        return self._items[signal, item]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")
