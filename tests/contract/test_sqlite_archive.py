"""The archive contract on SQLite files."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.contract.archive_block_contract import ArchiveBlockContract
from tests.contract.archive_contract import ArchiveContract
from tests.contract.archive_outcome_contract import ArchiveOutcomeContract
from tests.contract.archive_stop_contract import ArchiveStopContract


class TestSqliteArchive(
    ArchiveContract, ArchiveOutcomeContract, ArchiveBlockContract, ArchiveStopContract
):
    @pytest.fixture
    def location(self, tmp_path: Path) -> Path:
        return tmp_path / "search.sqlite"

    @pytest.fixture
    def execute(self, location: Path) -> Callable[[str], None]:
        def execute(statement: str) -> None:
            with closing(sqlite3.connect(location)) as connection, connection:
                connection.execute(statement)

        return execute
